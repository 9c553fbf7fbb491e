"""scores.json and cells.csv of an evaluation."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lengthen.common.files import write_atomic, write_json
from lengthen.evaluate.predict import Predictions
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.statistics import interval
from lengthen.evaluate.suites import Row, Scored
from lengthen.recipe.stages.evaluate import EvaluateStage

COLUMNS = ("arm", "suite", "task", "length", "depth_percent", "score", "n")


def cell_row(suite: str, task: str, length: int, scored: Sequence[Scored], errors: int) -> Row:
    """One cell: mean score in 0..1, its 95% interval over contexts, and what a reader must know beside it.

    empty: answers without a word. cut: answers that filled their room. errors: samples without an answer, which are
    left out of the mean.
    """
    found = interval([s.score for s in scored], [s.sample.context for s in scored])
    row: Row = {
        "suite": suite,
        "task": task,
        "length": length,
        "score": round(found.mean, 6),
        "low": round(found.low, 6),
        "high": round(found.high, 6),
        "n": found.n,
        "contexts": found.contexts,
        "empty": sum(not s.output.strip() for s in scored),
        "cut": sum(s.finish_reason == "length" for s in scored),
        "errors": errors,
    }
    tokens = [s.sample.tokens + s.sample.new_tokens for s in scored if s.sample.tokens]
    if tokens:
        row |= {"tokens_least": min(tokens), "tokens_most": max(tokens)}
    return row


def depth_rows(arm: str, cells: Sequence[Sequence[Sample]], kept: Predictions) -> list[dict[str, Any]]:
    """Score by task, length and depth, from samples that have a depth."""
    found: dict[tuple[str, str, int, float], list[float]] = {}
    for sample in (sample for cell in cells for sample in cell):
        row = kept.by_id.get(sample.id)
        if row is not None and row["score"] is not None and sample.depth is not None:
            key = (sample.suite, sample.task, sample.length, round(100 * sample.depth, 2))
            found.setdefault(key, []).append(row["score"])
    return [
        dict(zip(COLUMNS, (arm, *key, round(sum(scores) / len(scores), 4), len(scores))))
        for key, scores in sorted(found.items())
    ]


def write_tables(
    folder: Path, arm: str, model: str, settings: EvaluateStage, rows: Sequence[Row], notes: Sequence[str],
    cells: Sequence[Sequence[Sample]], kept: Predictions, native: int,
) -> None:  # fmt: skip
    """scores.json (with how it was asked) and cells.csv. native: positions that the model was first trained for."""
    asked = {
        "template": settings.template,
        "template_options": settings.template_options,
        "samples_seed": settings.samples_seed,
        "haystack": settings.haystack,
        "rope": settings.rope.model_dump(exclude_none=True) if settings.rope else None,
        "options": "; ".join(
            f"{choice.suite} {', '.join(f'{key} {value}' for key, value in choice.options.items())}"
            for choice in settings.suites
            if choice.options
        ),
        "interval": "95%, bootstrap over contexts; exact bounds where all agree, and below six contexts",
    }
    head = {"model": model, "arm": arm, "native": native, "asked": asked}
    write_json(folder / "scores.json", {**head, "rows": list(rows), "notes": list(notes)})
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(depth_rows(arm, cells, kept))
    write_atomic(folder / "cells.csv", text.getvalue())
