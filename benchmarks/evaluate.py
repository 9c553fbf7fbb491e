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
END = "end-to-end"
IDS = (*MAKE, *RUN, END)


def rows(asked: argparse.Namespace, ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    from benchmarks import evaluate_end, evaluate_make, evaluate_run

    counts = {"make-8k": asked.samples, "make-128k": asked.samples_128k or asked.samples}
    make, run = {i: counts[i] for i in MAKE if i in ids}, tuple(i for i in RUN if i in ids)
    if make:
        yield from evaluate_make.rows(asked.model, make)
    if run:
        lengths = [n for n in evaluate_run.LENGTHS if n <= asked.longest] or [asked.longest]
        yield from evaluate_run.rows(
            asked.model, run, lengths=lengths, questions=asked.questions, peer_questions=asked.peer_questions
        )
    if END in ids:
        yield from evaluate_end.rows(asked.model, samples=asked.samples_end)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"rows to measure: {', '.join(IDS)}")
    parser.add_argument("--model", default="default")
    parser.add_argument("--longest", type=_count, default=16384, help="longest prompt of needle-map and many-questions")
    parser.add_argument("--questions", type=_count, default=20, help="questions of many-questions")
    parser.add_argument(
        "--peer-questions", type=_count, metavar="K",
        help="ask the peer K of them only and multiply its time by questions/K; answers are compared on the K",
    )  # fmt: skip
    parser.add_argument("--samples", type=_count, default=100, help="samples of a task in make-8k and make-128k")
    parser.add_argument(
        "--samples-128k", type=_count, metavar="N", help="fewer of them in make-128k, on both sides; default: --samples"
    )
    parser.add_argument("--samples-end", type=_count, default=20, help="samples of a task in end-to-end")
    parser.add_argument("--out", type=Path, help="default: results/benchmarks/evaluate.json")
    arguments = parser.parse_args()
    ids = tuple(arguments.ids) or IDS
    unknown = set(ids) - set(IDS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    store("evaluate", rows(arguments, ids), arguments.out)


if __name__ == "__main__":
    main()
