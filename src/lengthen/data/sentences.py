"""The `choose-sentences` stage: of each long row some sentences, in order, as a short row (arXiv 2409.00509).

Ids, documents and units come from the same sentences in one step, so that skipped positions always fit the sentences
that they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, write_json
from lengthen.common.manifest import Drops, StageContext, StageResult
from lengthen.common.seeds import derive_seed
from lengthen.common.words import sentence_spans
from lengthen.data.shards import DATASET, ROWS, Row, open_rows, read_facts, read_row, write_shard
from lengthen.data.tokenize import vocabulary_sha256
from lengthen.data.wordclass import word_classes
from lengthen.recipe.stages.choose_sentences import ChooseSentencesStage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WEIGHTS = "weights.json"
_SHARD_ROWS = 512
_COLUMNS = ["input_ids", "doc_lens", "attend", "sources", "unit_lens"]


@dataclass(frozen=True)
class Sentence:
    """document: its number in the row. ids: its tokens. weight: mean weight of its words."""

    document: int
    ids: np.ndarray
    weight: float


def choose_sentences(settings: ChooseSentencesStage, ctx: StageContext) -> StageResult:
    """Write `rows/` with `unit_lens` (one unit a sentence). Rows are chosen one by one, each with its own seed, so a
    killed stage goes on behind its last shard.

    Raises:
        LengthenError: rows of another tokenizer, rows with a loss mask, weights without word classes.
    """
    from lengthen.models import load_tokenizer

    tokenizer = load_tokenizer(settings.model)
    for folder in settings.rows:
        _check(folder, tokenizer)
    weights = read_weights(settings.weights) if settings.weights is not None else {}
    sets = [open_rows(folder) for folder in settings.rows]
    places = [(number, index) for number, rows in enumerate(sets) for index in range(len(rows))]
    shards = -(-len(places) // _SHARD_ROWS)
    with ctx.progress("choosing sentences", len(places), "rows") as bar:
        for shard in range(shards):
            mine = places[shard * _SHARD_ROWS : (shard + 1) * _SHARD_ROWS]
            part, record = ctx.folder / ROWS / f"{shard:05d}.parquet", ctx.folder / ".counts" / f"{shard:05d}.json"
            if not (part.exists() and record.exists()):
                drops = Drops()
                made = [
                    row
                    for at in mine
                    if (row := _chosen(read_row(sets[at[0]], at[1]), tokenizer, weights, settings, ctx.seed, at, drops))
                ]
                units = sum(len(row.unit_lens) for row in made if row.unit_lens is not None)
                counts = {"rows": len(made), "tokens": sum(len(row.ids) for row in made), "sentences": units}
                write_shard(part, iter(made), settings.row_length, _COLUMNS)
                write_json(record, {**counts, "drops": drops.by_rule})
            bar.advance(len(mine))
    return _finish(settings, ctx, tokenizer, shards)


def _check(folder: str, tokenizer: PreTrainedTokenizerFast) -> None:
    facts = read_facts(folder)
    if facts.get("tokenizer_sha256") not in (None, vocabulary_sha256(tokenizer)):
        raise LengthenError(
            f"The rows in {folder} were made with another tokenizer than `model`'s.",
            fix="set `model` to the model that the rows were prepared for",
        )
    if "loss_mask" in facts.get("columns", []):
        raise LengthenError(
            f"The rows in {folder} carry a loss mask, so they are conversations.",
            why="leaving sentences out would tear questions from their answers",
            fix="choose sentences of plain texts, and mix conversations in at the train stage (rows: [...])",
        )


def read_weights(path: str) -> dict[str, float]:
    """Word class -> weight, from an analyse-tokens stage."""
    file = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise LengthenError(f"weights: there is no {file}.", fix="name a finished analyse-tokens stage (@name)")
    classes = read_json(file).get("classes", {})
    if not classes or not all(isinstance(row, dict) and "weight" in row for row in classes.values()):
        raise LengthenError(f"{file} holds no weights of word classes.", fix="run the analyse-tokens stage again")
    return {name: float(row["weight"]) for name, row in classes.items()}


def sentence_weight(text: str, weights: Mapping[str, float]) -> float:
    """Mean weight of a sentence's words; a class that was never seen weighs 1. White space alone weighs nothing."""
    classes = [name for _, _, name in word_classes(text)]
    return sum(weights.get(name, 1.0) for name in classes) / len(classes) if classes else 0.0


def sentences_of(
    ids: np.ndarray, document: int, tokenizer: PreTrainedTokenizerFast, weights: Mapping[str, float]
) -> list[Sentence]:
    """A document's sentences with their tokens. The text is split, not the tokens, so any tokenizer will do; a token
    belongs to the sentence in which it begins. Special tokens (the end of the text) stay with the last sentence."""
    special = set(tokenizer.all_special_ids)
    plain = [int(i) for i in ids if int(i) not in special]
    tail = [int(i) for i in ids[len(ids) - 1 :] if int(i) in special]
    text = tokenizer.decode(plain)
    assert isinstance(text, str)
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    starts = np.array([begin for begin, _ in encoding.offsets], dtype=np.int64)
    tokens = np.array(encoding.ids, dtype=np.int32)
    found: list[Sentence] = []
    spans = list(sentence_spans(text))
    edges = np.searchsorted(starts, [begin for begin, _ in spans[1:]], side="left").tolist()
    for (begin, end), first, last in zip(spans, [0, *edges], [*edges, len(tokens)], strict=True):
        if last > first:
            found.append(Sentence(document, tokens[first:last], sentence_weight(text[begin:end], weights)))
    if tail and found:
        end = found[-1]
        found[-1] = Sentence(document, np.concatenate([end.ids, np.array(tail, np.int32)]), end.weight)
    return found


def draw(
    sentences: Sequence[Sentence], budget: int, choose: Literal["weighted", "random", "first"], seed: int
) -> list[int]:
    """Numbers of the chosen sentences, ascending, whose tokens fit the budget.

    Weighted drawing without replacement: the sentences with the largest u^(1/w) come first (Efraimidis and Spirakis,
    2006). A sentence that no longer fits is passed over for shorter ones.
    """
    if choose == "first":
        order = list(range(len(sentences)))
    else:
        u = np.random.default_rng(seed).random(len(sentences))
        w = np.array([s.weight if choose == "weighted" else 1.0 for s in sentences])
        with np.errstate(divide="ignore"):
            order = np.argsort(-np.where(w > 0, np.log(u) / np.maximum(w, 1e-9), -np.inf), kind="stable").tolist()
    chosen: list[int] = []
    left = budget
    for number in order:
        size = len(sentences[number].ids)
        if size <= left:
            chosen.append(number)
            left -= size
        elif choose == "first":
            break
    return sorted(chosen)


def _chosen(
    row: Row, tokenizer: Any, weights: Mapping[str, float], settings: ChooseSentencesStage, seed: int,
    place: tuple[int, int], drops: Drops,
) -> Row | None:  # fmt: skip
    sentences: list[Sentence] = []
    for document, ids in enumerate(np.split(row.ids, np.cumsum(row.doc_lens)[:-1])):
        sentences += sentences_of(ids, document, tokenizer, weights)
    chosen = draw(sentences, settings.row_length, settings.choose, derive_seed(seed, "sentences", *place))
    kept = [sentences[number] for number in chosen]
    if not kept:
        drops.add("row_without_a_fitting_sentence", 1, len(row.ids))
        return None
    ids = np.concatenate([s.ids for s in kept]).astype(np.int32)
    drops.add("sentence_left_out", len(sentences) - len(kept), sum(len(s.ids) for s in sentences) - len(ids))
    documents = sorted({s.document for s in kept})
    doc_lens = [sum(len(s.ids) for s in kept if s.document == d) for d in documents]
    return Row(
        ids, np.array(doc_lens, np.int32), row.attend, tuple(row.sources[d] for d in documents),
        unit_lens=np.array([len(s.ids) for s in kept], np.int32),
    )  # fmt: skip


def _finish(
    settings: ChooseSentencesStage, ctx: StageContext, tokenizer: PreTrainedTokenizerFast, shards: int
) -> StageResult:
    records = [read_json(ctx.folder / ".counts" / f"{shard:05d}.json") for shard in range(shards)]
    drops = Drops()
    for record in records:
        drops.merge(record["drops"])
    counts = {name: sum(record[name] for record in records) for name in ("rows", "tokens", "sentences")}
    write_json(ctx.folder / ROWS / DATASET, {
        "schema": 1, "row_length": settings.row_length, "rows": counts["rows"], "tokens": counts["tokens"],
        "tokenizer_sha256": vocabulary_sha256(tokenizer), "columns": _COLUMNS, "shards": shards,
    })  # fmt: skip
    return StageResult(
        counts=counts, drops=drops.by_rule, figures={"choose": settings.choose, "tokens": counts["tokens"]}
    )
