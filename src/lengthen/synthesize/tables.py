"""Synthetic lengthy tables (SynL of LongSkywork, arXiv 2406.00605; what the paper leaves open is ours)."""

from __future__ import annotations

from functools import partial

from lengthen.common.manifest import StageContext, StageResult
from lengthen.recipe.stages.tables import TablesStage
from lengthen.synthesize.conversation import build
from lengthen.synthesize.tokens import Counter
from lengthen.synthesize.writer import Build, write_chat


def write_tables(settings: TablesStage, ctx: StageContext) -> StageResult:
    """Write `chat.jsonl`: conversations about long random tables.

    The same settings, tokenizer and seed give the same bytes, for any number of workers. Every answer is computed with
    polars and once more with plain Python from the rendered text; questions without one right answer are drawn anew and
    counted by rule.

    Raises:
        LengthenError: no table fits the shortest length; tasks that the columns do not allow; no chat template.
    """
    counter = Counter.of_model(settings.model)
    # The shortest tables fail first; find that out now and not after an hour.
    build(settings, counter, ctx.seed, 0, target=settings.min_tokens)
    return write_chat(ctx, settings.count, settings.workers, _builder, settings, ctx.seed)


def _builder(settings: TablesStage, seed: int) -> Build:
    return partial(build, settings, Counter.of_model(settings.model), seed)
