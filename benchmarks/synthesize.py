"""Making synthetic tables against tokenising them: `python -m benchmarks.synthesize [--count N]`. A row in
results/benchmarks/synthesize.json.

Conversations of 2K to 100K tokens are made in this process on one core, with the default model's tokenizer. `ours` is
making alone (drawing, writing, answering, reading back, checking), that is the whole time without the time inside the
tokenizer; `theirs` is tokenising each finished conversation once, in the same process. Both in tokens a second.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import row, store
from lengthen.recipe.stages.tables import TablesStage
from lengthen.synthesize.conversation import build
from lengthen.synthesize.tokens import Counter

PROGRESS_SECONDS = 30.0


class Timed(Counter):
    """A counter that knows how long it took."""

    seconds = 0.0

    def text(self, text: str) -> int:
        began = time.perf_counter()
        found = super().text(text)
        self.seconds += time.perf_counter() - began
        return found

    def each(self, texts: Sequence[str]) -> list[int]:
        began = time.perf_counter()
        found = super().each(texts)
        self.seconds += time.perf_counter() - began
        return found


def one_run(counter: Timed, settings: TablesStage, seed: int) -> tuple[float, float, int, int]:
    """(tokens/s of making alone, of tokenising alone, of both as the stage does them, tokens)"""
    counter.seconds, began = 0.0, time.perf_counter()
    samples: list[dict[str, Any]] = []
    last = began
    for index in range(settings.count):
        samples.append(build(settings, counter, seed, index))
        if time.perf_counter() - last > PROGRESS_SECONDS:
            last = time.perf_counter()
            print(f"run {seed}: {index + 1} of {settings.count} made", file=sys.stderr, flush=True)
    spent, inside, counter.seconds = time.perf_counter() - began, counter.seconds, 0.0
    size = sum(sample["meta"]["tokens"] for sample in samples)
    if sum(counter.conversation(sample["messages"]) for sample in samples) != size:
        raise RuntimeError("the stage's counts are not the tokenizer's")
    return size / (spent - inside), size / counter.seconds, round(size / spent), size


def measured(count: int, runs: int, model: str) -> dict[str, Any]:
    """The row over `runs` runs, each with its own conversations."""
    counter = Timed.of_model(model)
    settings = TablesStage(name="tables", model=model, count=count)
    build(settings, counter, 0, 0)  # word lists and wordings are read once
    assert isinstance(counter, Timed)
    making, tokenising, whole, sizes = zip(*(one_run(counter, settings, run + 1) for run in range(runs)))
    return row(
        "synthesize-tables",
        f"{runs} x {count} conversations about tables of 2K to 100K tokens ({sum(sizes):,} tokens), one process",
        f"tokenising them once with the tokenizer of '{model}'",
        making, tokenising, "tokens/s", better="higher", details={"both together, tokens/s": list(whole)},
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="conversations of a run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", default="default", help="model whose tokenizer counts")
    parser.add_argument("--out", type=Path, help="file of the row (default: results/benchmarks/synthesize.json)")
    given = parser.parse_args(arguments)
    store("synthesize", [measured(given.count, given.runs, given.model)], given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
