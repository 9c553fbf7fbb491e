"""The `evaluate` stage on the starting model, on each Generator and on the final model; its numbers become curves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from lengthen.common.files import read_json, write_atomic
from lengthen.selflengthen.measure import measure
from lengthen.selflengthen.phases import Crew, held_out_prompts
from lengthen.selflengthen.serve import role_folder

HELD_OUT = "held-out.jsonl"


def measured(crew: Crew, after: int) -> None:
    """Held-out prompts and the `evaluate` stage, on the Generator as it is after so many trainings."""
    measure(crew, after)
    evaluated(crew, after, role_folder(crew.ctx.folder, after, "generator") if after else None)


def measured_at_the_end(crew: Crew, after: int) -> None:
    """The same of the final model. An endpoint serves adapters of the starting model, not the final one: a note."""
    if not crew.serving.flow:
        measure(crew, after, "final")
    elif crew.work.settings.held_out.count:
        crew.serving.note(
            "The final model did not answer the held-out prompts: the endpoint serves the starting model and its "
            f"adapters, not {crew.ctx.folder / 'model'}. "
            + ("The suites of `evaluate` have it." if crew.work.settings.evaluate else "`evaluate` would measure it.")
        )
    evaluated(crew, after, crew.ctx.folder)


def evaluated(crew: Crew, after: int, folder: Path | None) -> None:
    """The `evaluate` stage on the model in `folder` (None: the starting model), where the recipe asks for it."""
    settings, store = crew.work.settings, crew.work.store
    if settings.evaluate is None or not store.begin(after, "evaluate"):
        return
    from lengthen.evaluate.run import evaluate

    crew.serving.stop()
    place = crew.ctx.folder / "iterations" / f"{after}-evaluate"
    place.mkdir(parents=True, exist_ok=True)
    stage = settings.evaluation(settings.model if folder is None else str(folder))
    if settings.asks_held_out(stage):
        stage = settings.evaluation(stage.model, _held_out_file(crew))
    evaluate(stage, replace(crew.ctx, folder=place, stage=f"{crew.ctx.stage}/{place.name}"))
    for row in read_json(place / "scores.json")["rows"]:
        value = row.get("score", row.get("value"))
        if value is None:
            continue
        name = f"{row['suite']}/{row['task']}" + (f" at {row['length']}" if row.get("length") else "")
        low, high = row.get("low", value), row.get("high", value)
        store.measure(after, name, value, low, high, row.get("unit", "score"), row.get("n", 1))
    store.end(after, "evaluate", {})


def _held_out_file(crew: Crew) -> str:
    """The held-out prompts as a file of writing prompts."""
    path = crew.ctx.folder / HELD_OUT
    rows = [
        {"id": f"h{number:04}", "prompt": text, "language": language}
        for number, (language, text) in enumerate(held_out_prompts(crew.work))
    ]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)
