"""Reads what stages left in their folders. Nothing is computed here, and nothing outside the folders is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, read_json_lines
from lengthen.common.manifest import MANIFEST
from lengthen.recipe.stages.report import ReportStage

TITLES = {"as-is": "As is", "yarn-untrained": "YaRN, untrained"}


@dataclass(frozen=True)
class StageRecord:
    """A stage folder with its manifest ({} when the folder was not written by the runner)."""

    name: str
    kind: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def counts(self) -> dict[str, float]:
        return self.manifest.get("counts") or {}

    @property
    def drops(self) -> dict[str, dict[str, int]]:
        return self.manifest.get("drops") or {}

    @property
    def settings(self) -> dict[str, Any]:
        return self.manifest.get("settings") or {}


@dataclass(frozen=True)
class Arm:
    """One measured model.

    scores: rows of scores.json with task, length, score in 0..1, low, high, n (those with a score).
    values: rows of scores.json that are no scores (value, unit).
    answers: objects of predictions.jsonl, one a sample.
    asked_how: template, seed of the samples and the like, as scores.json tells.
    native: positions that the model was first trained for (0: not known).
    """

    label: str
    model: str
    stage: StageRecord
    scores: tuple[dict[str, Any], ...]
    values: tuple[dict[str, Any], ...]
    answers: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]
    asked_how: dict[str, Any] = field(default_factory=dict)
    native: int = 0

    def sample_files(self, suite: str, task: str, length: int) -> set[str]:
        """Names of the sample files of a cell; they end in a hash of all that decides the samples."""
        return {path.name for path in (self.stage.folder / "samples").glob(f"{suite}-{task}-{length}-*.jsonl")}

    def asked(self, answer: dict[str, Any]) -> str:
        """The user's message of an answer's sample; empty when the sample files are gone."""
        place = (str(answer.get("suite")), str(answer.get("task")), int(answer.get("length") or 0))
        for name in sorted(self.sample_files(*place)):
            for sample in read_json_lines(self.stage.folder / "samples" / name):
                if sample.get("id") == answer["id"]:
                    return str(sample.get("user", ""))
        return ""

    @property
    def title(self) -> str:
        return TITLES.get(self.label, self.label)


@dataclass(frozen=True)
class Training:
    """One train stage: its optimizer steps as logged."""

    stage: StageRecord
    steps: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class DataSet:
    """One data stage: rows/dataset.json and data_report.json where they are."""

    stage: StageRecord
    dataset: dict[str, Any]
    report: dict[str, Any]

    def tables(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Parts of data_report.json with one record a source or a cell of the mix, with their plain values."""
        found = []
        for name in ("sources", "mix"):
            part = self.report.get(name)
            if isinstance(part, dict) and part and all(isinstance(row, dict) for row in part.values()):
                part = [{"name": key, **row} for key, row in part.items()]
            if isinstance(part, list) and part and all(isinstance(row, dict) for row in part):
                found.append((name, [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in part]))
        return found


@dataclass(frozen=True)
class Measure:
    """One quantity on the held-out prompts after a macro-iteration (0 = the starting model), with its 95% interval."""

    iteration: int
    name: str
    value: float
    low: float
    high: float
    unit: str
    n: int


@dataclass(frozen=True)
class Rejection:
    """How often a rule refused something of a role in one macro-iteration, and what that looked like.

    share: of all that was judged of the role. examples: (why, beginning of the text, its end).
    """

    iteration: int
    role: str
    rule: str
    about: str
    items: int
    share: float
    examples: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Growth:
    """One self-lengthen stage, from its state.sqlite."""

    stage: StageRecord
    measures: tuple[Measure, ...]
    rejections: tuple[Rejection, ...]


@dataclass(frozen=True)
class Evidence:
    """All that a report is made of."""

    title: str
    recipe: str
    arms: tuple[Arm, ...] = ()
    trainings: tuple[Training, ...] = ()
    data: tuple[DataSet, ...] = ()
    growths: tuple[Growth, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    resolved: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def final(self) -> Arm | None:
        """The arm that the report is about: the last one."""
        return self.arms[-1] if self.arms else None


def read_stage(folder: str | Path) -> StageRecord:
    """A stage's record; the folder's name stands in where no manifest was written yet."""
    path = Path(folder)
    if not path.is_dir():
        raise LengthenError(f"{path} is no stage folder.", fix="name a stage that has run: @name, or its folder")
    manifest = read_json(path / MANIFEST) if (path / MANIFEST).exists() else {}
    name = manifest.get("stage") or path.name.split("-", 1)[-1]
    return StageRecord(str(name), str(manifest.get("kind", "")), path, manifest)


def read_arm(label: str, folder: str | Path) -> Arm:
    """An evaluate stage: scores.json and predictions.jsonl."""
    stage = read_stage(folder)
    file = stage.folder / "scores.json"
    if not file.exists():
        raise LengthenError(
            f"{stage.folder} has no scores.json.",
            why="an evaluate stage writes it when it has finished",
            fix="run the evaluation to its end first",
        )
    found = read_json(file)
    rows = found.get("rows", [])
    return Arm(
        label=label,
        model=str(found.get("model", "")),
        stage=stage,
        scores=tuple(row for row in rows if row.get("score") is not None and row.get("length") is not None),
        values=tuple(row for row in rows if row.get("value") is not None),
        # A sample that had an error, or whose question has changed, was asked again: its last line counts.
        answers=tuple({row["id"]: row for row in read_json_lines(stage.folder / "predictions.jsonl")}.values()),
        notes=tuple(str(note) for note in found.get("notes", [])),
        asked_how=found.get("asked") or {},
        native=int(found.get("native") or 0),
    )


def read_training(folder: str | Path) -> Training:
    stage = read_stage(folder)
    return Training(stage, tuple(read_json_lines(stage.folder / "metrics.jsonl")))


def read_data(folder: str | Path) -> DataSet:
    stage = read_stage(folder)
    return DataSet(
        stage,
        _json_or_empty(stage.folder / "rows" / "dataset.json"),
        _json_or_empty(stage.folder / "data_report.json"),
    )


def read_growth(folder: str | Path) -> Growth:
    """A self-lengthen stage: measures, and rejections by role and rule with examples, as in its rejections.json."""
    from lengthen.selflengthen.store import open_read_only
    from lengthen.selflengthen.summary import rejections

    stage = read_stage(folder)
    state = stage.folder / "state.sqlite"
    with open_read_only(state) as db:
        measures = db.execute(
            "SELECT iteration, name, value, low, high, unit, n FROM measures ORDER BY 1, 2"
        ).fetchall()
    rules = sorted(rejections(state)["rules"], key=lambda one: one["iteration"])
    return Growth(stage, tuple(Measure(*row) for row in measures), tuple(map(_rejection, rules)))


def _rejection(row: dict[str, Any]) -> Rejection:
    return Rejection(
        **{key: row[key] for key in ("iteration", "role", "rule", "about", "share")},
        items=row["count"],
        examples=tuple((one["detail"] or "", one["beginning"], one["end"]) for one in row["examples"]),
    )


def collect(settings: ReportStage, folder: Path, recipe: str) -> Evidence:
    """Everything that a report stage refers to, and the finished stages of the run around it.

    Args:
        settings: with references already turned into folders.
        folder: the report stage's own folder, `<run>/stages/<NN-name>`.
        recipe: the recipe's name.
    """
    run = folder.parent.parent
    resolved = run / "resolved.yaml"
    return Evidence(
        title=settings.title or recipe or "Report",
        recipe=recipe,
        arms=_one_native([read_arm(one.label, one.run) for one in settings.evaluations]),
        trainings=tuple(read_training(one) for one in settings.train),
        data=tuple(read_data(one) for one in settings.data),
        growths=tuple(read_growth(one) for one in settings.self_lengthen),
        stages=tuple(stage for stage in run_stages(run) if stage.folder != folder),
        resolved=resolved.read_text() if resolved.exists() else "",
    )


def _one_native(arms: Sequence[Arm]) -> tuple[Arm, ...]:
    """Arms that are judged from one base: a trained arm with a raised RoPE base names its new window as native, and
    measured against itself there it would pass by definition."""
    same = len({arm.native for arm in arms}) == 1
    return tuple(arms) if same else tuple(replace(arm, native=0) for arm in arms)


def run_stages(run: Path) -> list[StageRecord]:
    """Finished stages of a run folder in the recipe's order; results put aside (`NAME.old-N`) do not count."""
    found = [read_stage(path.parent) for path in sorted((run / "stages").glob(f"*/{MANIFEST}"))]
    done = [
        stage
        for stage in found
        if stage.manifest.get("status", "done") == "done" and stage.folder.name == stage.manifest.get("stage")
    ]
    path = run / "resolved.yaml"
    recipe = yaml.safe_load(path.read_text()) if path.exists() else {}
    place = {one.get("name"): number for number, one in enumerate(recipe.get("stages", []))}
    return sorted(done, key=lambda s: (place.get(s.name, len(place)), str(s.manifest.get("started", ""))))


def collect_runs(folders: Sequence[Path], title: str) -> Evidence:
    """Evaluations, trainings and data of finished runs side by side (`lengthen report RUN_A RUN_B`).

    Each folder is a run, or one evaluate stage. Arms keep the names that their recipes give them (`as-is`) where every
    run has one evaluation and no two names are equal; else they are named after the run, with the stage where it has
    several. Stages of several runs are named `<arm or run>: <stage>`.
    """
    runs: list[tuple[Path, list[StageRecord], list[StageRecord]]] = []
    for folder in folders:
        found = [read_stage(folder)] if (folder / "scores.json").exists() else run_stages(folder)
        measured = [stage for stage in found if (stage.folder / "scores.json").exists()]
        if not measured:
            raise LengthenError(
                f"{folder} holds no finished evaluation.",
                fix="give run folders (runs/NAME) whose evaluate stages are done, or such a stage's folder",
            )
        runs.append((folder, found, measured))
    names = _run_names(runs)
    arms: list[Arm] = []
    stages: list[StageRecord] = []
    for name, (_, found, measured) in zip(names, runs):
        labels = _labels(name, measured, many=len(runs) > 1)
        arms += [read_arm(label, stage.folder) for label, stage in zip(labels, measured)]
        stages += [replace(one, name=f"{name}: {one.name}") if len(runs) > 1 else one for one in found]
    resolved = "\n".join(f.read_text() for f in (folder / "resolved.yaml" for folder in folders) if f.exists())
    return Evidence(
        title=title,
        recipe="",
        arms=_one_native(_unique(arms)),
        trainings=tuple(replace(read_training(one.folder), stage=one) for one in stages if one.kind == "train"),
        data=tuple(replace(read_data(one.folder), stage=one) for one in stages if one.kind == "prepare"),
        growths=tuple(read_growth(stage.folder) for stage in stages if stage.kind == "self-lengthen"),
        stages=tuple(stages),
        resolved=resolved,
    )


def _run_names(runs: Sequence[tuple[Path, list[StageRecord], list[StageRecord]]]) -> list[str]:
    """One name a run: its only arm's where that tells all runs apart, else its folder's."""
    own = [_own_label(measured[0]) if len(measured) == 1 else "" for _, _, measured in runs]
    if all(own) and len(set(own)) == len(own):
        return own
    return [folder.resolve().name for folder, _, _ in runs]


def _labels(run: str, measured: Sequence[StageRecord], *, many: bool) -> list[str]:
    names = [_own_label(stage) or stage.name for stage in measured]
    if not many:
        return names
    return [run] if len(names) == 1 else [f"{run}: {name}" for name in names]


def _own_label(stage: StageRecord) -> str:
    return str(stage.settings.get("arm") or stage.settings.get("label") or "")


def _unique(arms: Iterable[Arm]) -> list[Arm]:
    """Two folders of the same name get numbers, so that no arm hides another."""
    seen: dict[str, int] = {}
    result = []
    for arm in arms:
        seen[arm.label] = seen.get(arm.label, 0) + 1
        result.append(arm if seen[arm.label] == 1 else replace(arm, label=f"{arm.label} ({seen[arm.label]})"))
    return result


def _json_or_empty(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
