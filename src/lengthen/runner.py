"""Runs a recipe's stages in order, skips what is done, in one run folder.

<run>/resolved.yaml            the recipe with every setting filled in
<run>/stages/<name>/           what each stage wrote, with its manifest.json
<run>/stages/<name>.old-<n>/   an earlier result of a stage whose settings or inputs have changed
<run>/report.html, model, metrics.jsonl     links to what people look for first
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from lengthen.common import dist, progress
from lengthen.common.errors import LengthenError, Refused, nearest
from lengthen.common.files import explain_disk, read_json, sha256_tree, write_atomic
from lengthen.common.manifest import (
    MANIFEST,
    StageContext,
    StageResult,
    commit,
    machine,
    outputs_of,
    versions,
    write_manifest,
)
from lengthen.common.memory import peak_memory_gib, reset_peak_memory
from lengthen.common.seeds import derive_seed
from lengthen.launch import Launch
from lengthen.recipe.base import StageSettings
from lengthen.recipe.inputs import missing_inputs, missing_lines
from lengthen.recipe.schema import Recipe
from lengthen.recipe.stages import KINDS, stage_function

State = Literal["done", "interrupted", "grown", "changed", "new"]
_LINKS = ("report.html", "model", "metrics.jsonl")


@dataclass(frozen=True)
class StagePlan:
    """What would happen with one stage.

    state: `done` (skipped), `interrupted` (goes on), `grown` (more of the same is asked for: it keeps what it has),
        `changed` (its settings or inputs differ: the old folder is kept aside), `new`.
    cost: rough share of the work, in units of its own.
    """

    name: str
    kind: str
    state: State
    why: str
    folder: Path
    cost: float


def plan_run(recipe: Recipe, run: Path, redo: Sequence[str] = ()) -> list[StagePlan]:
    """The stages with their state, without running anything; `redo` names those that shall run anew. A stage behind
    one that has to run shows as `new` or `changed`, since its inputs are not known before."""
    plans: list[StagePlan] = []
    open_stages: set[str] = set()
    for stage in recipe.stages:
        folder = run / "stages" / stage.name
        waits = [name for name in stage.references() if name in open_stages]
        manifest = _manifest(folder)
        if waits:
            state: State = "changed" if manifest else "new"
            why = f"waits for {', '.join(waits)}"
        else:
            state, why = _state(folder, manifest, *marks(stage, recipe, run))
        if stage.name in redo and manifest:
            state, why = "changed", "asked for anew"
        if state != "done":
            open_stages.add(stage.name)
        plans.append(StagePlan(stage.name, stage.kind, state, why, folder, stage.cost()))
    return plans


def lacking(recipe: Recipe, plans: Sequence[StagePlan]) -> dict[str, list[str]]:
    """Files and folders that the stages still to run need from outside and that are not there, with the keys that name
    them."""
    done = {plan.name for plan in plans if plan.state == "done"}
    return missing_inputs(stage for stage in recipe.stages if stage.name not in done)


def run_recipe(recipe: Recipe, run: Path, *, redo: Sequence[str] = (), say: Callable[[str], None] = print) -> Path:
    """Run what is not done yet. Returns the run folder.

    Args:
        run: run folder; made if it is not there.
        redo: names of stages to run anew although they are done; stages that read them follow if the result differs.
        say: prints a line for the user (first rank only).

    Raises:
        LengthenError: an input of any stage is not there, another process runs in this folder, a stage fails, the disk
            is full ...
    """
    for name in redo:
        if name not in recipe.names:
            raise LengthenError(f"There is no stage '{name}' to run anew.", fix=nearest(name, recipe.names))
    launch = Launch.join()
    try:
        if dist.is_main():
            _alone(recipe, run, launch, set(redo), say)
        else:
            _follow(recipe, run, launch)
    finally:
        launch.leave()
    return run


def _alone(recipe: Recipe, run: Path, launch: Launch, redo: set[str], say: Callable[[str], None]) -> None:
    """First rank: run the recipe, as the only process of this folder."""
    try:
        with explain_disk(run):
            (run / "stages").mkdir(parents=True, exist_ok=True)
        with FileLock(run / ".lock", timeout=0):
            _lead(recipe, run, launch, redo, say)
    except Timeout:
        launch.fail(f"another process is running in {run}")
        raise LengthenError(
            f"Another process is running in {run}.", fix="wait for it, stop it, or choose another folder with --out"
        ) from None
    except BaseException as error:
        launch.fail(str(error))
        raise


def _lead(recipe: Recipe, run: Path, launch: Launch, redo: set[str], say: Callable[[str], None]) -> None:
    plans = plan_run(recipe, run, sorted(redo))
    _refuse(recipe, lacking(recipe, plans))
    write_atomic(run / "resolved.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    outlook = progress.Outlook({p.name: p.cost for p in plans if p.state != "done"})
    progress.show_outlook(outlook)
    try:
        for number, stage in enumerate(recipe.stages, 1):
            _stage(stage, recipe, run, launch, stage.name in redo, f"[{number}/{len(plans)}] {stage.name}", say)
            outlook.finish(stage.name)
    finally:
        progress.show_outlook(None)


def _refuse(recipe: Recipe, missing: dict[str, list[str]]) -> None:
    """A late stage's missing input would show only when weeks of earlier stages are over."""
    if missing:
        raise LengthenError(
            "\n".join(
                ["Nothing was started: there is no such folder or file.", *missing_lines(missing, recipe.sources)]
            ),
            why=f"a run looks for the inputs of all its stages first; relative paths begin in {Path.cwd()}",
            fix="put them there, or name yours with --set KEY=VALUE (the start model with --model)",
        )


def _stage(
    stage: StageSettings, recipe: Recipe, run: Path, launch: Launch, redo: bool, title: str, say: Callable[[str], None]
) -> None:
    folder = run / "stages" / stage.name
    mark, stem = marks(stage, recipe, run)
    before = _manifest(folder)
    state, why = _state(folder, before, mark, stem)
    if folder.exists() and (state == "changed" or (redo and state != "new")):
        aside = _put_aside(folder)
        say(f"{title}: {'asked for anew' if redo else why}; what was there is kept in {aside.name}")
        state, before = "new", None
    if state == "done":
        say(f"{title}: done before, skipped")
        launch.tell(stage.name, "skip")
        _link(run, folder)
        return
    kept = {"interrupted": "goes on where it stopped", "grown": "adds what is asked for beyond what it has"}
    say(f"{title}: {kept.get(state, KINDS[stage.kind].about)}")
    context = _context(stage, recipe, folder)
    with explain_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    head = {**_head(stage, recipe, run, context), "fingerprint": mark, "stem": stem}
    write_manifest(folder, {**head, "status": "running"})
    launch.tell(stage.name, "run")
    reset_peak_memory()
    try:
        with explain_disk(folder), Stopwatch(folder) as watch:
            result: StageResult = stage_function(stage.kind)(stage.resolved(_folders(recipe, run)), context)
    except Refused:
        if before is not None:
            write_manifest(folder, before)
        raise
    write_manifest(folder, {**head, **_tail(result, folder, watch), "status": "done"})
    launch.tell(f"{stage.name}/end", "done")
    _link(run, folder)
    say(f"{title}: done in {progress.clock(watch.seconds)}" + _figures(result))


def _follow(recipe: Recipe, run: Path, launch: Launch) -> None:
    """Ranks behind the first: take part in parallel stages, wait for the others."""
    for stage in recipe.stages:
        if launch.hear(stage.name) == "skip":
            continue
        if KINDS[stage.kind].parallel:
            context = _context(stage, recipe, run / "stages" / stage.name)
            stage_function(stage.kind)(stage.resolved(_folders(recipe, run)), context)
        launch.hear(f"{stage.name}/end")


def marks(stage: StageSettings, recipe: Recipe, run: Path) -> tuple[str, str]:
    """Two SHA-256 over a stage's settings, seed and inputs (by content): its fingerprint, and its stem, which leaves
    out how much is asked for. Equal fingerprints mean equal results; equal stems, that one goes on from the other."""
    plain = {"kind": stage.kind, "seed": derive_seed(recipe.seed, stage.name)}
    inputs = {name: digest["sha256"] for name, digest in _inputs(stage, recipe, run).items()}
    dropped, growing = stage.without_effect(), stage.growing_inputs()
    lasting = {name: digest for name, digest in inputs.items() if name not in growing}
    settings, stem = (stage.model_dump(mode="json", exclude=keys) for keys in (dropped, dropped | stage.growing()))
    return (
        _digest({**plain, "inputs": inputs, "settings": settings}),
        _digest({**plain, "inputs": lasting, "settings": stem}),
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _inputs(stage: StageSettings, recipe: Recipe, run: Path) -> dict[str, dict[str, str]]:
    """Name -> {path, sha256}: outputs of the stages referred to, and files of the user's that the settings name."""
    found: dict[str, dict[str, str]] = {}
    for name in stage.references():
        folder = run / "stages" / name
        manifest = _manifest(folder) or {}
        outputs = {path: row["sha256"] for path, row in manifest.get("outputs", {}).items()}
        found[f"@{name}"] = {"path": str(folder), "sha256": _digest(outputs)}
    for path in stage.external_inputs():
        if Path(path).expanduser().exists():
            found[path] = {"path": path, "sha256": sha256_tree(Path(path).expanduser())}
    return found


def _state(folder: Path, manifest: dict[str, Any] | None, mark: str, stem: str) -> tuple[State, str]:
    if manifest is None:
        return "new", "not run yet"
    if manifest.get("fingerprint") != mark and manifest.get("stem") == stem:
        return "grown", "more is asked for than it has; it keeps what it has"
    if manifest.get("fingerprint") != mark:
        return "changed", "its settings or inputs have changed"
    if manifest.get("status") != "done":
        return "interrupted", "goes on where it stopped"
    missing = [p for p, row in manifest["outputs"].items() if not _whole(folder / p, row["bytes"])]
    if missing:
        return "changed", f"{missing[0]} is gone or was altered"
    return "done", "done"


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    return read_json(path) if path.exists() else None


def _put_aside(folder: Path) -> Path:
    """Move an outdated stage folder aside; nothing of the user's is deleted. Returns its new name."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    with explain_disk(folder):
        os.rename(folder, aside)
    return aside


def _folders(recipe: Recipe, run: Path) -> dict[str, Path]:
    return {name: run / "stages" / name for name in recipe.names}


def _context(stage: StageSettings, recipe: Recipe, folder: Path) -> StageContext:
    return StageContext(folder, seed=derive_seed(recipe.seed, stage.name), recipe=recipe.name, stage=stage.name)


def _head(stage: StageSettings, recipe: Recipe, run: Path, context: StageContext) -> dict[str, Any]:
    return {
        "schema": 1,
        "recipe": recipe.name,
        "stage": stage.name,
        "kind": stage.kind,
        "settings": stage.model_dump(mode="json"),
        "seed": context.seed,
        "inputs": _inputs(stage, recipe, run),
        "versions": versions(),
        "machine": machine(),
        "commit": commit(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _tail(result: StageResult, folder: Path, watch: Stopwatch) -> dict[str, Any]:
    return {
        "seconds": round(watch.seconds, 2),
        "attempts": watch.attempts,
        "peak_memory_gib": peak_memory_gib(),
        "counts": dict(result.counts),
        "drops": result.drops,
        "derived": result.derived,
        "figures": result.figures,
        "notes": result.notes,
        "outputs": outputs_of(folder),
    }


class Stopwatch:
    """Seconds of a stage over all its attempts: a hidden file in its folder is brought up to date every few seconds,
    so that a killed attempt counts too."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / ".seconds"
        try:
            seconds, attempts = self._file.read_text().split()
            self._before, self.attempts = float(seconds), int(attempts) + 1
        except (OSError, ValueError):
            self._before, self.attempts = 0.0, 1
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def __enter__(self) -> Stopwatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(5.0):
            # A full disk is the stage's error to report, not the clock's.
            with contextlib.suppress(OSError):
                self._file.write_text(f"{self.seconds:.1f} {self.attempts}")


def _figures(result: StageResult) -> str:
    parts = [f"{key} {value}" for key, value in result.figures.items()]
    return f"  ({', '.join(parts)})" if parts else ""


def _link(run: Path, folder: Path) -> None:
    """Point the run folder's report.html, model and metrics.jsonl at the newest stage that has them."""
    for name in _LINKS:
        target = folder / name
        if not target.exists():
            continue
        link = run / name
        part = run / f".{name}.link"
        part.unlink(missing_ok=True)
        try:
            part.symlink_to(target.relative_to(run))
            os.replace(part, link)
        except OSError:
            # File systems without symbolic links: the stage's folder still has the file.
            part.unlink(missing_ok=True)
