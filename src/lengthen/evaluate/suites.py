"""Suites by name, and what one must bring.

A suite that asks questions is a `Suite`: a function that makes samples and a function that scores an answer.

    def make(job: Job, task: str, length: int, contexts: range) -> Iterator[Sample]: ...
    def score(sample: Sample, output: str) -> float: ...                      # 0..1, of one answer
    SUITE = Suite("vowels", tasks={"count": 32}, make=make, score=score)      # task -> room for its answer in tokens

* `make` yields the samples of the given contexts in order. Sample ids are `suite/task/length/context[/question]` and
  contexts `suite/task/length/<index>` (see `cell_context`). All of a context's draws come from
  (job.seed, suite, task, length, index) alone, never from the arm, the stage or the number of samples.
* Length: `job.prompts.count(user, prefix) + new_tokens` is at most `length`, and at least 98% of it or less than one
  unit short; otherwise raise `LengthenError` (its message stands in the notes and the cell stays empty).
* `job.new_tokens(task)` is the room for the answer; `job.options` are the suite's options, an object of
  `Suite.options`. `parameters(job, task)` names everything else that the samples depend on (a haystack's hash, a
  file's hash): it goes into the key of the sample cache. Raise `version` when the same key would give other bytes.
* `summary(rows)`, optional, turns the scored answers of one cell into further rows of scores.json.
* `notes(job, task, length, samples)`, optional, says what a reader of a cell's score must know.

A suite that measures without asking (perplexity) is a `Measure`: `run(job, engine)` yields rows of scores.json, one at
a time; finished ones are kept in `measures.jsonl` and not measured again: `run` gets the keys that are done already.
`parts(job)` are jobs that fail by themselves; `check(job)` refuses at once what can never be measured; `texts(job)` are
the texts that training data must not hold.

`SUITES` names the module of each; it is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError, nearest
from lengthen.common.manifest import StageContext
from lengthen.evaluate.judges import Judges
from lengthen.evaluate.prompts import Prompts
from lengthen.evaluate.samples import Sample
from lengthen.generate.engine import Engine
from lengthen.recipe.base import Settings
from lengthen.recipe.rope import Extension
from lengthen.recipe.stages.evaluate import EvaluateStage, SuiteSettings


class NoOptions(Settings):
    """A suite without options of its own."""


@dataclass(frozen=True)
class Job:
    """A suite's part of an evaluation.

    settings: the stage's. choice: this suite's. options: its options, checked. seed: `samples_seed`.
    ctx: for the folder and for progress (measures only; samples never depend on it).
    extension: the model's positions, as the whole stage has them. judges: engines that are shared by all suites.
    """

    settings: EvaluateStage
    choice: SuiteSettings
    prompts: Prompts
    options: Any
    rooms: Mapping[str, int]
    ctx: StageContext
    extension: Extension = field(default_factory=lambda: Extension(None, None))
    judges: Judges = field(default_factory=Judges, compare=False)

    @property
    def seed(self) -> int:
        return self.settings.samples_seed

    @property
    def lengths(self) -> list[int]:
        return list(self.choice.lengths or self.settings.lengths)

    def new_tokens(self, task: str) -> int:
        """Room for a task's answer: the suite's setting, the stage's, or the task's own."""
        return self.choice.max_new_tokens or self.settings.max_new_tokens or self.rooms[task]


@dataclass(frozen=True)
class Scored:
    """One answered sample."""

    sample: Sample
    output: str
    score: float
    finish_reason: str


Row = dict[str, Any]


def no_parameters(job: Job, task: str) -> dict[str, Any]:
    return {}


def no_notes(job: Job, task: str, length: int, samples: Sequence[Sample]) -> list[str]:
    return []


@dataclass(frozen=True)
class Suite:
    """A suite that asks questions. See the module's text.

    tasks: name -> room for the answer in tokens. default: tasks that run when none are named (None: all).
    sized: False for tasks without a nominal length; they run once, at length 0.
    fixed: True where a benchmark fixes the number of items: its prompts may be longer or shorter than their length.
    """

    name: str
    tasks: Mapping[str, int]
    make: Callable[[Job, str, int, range], Iterator[Sample]]
    score: Callable[[Sample, str], float]
    options: type[Settings] = NoOptions
    default: tuple[str, ...] | None = None
    parameters: Callable[[Job, str], dict[str, Any]] = no_parameters
    summary: Callable[[Job, Sequence[Scored]], list[Row]] | None = None
    notes: Callable[[Job, str, int, Sequence[Sample]], list[str]] = no_notes
    version: int = 1
    sized: bool = True
    fixed: bool = False


def one_part(job: Job) -> list[tuple[str, Job]]:
    return [("", job)]


def no_check(job: Job) -> None:
    pass


def no_texts(job: Job) -> Iterator[str]:
    return iter(())


@dataclass(frozen=True)
class Measure:
    """A suite that measures without asking.

    run: (job, engine, keys that are done) -> (key, row) of each new measurement.
    counted: what stands in place of `samples`, which a measure has not.
    parts: (name, job of this part alone); one that fails leaves the others alone.
    check: refuses what can never be measured, before anything is asked.
    texts: what is read, for the n-gram files.
    """

    name: str
    run: Callable[[Job, Engine, frozenset[str]], Iterator[tuple[str, Row]]]
    counted: str = "leave it out"
    tasks: Mapping[str, int] = field(default_factory=dict)
    options: type[Settings] = NoOptions
    default: tuple[str, ...] | None = None
    parts: Callable[[Job], list[tuple[str, Job]]] = one_part
    check: Callable[[Job], None] = no_check
    texts: Callable[[Job], Iterator[str]] = no_texts


SUITES: dict[str, str] = {
    "needle": "lengthen.evaluate.needle:SUITE",
    "ruler": "lengthen.evaluate.ruler.suite:SUITE",
    "helmet": "lengthen.evaluate.helmet.suite:SUITE",
    "own": "lengthen.evaluate.own.suite:SUITE",
    "longform": "lengthen.evaluate.longform.suite:SUITE",
    "perplexity": "lengthen.evaluate.positions:SUITE",
    "short": "lengthen.evaluate.short.measure:SUITE",
}


def suite(name: str) -> Suite | Measure:
    """A suite by name."""
    if name not in SUITES:
        raise LengthenError(f"There is no suite '{name}'.", fix=nearest(name, SUITES))
    module, attribute = SUITES[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def find(choice: SuiteSettings) -> tuple[Suite | Measure, tuple[str, ...]]:
    """The suite that a choice names, and its tasks. A choice may name a single task of any suite.

    Raises:
        LengthenError: no such suite or task, with the nearest name.
    """
    if choice.suite in SUITES:
        found = suite(choice.suite)
        tasks = tuple(choice.tasks) if choice.tasks is not None else found.default or tuple(found.tasks)
        for task in tasks:
            if task not in found.tasks:
                raise LengthenError(f"The suite '{found.name}' has no task '{task}'.", fix=nearest(task, found.tasks))
        return found, tasks
    for name in SUITES:
        found = suite(name)
        if choice.suite in found.tasks and choice.tasks is None:
            return found, (choice.suite,)
    names = {*SUITES, *(task for name in SUITES for task in suite(name).tasks)}
    raise LengthenError(f"There is no suite or task '{choice.suite}'.", fix=nearest(choice.suite, names))


def cell_context(suite: str, task: str, length: int, index: int) -> str:
    """The name of a context: the unit over which intervals are drawn."""
    return f"{suite}/{task}/{length}/{index}"


def samples_folder(ctx: StageContext) -> Path:
    return ctx.folder / "samples"
