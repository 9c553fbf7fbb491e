"""The stage `self-lengthen`: macro-iterations of writing and training, then the final data and the final model.

Reads like the algorithm (arXiv 2410.23933): instruct, answer and extend, select, train both roles, again; then fresh
texts of the last Generator with length demands, and one training on them.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lengthen.common.dist import world_size
from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, write_json
from lengthen.common.manifest import Drops, StageContext, StageResult
from lengthen.models import load_tokenizer, model_facts, resolve_model
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.baselines import back_translation, plan_and_write
from lengthen.selflengthen.export import export
from lengthen.selflengthen.measure import measure
from lengthen.selflengthen.phases import (
    Crew,
    Instructions,
    demanded,
    demands,
    final_texts,
    instruct,
    top_reasons,
    woven,
    write,
)
from lengthen.selflengthen.serve import Serving, role_folder
from lengthen.selflengthen.store import Outcome, Store
from lengthen.selflengthen.training import chat_row, fitting, role_rows, train_on, with_replay
from lengthen.selflengthen.wording import wordings
from lengthen.selflengthen.work import Work

STATE = "state.sqlite"
ROLES = ("generator", "extender")


def self_lengthen(settings: SelfLengthenStage, ctx: StageContext) -> StageResult:
    """Run the loop, or a baseline. Killed at any moment, the same call goes on without asking anything twice.

    Writes into `ctx.folder`: state.sqlite, iterations/ (rows, model and adapter of each training), chat.jsonl and
    chat.parquet (the final data), rejections.json, growth.json, and model/ where `final.train` is on.

    Raises:
        LengthenError: a model without chat template, no seeds, an endpoint that does not answer or does not serve the
            adapters, no survivor to train on; each with what to do.
    """
    if world_size() > 1:
        raise LengthenError(
            "The stage self-lengthen runs as one process.",
            why="it asks a model and starts its trainings itself",
            fix="run it without torchrun, and train on all GPUs by training.launch: [torchrun, --nproc-per-node, '8']",
        )
    ctx.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(ctx.folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise LengthenError(
            f"Another process is working in {ctx.folder}.", fix="wait for it, stop it, or choose another folder"
        ) from None
    store = Store(ctx.folder / STATE)
    serving = Serving(settings, ctx.folder)
    try:
        crew = Crew(_work(settings, store, ctx.seed), serving, ctx)
        if settings.method == "self-lengthen":
            for iteration in range(1, settings.iterations + 1):
                macro_iteration(crew, iteration)
            final_rows(crew, settings.iterations + 1)
        else:
            _evaluate(crew, 0, None)
            (plan_and_write if settings.method == "plan-and-write" else back_translation)(crew)
        export(store, ctx.folder)
        if settings.final.train:
            train_final(crew)
        return _result(crew)
    finally:
        serving.stop()
        store.close()
        lock.release()


def macro_iteration(crew: Crew, iteration: int) -> None:
    """One macro-iteration: measure what the Generator can do now, write, train both roles."""
    work, serving = crew.work, crew.serving
    _measured(crew, iteration - 1)
    instructions = instruct(crew, iteration, work.settings.instruct.count)
    write(crew, iteration, instructions)
    if work.store.begin(iteration, "train"):
        rows = role_rows(work, iteration, instructions)
        for role in ROLES:
            _enough(work, iteration, rows[role])
        serving.stop()
        for role in ROLES:
            before = role_folder(crew.ctx.folder, iteration - 1, role) if iteration > 1 else None
            start = str(before / "model") if before is not None else str(resolve_model(work.settings.model))
            mixed = with_replay(rows[role], work.settings.training, crew.ctx.seed_for("replay", iteration, role))
            train_on(mixed, start, work.settings.training, crew.ctx, role_folder(crew.ctx.folder, iteration, role))
        work.store.end(iteration, "train", {role: len(rows[role]) for role in ROLES})


def _measured(crew: Crew, after: int) -> None:
    """Held-out prompts and the `evaluate` stage, on the Generator as it is after so many trainings."""
    measure(crew, after)
    _evaluate(crew, after, role_folder(crew.ctx.folder, after, "generator") if after else None)


def final_rows(crew: Crew, iteration: int) -> None:
    """Fresh texts of the last Generator and the kept ones of all macro-iterations, with their length demands."""
    work, settings = crew.work, crew.work.settings.final
    _measured(crew, iteration - 1)
    pool: list[tuple[Outcome, str, str]] = []
    if "fresh" in settings.pool and settings.count:
        instructions = instruct(crew, iteration, settings.count)
        final_texts(crew, iteration, instructions)
        pool += _pooled(work.store.outcomes(iteration, "final"), instructions)
    if "extended" in settings.pool:
        for earlier in range(1, iteration):
            known = {item: (language, text) for _, item, language, text in work.store.instructions(earlier)}
            pool += _pooled(work.store.outcomes(earlier, "extension", kept=True), known)
    demands(crew, pool, iteration)
    rows = [row for entry in pool if (row := _final_row(work, *entry)) is not None]
    for row in fitting(work, iteration, "final", rows):
        work.store.add_row("final", row)


def _pooled(outcomes: list[Outcome], instructions: Instructions) -> list[tuple[Outcome, str, str]]:
    return [(o, *instructions[o.item.split("~")[0]]) for o in outcomes if o.text is not None]


def _final_row(work: Work, outcome: Outcome, language: str, instruction: str) -> dict[str, Any] | None:
    """A row of the final data; None when a demand was wanted and no band holds the text (counted as no_band)."""
    name = f"{outcome.iteration}-{outcome.role}-{outcome.item}-{outcome.sample}"
    meta: dict[str, Any] = {"language": language, "words": outcome.words, "iteration": outcome.iteration}
    if demanded(work, outcome):
        found = woven(work, outcome)
        if found is None or found.text is None:
            return None
        meta |= {key: found.info[key] for key in ("kind", "low", "high", "demand", "how")} | {
            "instruction": instruction
        }
        instruction = found.text
    return chat_row(name, instruction, outcome.text or "", "self-lengthen", meta)


def train_final(crew: Crew) -> Path:
    """The final SFT on the exported rows. Returns the model folder."""
    work, ctx = crew.work, crew.ctx
    target = ctx.folder / "model"
    last = work.settings.iterations
    if work.store.begin(last + 1, "train"):
        rows = list(work.store.rows("final"))
        _enough(work, last + 1, rows)
        crew.serving.stop()
        start = str(resolve_model(work.settings.model))
        if work.settings.final.start == "generator" and work.settings.method == "self-lengthen":
            start = str(role_folder(ctx.folder, last, "generator") / "model")
        folder = ctx.folder / "iterations" / "final"
        if not (target / "config.json").exists():
            mixed = with_replay(rows, work.settings.training, ctx.seed_for("replay", "final"))
            train_on(mixed, start, work.settings.training, ctx, folder)
            os.replace(folder / "model", target)
        work.store.end(last + 1, "train", {"final": len(rows)})
    if not crew.serving.flow:
        measure(crew, last + 1, "final")
    _evaluate(crew, last + 1, ctx.folder)
    return target


def _work(settings: SelfLengthenStage, store: Store, seed: int) -> Work:
    tokenizer = load_tokenizer(settings.model)
    if tokenizer.chat_template is None:
        raise LengthenError(
            f"The model {settings.model} has no chat template.",
            why="the loop speaks to the model in turns, so a base model cannot take part",
            fix="start from an instruct model, or train the base model on chat data first (a stage `train`)",
        )
    window = settings.window or model_facts(settings.model).window
    words = wordings(list(settings.languages), settings.prompts)
    _same_settings(settings, store, seed)

    @lru_cache(maxsize=2048)  # a text is counted when it is asked about, extended and chosen
    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    return Work(settings, store, words, seed, window, count)


def _same_settings(settings: SelfLengthenStage, store: Store, seed: int) -> None:
    """A state file belongs to one set of settings; where they are served may change between two calls."""
    plain = settings.model_dump(mode="json", exclude=settings.without_effect())
    before = store.meta("settings")
    if before is None:
        store.set_meta("settings", json.dumps({**plain, "seed": seed}))
        return
    old = json.loads(before)
    # Validated anew, so that a setting which this version adds counts with its default.
    begun = SelfLengthenStage.model_validate({k: v for k, v in old.items() if k != "seed"})
    old = {**begun.model_dump(mode="json", exclude=begun.without_effect()), "seed": old["seed"]}
    new = {**plain, "seed": seed}
    if old != new:
        key = next(k for k in sorted({*old, *new}) if old.get(k) != new.get(k))
        raise LengthenError(
            f"{store.path} was begun with other settings: {key} was {old.get(key)!r} and is now {new.get(key)!r}.",
            fix="set it back, or choose another folder",
        )


def _enough(work: Work, iteration: int, rows: list[dict[str, Any]]) -> None:
    if len(rows) < work.settings.training.least_rows:
        raise LengthenError(
            f"Macro-iteration {iteration} leaves {len(rows)} texts to train on; training.least_rows is "
            f"{work.settings.training.least_rows}.",
            why=f"refused, by rule: {top_reasons(work.store, iteration, 6)}",
            fix="raise instruct.count or the tries, lower extend.growth, or relax checks; "
            f"`lengthen inspect {work.store.path}` shows examples",
        )


def _evaluate(crew: Crew, after: int, folder: Path | None) -> None:
    """The `evaluate` stage on the model in `folder` (None: the starting model), where the recipe asks for it; its
    numbers become measures of this macro-iteration."""
    settings, store = crew.work.settings, crew.work.store
    if settings.evaluate is None or not store.begin(after, "evaluate"):
        return
    from lengthen.evaluate.run import evaluate

    crew.serving.stop()
    place = crew.ctx.folder / "iterations" / f"{after}-evaluate"
    place.mkdir(parents=True, exist_ok=True)
    stage = settings.evaluation(settings.model if folder is None else str(folder))
    evaluate(stage, replace(crew.ctx, folder=place, stage=f"{crew.ctx.stage}/{place.name}"))
    for row in read_json(place / "scores.json")["rows"]:
        value = row.get("score", row.get("value"))
        if value is None:
            continue
        name = f"{row['suite']}/{row['task']}" + (f" at {row['length']}" if row.get("length") else "")
        low, high = row.get("low", value), row.get("high", value)
        store.measure(after, name, value, low, high, row.get("unit", "score"), row.get("n", 1))
    store.end(after, "evaluate", {})


def _result(crew: Crew) -> StageResult:
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
    )  # fmt: skip
