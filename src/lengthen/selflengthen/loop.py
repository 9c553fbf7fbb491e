"""The stage `self-lengthen`: macro-iterations of writing and training, then the final data and the final model.

Reads like the algorithm (arXiv 2410.23933): instruct, answer and extend, select, train both roles, again; then fresh
texts of the last Generator with length demands, and one training on them.
"""

from __future__ import annotations

import os
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lengthen.common.dist import world_size
from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext, StageResult
from lengthen.models import load_tokenizer, model_facts, resolve_model
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen import locks
from lengthen.selflengthen.baselines import back_translation, plan_and_write
from lengthen.selflengthen.evaluation import measured, measured_at_the_end
from lengthen.selflengthen.export import export
from lengthen.selflengthen.phases import (
    Crew,
    Instructions,
    asks_for_a_length,
    demanded,
    demands,
    final_texts,
    instruct,
    woven,
    write,
)
from lengthen.selflengthen.results import enough, result
from lengthen.selflengthen.serve import Serving, role_folder, run_digits
from lengthen.selflengthen.store import Outcome, Store
from lengthen.selflengthen.training import chat_row, fitting, role_rows, train_on, with_replay
from lengthen.selflengthen.wording import wordings
from lengthen.selflengthen.work import Work, template_tokens, tokens_are_bytes

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
    serving = Serving(settings, ctx.folder, run_digits(store))
    try:
        crew = Crew(_work(settings, store, ctx.seed), serving, ctx)
        if settings.method == "self-lengthen":
            for iteration in range(1, settings.iterations + 1):
                macro_iteration(crew, iteration)
            final_rows(crew, settings.iterations + 1)
        else:
            measured(crew, 0)
            (plan_and_write if settings.method == "plan-and-write" else back_translation)(crew)
        export(store, ctx.folder)
        if settings.final.train:
            train_final(crew)
        return result(crew)
    finally:
        serving.stop()
        store.close()
        lock.release()


def macro_iteration(crew: Crew, iteration: int) -> None:
    """One macro-iteration: measure what the Generator can do now, write, train both roles."""
    work, serving = crew.work, crew.serving
    measured(crew, iteration - 1)
    instructions = instruct(crew, iteration, work.settings.instruct.count)
    write(crew, iteration, instructions)
    if work.store.phase(iteration, "train") is None:
        rows = role_rows(work, iteration, instructions)
        for role in ROLES:
            enough(work, iteration, rows[role])
        work.store.begin(iteration, "train")
        serving.stop()
        for role in ROLES:
            before = role_folder(crew.ctx.folder, iteration - 1, role) if iteration > 1 else None
            start = str(before / "model") if before is not None else str(resolve_model(work.settings.model))
            mixed = with_replay(rows[role], work.settings.training, crew.ctx.seed_for("replay", iteration, role))
            train_on(mixed, start, work.settings.training, crew.ctx, role_folder(crew.ctx.folder, iteration, role))
        work.store.end(iteration, "train", {role: len(rows[role]) for role in ROLES})


def final_rows(crew: Crew, iteration: int) -> None:
    """Fresh texts of the last Generator and the kept ones of all macro-iterations, with their length demands."""
    work, settings = crew.work, crew.work.settings.final
    measured(crew, iteration - 1)
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
    work.store.set_rows("final", fitting(work, iteration, "final", rows))


def _pooled(outcomes: list[Outcome], instructions: Instructions) -> list[tuple[Outcome, str, str]]:
    return [(o, *instructions[o.item.split("~")[0]]) for o in outcomes if o.text is not None]


def _final_row(work: Work, outcome: Outcome, language: str, instruction: str) -> dict[str, Any] | None:
    """A row of the final data. Where a demand was wanted and no band holds the text (no_band), the bare instruction or
    None, by constraints.without_band; None also for an instruction with a length of its own (has_length)."""
    name = f"{outcome.iteration}-{outcome.role}-{outcome.item}-{outcome.sample}"
    meta: dict[str, Any] = {"language": language, "words": outcome.words, "iteration": outcome.iteration}
    if demanded(work, outcome):
        found = woven(work, outcome)
        if found is None:
            return None
        if found.text is not None:
            meta |= {key: found.info[key] for key in ("kind", "low", "high", "demand", "how")}
            meta["instruction"], instruction = instruction, found.text
        elif found.info["rule"] != "no_band" or work.settings.constraints.without_band == "drop":
            return None
    elif asks_for_a_length(work, outcome, language, instruction):
        return None
    return chat_row(name, instruction, outcome.text or "", "self-lengthen", meta, work.settings.respond.system)


def train_final(crew: Crew) -> Path:
    """The final SFT on the exported rows. Returns the model folder."""
    work, ctx = crew.work, crew.ctx
    target = ctx.folder / "model"
    last = work.settings.trainings
    if work.store.phase(last + 1, "train") is None:
        rows = list(work.store.rows("final"))
        enough(work, last + 1, rows)
        work.store.begin(last + 1, "train")
        crew.serving.stop()
        start = str(resolve_model(work.settings.model))
        if work.settings.final.start == "generator" and last:
            start = str(role_folder(ctx.folder, last, "generator") / "model")
        folder = ctx.folder / "iterations" / "final"
        if not (target / "config.json").exists():
            mixed = with_replay(rows, work.settings.training, ctx.seed_for("replay", "final"))
            train_on(mixed, start, work.settings.training, ctx, folder)
            os.replace(folder / "model", target)
        work.store.end(last + 1, "train", {"final": len(rows)})
    measured_at_the_end(crew, last + 1)
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
    locks.check(store, settings, seed)
    store.reads = partial(locks.reads, settings, seed)

    @lru_cache(maxsize=2048)  # a text is counted when it is asked about, extended and chosen
    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    around = template_tokens(tokenizer, settings.template_options)
    return Work(settings, store, words, seed, window, count, tokens_are_bytes(tokenizer), around)
