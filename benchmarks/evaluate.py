"""Figures of the evaluation, a peer beside us in the same run: `python -m benchmarks.evaluate [ID ...]`.

Writes results/benchmarks/evaluate.json; rows of ids that are not asked for stay as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import store

MAKE = ("make-8k", "make-128k")
RUN = ("needle-map", "many-questions")


def rows(model: str, ids: Sequence[str], longest: int, questions: int, samples: int) -> Iterator[dict[str, Any]]:
    from benchmarks import evaluate_make, evaluate_run

    make, run = tuple(i for i in MAKE if i in ids), tuple(i for i in RUN if i in ids)
    if make:
        yield from evaluate_make.rows(model, make, samples)
    if run:
        lengths = [n for n in evaluate_run.LENGTHS if n <= longest] or [longest]
        yield from evaluate_run.rows(model, run, lengths=lengths, questions=questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"rows to measure: {', '.join((*MAKE, *RUN))}")
    parser.add_argument("--model", default="default")
    parser.add_argument("--longest", type=int, default=16384, help="longest prompt of needle-map and many-questions")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--samples", type=int, default=100, help="samples of a task in make-8k and make-128k")
    parser.add_argument("--out", type=Path, help="default: results/benchmarks/evaluate.json")
    arguments = parser.parse_args()
    ids = tuple(arguments.ids) or (*MAKE, *RUN)
    unknown = set(ids) - {*MAKE, *RUN}
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    store(
        "evaluate", rows(arguments.model, ids, arguments.longest, arguments.questions, arguments.samples), arguments.out
    )


if __name__ == "__main__":
    main()
