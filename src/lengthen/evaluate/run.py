"""The `evaluate` stage: samples, answers, scores with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lengthen.common.errors import LengthenError, nearest
from lengthen.common.files import write_atomic
from lengthen.common.manifest import StageContext, StageResult
from lengthen.evaluate.haystack import REPEATS
from lengthen.evaluate.judges import Judges, endpoint_options
from lengthen.evaluate.measures import measured, prepare
from lengthen.evaluate.ngrams import FOLDER, place_ngrams
from lengthen.evaluate.predict import Predictions, ask, costs
from lengthen.evaluate.prompts import Prompts
from lengthen.evaluate.samples import Sample, SampleKey, cached_samples, place
from lengthen.evaluate.suites import Job, Measure, Row, Suite, find
from lengthen.evaluate.tables import cell_row, write_tables
from lengthen.evaluate.verdicts import UNREADABLE
from lengthen.generate import Engine, is_endpoint, open_engine
from lengthen.models import load_tokenizer, model_facts, model_title
from lengthen.recipe.base import ModelFacts, Settings, size_text
from lengthen.recipe.rope import Extension, RopeSettings, extend
from lengthen.recipe.stages.evaluate import EvaluateStage, SuiteSettings, samples_at

if TYPE_CHECKING:
    from pathlib import Path

FIRST_PROMPTS = "first_prompts"


@dataclass
class Cell:
    """One task at one length, with its samples."""

    job: Job
    suite: Suite
    task: str
    length: int
    samples: list[Sample]


@dataclass
class Plan:
    """All that will be asked and measured. window: positions of the model, native: those that it was first trained for
    (0: not known). Of a model behind an endpoint both stand in the config beside its tokenizer, where there is one."""

    arm: str
    title: str
    prompts: Prompts
    extension: Extension
    window: int
    native: int
    cells: list[Cell] = field(default_factory=list)
    measures: list[tuple[Job, Measure]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    judges: Judges = field(default_factory=Judges)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def evaluate(settings: EvaluateStage, ctx: StageContext) -> StageResult:
    """Run an evaluation, or go on with one that was interrupted: no sample is asked twice, none is lost.

    Writes predictions.jsonl (as answers come), samples/, first_prompts/, scores.json, cells.csv.

    Raises:
        LengthenError: an unknown suite or task, a length beyond the window where that is refused, no sample at all.
    """
    plan = make_plan(settings, ctx)
    kept = Predictions.open(ctx.folder)
    kept.settle([sample for cell in plan.cells for sample in cell.samples])
    open_cells = [cell for cell in plan.cells if kept.open_samples(cell.samples)]
    rows: list[Row] = []
    engine = _Opened(settings, plan)
    try:
        if open_cells:
            _ask_all(plan, kept, engine, ctx)
        for cell in plan.cells:
            rows += _rows(cell, plan, kept)
        for job, measure in plan.measures:
            rows += [{"arm": plan.arm, **row} for row in measured(job, measure, engine.get, plan.notes)]
    finally:
        engine.close()
        plan.judges.close()
    if not rows:
        raise LengthenError(
            "The evaluation has no result.",
            why="\n".join(plan.notes) or "no suite made a sample",
            fix="see the reasons above; scores need at least one length that can be made and run",
        )
    samples = [cell.samples for cell in plan.cells]
    write_tables(ctx.folder, plan.arm, plan.title, settings, rows, plan.notes, samples, kept, plan.native)
    return _result(plan, kept, rows)


# ---------------------------------------------------------------------------------------------------- planning
def make_plan(settings: EvaluateStage, ctx: StageContext) -> Plan:
    """Resolve suites, model facts and all samples; nothing is asked and no model is loaded."""
    chosen = [(choice, *find(choice)) for choice in settings.suites]
    tokenizer = load_tokenizer(_tokenizer_name(settings))
    prompts = Prompts(tokenizer, settings.template, settings.template_options)
    lengths = [
        n for choice, found, _ in chosen if getattr(found, "sized", True) for n in choice.lengths or settings.lengths
    ]
    extension, window, native = _positions(settings, max(lengths, default=0))
    title = model_title(settings.model.partition("#")[2] or settings.model)
    plan = Plan(settings.arm or title, title, prompts, extension, window, native)
    _check_window(settings, plan, sorted(set(lengths)))
    jobs = [
        Job(settings, choice, prompts, _options(choice, found), found.tasks, ctx, extension, plan.judges)
        for choice, found, _ in chosen
    ]
    plan.measures = [(job, found) for job, (_, found, _) in zip(jobs, chosen) if isinstance(found, Measure)]
    for job, measure in plan.measures:
        prepare(job, measure)
    for job, (_, found, tasks) in zip(jobs, chosen):
        if isinstance(found, Suite):
            _add_cells(plan, job, found, tasks)
    return plan


def _tokenizer_name(settings: EvaluateStage) -> str:
    if not is_endpoint(settings.model):
        return settings.tokenizer or settings.model
    if settings.rope is not None:
        raise LengthenError(
            "rope: an endpoint's positions cannot be changed from here.", fix="drop it, or run a folder"
        )
    if settings.tokenizer is None:
        raise LengthenError(
            "tokenizer: an endpoint needs it.",
            why="prompts are made to an exact length in the model's own tokens",
            fix="tokenizer: the model's folder or Hub name",
        )
    return settings.tokenizer


def _positions(settings: EvaluateStage, longest: int) -> tuple[Extension, int, int]:
    """The extension without training, the positions that the model then has, and those of its first training."""
    if is_endpoint(settings.model):
        facts = model_facts(_tokenizer_name(settings))
        return Extension(None, None), _present(facts), facts.window
    facts = model_facts(settings.model)
    rope = settings.rope or RopeSettings(type="none")
    extension = Extension(None, None)
    if rope.type != "none":
        extension = extend(facts, longest if rope.factor is None else None, rope)
    return extension, extension.window or _present(facts), facts.window


def _present(facts: ModelFacts) -> int:
    return int(facts.config.get("max_position_embeddings") or 0)


def _check_window(settings: EvaluateStage, plan: Plan, lengths: Sequence[int]) -> None:
    if not plan.window and lengths:
        plan.note("the model's window is not known (no max_position_embeddings in its config): lengths are not checked")
    beyond = [n for n in lengths if plan.window and n > plan.window]
    if not beyond:
        return
    text = f"{', '.join(map(size_text, beyond))}: beyond the model's window of {size_text(plan.window)} tokens"
    if is_endpoint(settings.model):
        text += f" (by the config beside the tokenizer, {settings.tokenizer})"
    if settings.beyond_window == "refuse":
        raise LengthenError(
            f"lengths {text}.",
            why="beyond_window is refuse",
            fix="drop these lengths, extend the positions (rope), or set beyond_window: warn",
        )
    plan.notes.append(f"{text}; measured all the same")


def _options(choice: SuiteSettings, found: Suite | Measure) -> Settings:
    try:
        return found.options.model_validate(choice.options)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                lines.append(
                    f"suites.{found.name}.options.{key}: no such option. {nearest(key, found.options.model_fields)}"
                )
            else:
                lines.append(f"suites.{found.name}.options.{key}: {item['msg'].removeprefix('Value error, ')}")
        raise LengthenError("\n".join(lines)) from None


def _add_cells(plan: Plan, job: Job, found: Suite, tasks: Sequence[str]) -> None:
    wanted = job.choice.samples if job.choice.samples is not None else job.settings.samples
    for length in sorted(set(job.lengths)) if found.sized else [0]:
        for task in tasks:
            count = samples_at(wanted, length) if found.sized or isinstance(wanted, int) else max(wanted.values())
            tokenizer, template = plan.prompts.identity
            key = SampleKey(
                found.name, task, found.version, length, job.seed, tokenizer, template,
                {**found.parameters(job, task), "options": job.options.model_dump(mode="json")},
            )  # fmt: skip
            try:
                samples, path = cached_samples(key, count, partial(found.make, job, task, length))
            except LengthenError as error:
                if type(error) is not LengthenError and type(error).__name__ != "TooShort":
                    raise
                if not found.sized:
                    raise
                plan.notes.append(f"{found.name} {task} at {size_text(length)} could not be made: {error.what}")
                continue
            place(path, job.ctx.folder / "samples")
            if job.settings.ngrams:
                place_ngrams(samples, path, job.ctx.folder / FOLDER)
            _check_lengths(plan, found, samples)
            for note in found.notes(job, task, length, samples):
                plan.note(note)
            plan.cells.append(Cell(job, found, task, length, samples))
            _show_first(plan, samples, job.ctx.folder / FIRST_PROMPTS)


def _check_lengths(plan: Plan, found: Suite, samples: Sequence[Sample]) -> None:
    for sample in samples:
        if found.sized and not found.fixed and sample.tokens + sample.new_tokens > sample.length:
            raise LengthenError(
                f"Sample {sample.id} takes {sample.tokens + sample.new_tokens:,} tokens, more than its "
                f"{sample.length:,}.",
                why="nothing is cut in silence",
                fix="report this: a suite must make samples that fit",
            )
    if any(sample.meta.get("haystack_repeats") for sample in samples):
        plan.note(REPEATS.format(suite=found.name, length=size_text(samples[0].length)))


def _show_first(plan: Plan, samples: Sequence[Sample], folder: Path) -> None:
    """The first prompt of each task, as the model reads it."""
    if not samples or any(folder.glob(f"{samples[0].suite}-{samples[0].task}.txt")):
        return
    sample = samples[0]
    frame = plan.prompts.frame
    write_atomic(folder / f"{sample.suite}-{sample.task}.txt", frame.text(sample.user, sample.prefix))


# ---------------------------------------------------------------------------------------------------- asking
class _Opened:
    """The engine, opened when it is first needed."""

    def __init__(self, settings: EvaluateStage, plan: Plan) -> None:
        self.settings, self.plan = settings, plan
        self._engine: Engine | None = None

    def get(self) -> Engine:
        if self._engine is None:
            s = self.settings
            self._engine = open_engine(
                s.model,
                dtype=s.dtype,
                batch_size=s.batch_size,
                rope=self.plan.extension.parameters,
                window=self.plan.extension.window,
                tokenizer=s.tokenizer,
                template_options=s.template_options,
                endpoint=endpoint_options(s) if is_endpoint(s.model) else None,
            )
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


def _ask_all(plan: Plan, kept: Predictions, opened: _Opened, ctx: StageContext) -> None:
    """Cell by cell, short lengths first within a suite; a length that does not fit ends, and all beyond it."""
    samples = [sample for cell in plan.cells for sample in cell.samples]
    weights = costs(samples)
    total, missing = sum(weights.values()), {s.id for s in kept.open_samples(samples)}
    done = total - sum(weights[i] for i in missing)
    impossible: int | None = None
    with ctx.progress("samples", total, "K tokens of work", done) as bar:
        engine = opened.get()
        for cell in plan.cells:
            if not kept.open_samples(cell.samples):
                continue
            if impossible is not None and cell.length >= impossible > 0:
                continue
            now = partial(_note, cell, len(samples), kept)
            ended = ask(engine, plan.prompts, cell.suite, cell.samples, kept, bar, weights, now)
            if ended.out_of_memory is not None:
                impossible = min(cell.length, impossible or cell.length)
                plan.notes.append(
                    f"{ended.out_of_memory}: {size_text(cell.length) if cell.length else cell.task} and longer ended"
                )


def _note(cell: Cell, total: int, kept: Predictions) -> str:
    return f"{cell.task} {size_text(cell.length) if cell.length else ''}, {len(kept.by_id)}/{total} answers"


def _rows(cell: Cell, plan: Plan, kept: Predictions) -> Iterator[Row]:
    scored = kept.scored(cell.suite, cell.samples)
    errors = [kept.errors[s.id] for s in cell.samples if s.id in kept.errors and s.id not in kept.by_id]
    if errors:
        plan.notes.append(
            f"{cell.suite.name} {cell.task} {size_text(cell.length) if cell.length else ''}: {len(errors)} of "
            f"{len(cell.samples)} samples have no answer ({errors[0].get('error')}); run again to ask them"
        )
    if not scored:
        return
    row = {"arm": plan.arm, **cell_row(cell.suite.name, cell.task, cell.length, scored, len(errors))}
    yield row
    if cell.suite.summary is None:
        return
    where = f"{cell.suite.name} {cell.task} {size_text(cell.length) if cell.length else ''}".rstrip()
    try:
        further = cell.suite.summary(cell.job, scored)
    except LengthenError as error:
        plan.notes.append(f"{where}: further measures could not be made: {error.what}")
        return
    for more in further:
        if more["task"].endswith(f":{UNREADABLE}") and more["value"]:
            plan.notes.append(
                f"{where}: {more['value']} of {more['n']} texts have no readable judgement and are left out of the "
                "judged means"
            )
        yield {"arm": plan.arm, "suite": cell.suite.name, "task": cell.task, "length": cell.length, **more}


def _result(plan: Plan, kept: Predictions, rows: Sequence[Row]) -> StageResult:
    answers = [kept.by_id[s.id] for c in plan.cells for s in c.samples if s.id in kept.by_id]
    figures: dict[str, Any] = {}
    for row in rows:
        if row.get("score") is not None:
            place_ = f" {size_text(row['length'])}" if row["length"] else ""
            figures[f"{row['suite']} {row['task']}{place_}"] = round(row["score"], 4)
    counts: dict[str, float] = {
        "samples": len(answers),
        "errors": len(kept.errors.keys() - kept.by_id.keys()),
        "empty_answers": sum(not a["output"].strip() for a in answers),
        "cut_answers": sum(a["finish_reason"] == "length" for a in answers),
        "prompt_tokens": sum(a["prompt_tokens"] for a in answers),
        "new_tokens": sum(a["new_tokens"] for a in answers),
    }
    derived = {d.key: {"value": d.value, "reason": d.reason} for d in plan.extension.derived}
    derived["template"] = {"value": plan.prompts.template, "reason": "as set"}
    return StageResult(counts=counts, figures=figures, derived=derived, notes=list(plan.notes))
