"""What the stage gives back, what it lacks, and when too little is left to train on."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.files import write_json
from lengthen.common.manifest import Drops, StageResult
from lengthen.selflengthen.phases import USED_UP, Crew, held_out_prompts, top_reasons
from lengthen.selflengthen.store import Store
from lengthen.selflengthen.work import Work


def enough(work: Work, iteration: int, rows: Sequence[dict[str, Any]]) -> None:
    """Refuse a training on too few texts, before it begins.

    Raises:
        LengthenError: names what may still be changed, since no phase has read it, and what only a new run can change.
    """
    settings, store = work.settings, work.store
    if len(rows) >= settings.training.least_rows:
        return
    final = iteration > settings.trainings
    free = _free(store, iteration, len(rows))
    made = "raise instruct.count or the tries, lower extend.growth, or relax checks"
    if final and settings.trainings:
        made = "raise final.count, or set constraints.low, high and step to auto"
    elif final:
        made = "raise instruct.count or the tries, or relax checks"
    raise LengthenError(
        f"{'The final data hold' if final else f'Macro-iteration {iteration} leaves'} {len(rows)} texts to train on; "
        f"training.least_rows is {settings.training.least_rows}.",
        why=f"refused, by rule: {top_reasons(store, iteration, 6)}",
        fix=(f"{' or '.join(free)}, and run again: it goes on from here; else " if free else "")
        + f"begin anew (--redo {settings.name or settings.kind}, or --out) and {made}: what is there was made with "
        f"these settings. `lengthen inspect {store.path}` shows examples",
    )


def _free(store: Store, iteration: int, rows: int) -> list[str]:
    """Settings of the training that would help, where no training has read them yet."""
    if any(phase == "train" for _, phase, *_ in store.used()):
        return []
    long = store.query("SELECT 1 FROM verdicts WHERE iteration=? AND rule='too_long_to_train'", (iteration,))
    return ["raise training.row_length"] * bool(long) + [f"set training.least_rows to {rows}"] * bool(rows)


def result(crew: Crew) -> StageResult:
    """Counts, drops by rule and the growth of the held-out texts; growth.json holds all measures as curves."""
    store = crew.work.store
    drops = Drops()
    for rule, count in store.query("SELECT rule, COUNT(*) FROM verdicts WHERE rule!='' GROUP BY rule"):
        drops.add(rule, count)
    left_out = store.query("SELECT COUNT(*) FROM outcomes WHERE kept=0")[0][0]
    left_out -= store.query("SELECT COUNT(*) FROM verdicts WHERE rule='same_instruction'")[0][0]  # counted as such
    if left_out:
        drops.add("not_selected", left_out)
    asked, tokens, errors, resent = store.query(
        "SELECT COUNT(*), SUM(COALESCE(new_tokens,0)), SUM(errors), SUM(sends-1) FROM requests"
    )[0]
    rows = list(store.rows("final"))
    fields = ("iteration", "name", "value", "low", "high", "unit", "n")
    measures = [dict(zip(fields, row)) for row in store.query(
        "SELECT iteration, name, value, low, high, unit, n FROM measures ORDER BY name, iteration")]  # fmt: skip
    write_json(crew.ctx.folder / "growth.json", {"schema": 1, "rows": measures})
    figures = {
        f"{name} after {iteration}": round(value, 3)
        for iteration, name, value in store.query(
            "SELECT iteration, name, value FROM measures WHERE name IN ('clean words, median', 'pass rate') "
            "ORDER BY name, iteration"
        )
    }
    words = [row["meta"].get("words", 0) for row in rows]
    return StageResult(
        counts={
            "requests": asked or 0, "new_tokens": tokens or 0, "errors": errors or 0, "resent": resent or 0,
            "instructions": len(store.instructions()), "rows": len(rows),
            "median_words": statistics.median(words) if words else 0,
        },
        drops=drops.by_rule,
        figures=figures,
        notes=[*crew.serving.notes, *notes(crew.work)],
    )  # fmt: skip


def notes(work: Work) -> list[str]:
    """What phases noted, and what there was less of than asked for."""
    found: list[str] = []
    for iteration, phase, info in work.store.query(
        "SELECT iteration, phase, info FROM phases WHERE ended_at IS NOT NULL ORDER BY began_at, rowid"
    ):
        facts = json.loads(info)
        if facts.get("note"):
            found.append(facts["note"])
        if phase == "instruct" and facts["made"] < facts["wanted"]:
            why = top_reasons(work.store, iteration, role="instruct") or USED_UP
            made, wanted = facts["made"], facts["wanted"]
            found.append(f"Macro-iteration {iteration} has {made:,} instructions of {wanted:,} asked for ({why}).")
    there = len(held_out_prompts(work))
    if there < work.settings.held_out.count:
        found.append(f"There are {there:,} held-out prompts; held_out.count is {work.settings.held_out.count:,}.")
    return found
