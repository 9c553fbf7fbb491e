"""The `report` stage, and the comparison of finished runs."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.files import write_atomic, write_json
from lengthen.common.manifest import StageContext, StageResult, commit, machine, versions
from lengthen.recipe.base import size_text
from lengthen.recipe.stages.report import ReportStage
from lengthen.report.card import base_of, publish
from lengthen.report.collect import Arm, Evidence, collect, collect_runs
from lengthen.report.compare import averages, suite_of, suites_of
from lengthen.report.lengths import effective, helmet_categories
from lengthen.report.render import View, build_view, to_html, to_markdown


def write_report(settings: ReportStage, ctx: StageContext) -> StageResult:
    """Write report.html, report.md, summary.json, pictures/ (SVG and CSV) and, with `settings.model`, model/.

    Raises:
        LengthenError: a stage referred to has not finished, or is of another kind.
    """
    evidence = collect(settings, ctx.folder, ctx.recipe)
    view = build_view(
        evidence, failures=settings.failures, origin=_origin(evidence, ctx.seed), versions=_versions(evidence)
    )
    _write(view, ctx.folder)
    if settings.model is not None:
        publish(settings.model, ctx.folder / "model", view)
    counts: dict[str, float] = {"arms": len(evidence.arms), "answers": sum(len(arm.answers) for arm in evidence.arms)}
    return StageResult(counts=counts, figures={"headline": view.headline})


def write_comparison(run_folders: Sequence[Path], out: Path) -> Path:
    """`lengthen report RUN_A RUN_B`: the same page over finished runs, the earlier one first; the last evaluation is
    compared with all others on the samples that both answered. Returns the page's path.

    Raises:
        LengthenError: no run given, or one without a finished evaluation.
    """
    if not run_folders:
        raise LengthenError("There is nothing to report on.", fix="name one run folder or more")
    names = " against ".join(folder.resolve().name for folder in reversed(run_folders))
    evidence = collect_runs(run_folders, names)
    view = build_view(evidence, failures=12, origin=_origin(evidence, None), versions=_versions(evidence))
    _write(view, out)
    return out / "report.html"


def _write(view: View, folder: Path) -> None:
    for picture in view.pictures:
        write_atomic(folder / "pictures" / f"{picture.name}.svg", picture.svg + "\n")
        write_atomic(folder / "pictures" / f"{picture.name}.csv", picture.csv)
    write_atomic(folder / "report.html", to_html(view))
    write_atomic(folder / "report.md", to_markdown(view))
    write_json(folder / "summary.json", summary(view))


def summary(view: View) -> dict[str, Any]:
    """The one shape of evidence: who measured what, on which machine, with which versions, and every number."""
    evidence = view.evidence
    rows: list[dict[str, Any]] = []
    base, _ = base_of(evidence)
    for arm in evidence.arms:
        head = {"arm": arm.label, "recipe": evidence.recipe or arm.stage.manifest.get("recipe", ""),
                "model": base or arm.model}  # fmt: skip
        rows += [{**head, **row} for row in _scores(arm)]
        for row in arm.values:
            rows.append({**head, **{key: value for key, value in row.items() if key not in head}})
    for growth in evidence.growths:
        for m in growth.measures:
            label = f"iteration-{m.iteration}" if m.iteration else "as-is"
            rows.append({"arm": label, "recipe": evidence.recipe, "model": base or "", "task": m.name,
                         "value": m.value, "low": m.low, "high": m.high, "unit": m.unit, "n": m.n})  # fmt: skip
    for cost in view.costs:
        rows.append({"arm": cost.name, "recipe": evidence.recipe, "model": "", "task": "time",
                     "value": round(cost.seconds / 60, 2), "unit": "minutes"})  # fmt: skip
        if cost.peak_memory_gib is not None:
            rows.append({"arm": cost.name, "recipe": evidence.recipe, "model": "", "task": "peak memory",
                         "value": cost.peak_memory_gib, "unit": "GiB"})  # fmt: skip
    for training in evidence.trainings:
        for key in ("tokens", "trained_tokens", "steps"):
            if key in training.stage.counts:
                rows.append({"arm": training.stage.name, "recipe": evidence.recipe, "model": base or "",
                             "task": f"training {key}", "value": training.stage.counts[key],
                             "unit": "steps" if key == "steps" else "tokens"})  # fmt: skip
    return {
        "machine": machine(),
        "versions": view.versions,
        "date": view.origin["date"],
        "commit": commit(),
        "command": _command(),
        "seed": _recipe_seed(evidence),
        "headline": view.headline,
        "rows": rows,
    }


def _scores(arm: Arm) -> list[dict[str, Any]]:
    """Rows of each task, and of each suite's mean under the suite's own name: one `needle` row a length, say."""
    found: list[dict[str, Any]] = []
    for suite in suites_of([arm]):
        points = averages(arm, suite)
        rows = [row for row in arm.scores if suite_of(row) == suite]
        names = {task for point in points.values() for task in point.tasks}
        own = {suite} == names or rows[0].get("suite") != suite  # a row of the task is all there is to say
        if not own:
            found += [{"suite": suite, "task": suite, "length": length, "score": point.score, "low": point.low,
                       "high": point.high, "n": point.n, "contexts": point.contexts, "tasks": list(point.tasks)}
                      for length, point in points.items()]  # fmt: skip
        if own or len(names) > 1:
            keys = ("suite", "task", "length", "score", "low", "high", "n", "contexts")
            found += [{key: row.get(key) for key in keys} for row in rows]
        found += _together(arm, suite)
    return found


def _together(arm: Arm, suite: str) -> list[dict[str, Any]]:
    """Effective lengths, weighted averages, HELMET's categories; each names what it is made of."""
    found: list[dict[str, Any]] = []
    one = effective(arm, suite)
    if one is not None:
        head = {"suite": suite, "tasks": list(one.tasks), "lengths": list(one.lengths)}
        rules = {"above 85.6%": one.absolute, f"85% of own score at {size_text(one.base)}": one.relative}
        # 0: not even the shortest length.
        found += [{**head, "task": f"{suite}: effective length ({rule})", "value": reach or 0, "unit": "tokens"}
                  for rule, reach in rules.items()]  # fmt: skip
        averages_of = {"inc": one.rising, "dec": one.falling}
        found += [{**head, "task": f"{suite}: wAvg ({name})", "value": value, "unit": "score"}
                  for name, value in averages_of.items() if value is not None]  # fmt: skip
    for category in helmet_categories(arm) if suite == "helmet" else []:
        found += [{"suite": suite, "task": f"helmet: {category.name}", "length": length, "value": point.score,
                   "low": point.low, "high": point.high, "unit": "score", "n": point.n, "tasks": list(category.parts)}
                  for length, point in category.points.items()]  # fmt: skip
    return found


def _origin(evidence: Evidence, seed: int | None) -> dict[str, str]:
    """Facts for the page's foot. Stages may come from several machines and commits: all are named."""
    manifests = [stage.manifest for stage in evidence.stages] or [arm.stage.manifest for arm in evidence.arms]
    commits = list(dict.fromkeys(str(m["commit"]) for m in manifests if m.get("commit")))
    machines = list(dict.fromkeys(_machine_text(m["machine"]) for m in manifests if m.get("machine")))
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "command": _command(),
        "recipe": evidence.recipe,
        "asked": "; ".join(dict.fromkeys(text for arm in evidence.arms if (text := _asked(arm)))),
        "seed": str(_recipe_seed(evidence) if seed is not None else ""),
        "machine": "; ".join(machines or [_machine_text(machine())]),
        "commit": ", ".join(commits or [commit() or "not a checkout"]),
    }
    return {key: value for key, value in found.items() if value not in ("", "None")}


def _asked(arm: Arm) -> str:
    """How an evaluation asked, as its scores.json tells: template, seed of the samples, haystack, intervals."""
    plain = {key: value for key, value in arm.asked_how.items() if isinstance(value, str | int) and value != ""}
    return ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in plain.items())


def _recipe_seed(evidence: Evidence) -> int | None:
    """The recipe's own seed, from which every stage derives its own."""
    import yaml

    found = yaml.safe_load(evidence.resolved) if evidence.resolved and evidence.recipe else None
    return found.get("seed") if isinstance(found, dict) else None


def _machine_text(facts: dict[str, Any]) -> str:
    gpus = facts.get("gpus") or []
    parts = [str(facts.get("processor", "")), *list(facts.get("instructions") or [])[-1:]]
    parts += [f"{facts.get('cores')} cores", f"{facts.get('memory_gib')} GiB"]
    if gpus:
        parts.append(f"{len(gpus)} x {gpus[0]}")
    return ", ".join(part for part in parts if part)


def _versions(evidence: Evidence) -> dict[str, str]:
    """Versions of the stages that measured; this process's own where no manifest tells."""
    for stage in [*(arm.stage for arm in evidence.arms), *reversed(evidence.stages)]:
        if stage.manifest.get("versions"):
            return dict(stage.manifest["versions"])
    return versions()


def _command() -> str:
    return shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]]) if sys.argv and sys.argv[0] else "lengthen"
