"""What the commands print: each function makes one text, or runs a recipe and tells how it ended."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lengthen.common import dist
from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json
from lengthen.common.manifest import MANIFEST
from lengthen.common.progress import clock
from lengthen.recipe.base import ModelFacts, StageSettings, size_text
from lengthen.recipe.inputs import missing_inputs, missing_lines
from lengthen.recipe.load import PRESETS, apply_change, preset_names
from lengthen.recipe.schema import Recipe, build_recipe, json_schema
from lengthen.recipe.stages.merge import MergeStage

if TYPE_CHECKING:
    from lengthen.recipe.stages.train import TrainStage
    from lengthen.train.devices import Devices


def run_and_tell(recipe: Recipe, folder: Path, redo: Sequence[str], command: str) -> None:
    """Run a recipe; end with what was achieved, where the report is, and how to run more."""
    from lengthen.runner import plan_run, run_recipe

    before = [plan.state for plan in plan_run(recipe, folder)]
    run_recipe(recipe, folder, redo=redo, say=_say)
    if not dist.is_main():
        return
    if all(state == "done" for state in before) and not redo:
        _say(f"\nAll {len(before)} stages were done before; nothing ran.")
    else:
        _say("")
    _say(f"Result:  {_headline(recipe, folder)}")
    report = folder / "report.html"
    _say(f"Report:  {report if report.exists() else folder}")
    last = recipe.names[-1]
    _say(f"More:    {command} --redo {last}   runs a stage anew; --set STAGE.KEY=VALUE changes one; "
         f"`lengthen show {recipe.name}` lists them")  # fmt: skip


def _say(text: str) -> None:
    if dist.is_main():
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _headline(recipe: Recipe, folder: Path) -> str:
    """The report's own sentence, else the figures of the last stage that has any."""
    found = ""
    for name in recipe.names:
        path = folder / "stages" / name / MANIFEST
        figures = read_json(path).get("figures", {}) if path.exists() else {}
        if "headline" in figures:
            found = str(figures["headline"])
        elif figures and not found:
            found = ", ".join(f"{key} {value}" for key, value in figures.items())
    return found or f"{len(recipe.names)} stages done"


def dry_run_text(recipe: Recipe, folder: Path, redo: Sequence[str] = ()) -> str:
    """Stages with their state, and what remains."""
    from lengthen.runner import lacking, plan_run

    plans = plan_run(recipe, folder, redo)
    width = max(len(plan.name) for plan in plans)
    lines = [f"{recipe.name} in {folder}"]
    for number, plan in enumerate(plans, 1):
        lines.append(f"  {number}. {plan.name:<{width}}  {plan.kind:<12} {plan.state:<12} {plan.why}")
    remaining = [plan for plan in plans if plan.state != "done"]
    if not remaining:
        lines.append(f"All is done. To run a stage anew: lengthen run {recipe.name} --redo STAGE")
    else:
        seconds = sum(plan.cost for plan in remaining)
        lines.append(f"{len(remaining)} of {len(plans)} stages remain, roughly {clock(seconds)} on two cores "
                     f"for the embedded model{_slower()}.")  # fmt: skip
        lines.append(f"\nWhat training costs here (--devices for others: lengthen plan):\n{_prices(recipe)}")
    return "\n".join([*lines, *_warning(recipe, lacking(recipe, plans))])


def lacking_text(recipe: Recipe) -> str:
    """A warning of the inputs that are not there; nothing where all are, and where none is a file."""
    return "\n".join(_warning(recipe, missing_inputs(recipe.stages)))


def _warning(recipe: Recipe, missing: dict[str, list[str]]) -> list[str]:
    lines = missing_lines(missing, recipe.sources)
    return ["", "Warning: not there yet, and a run would not start without it:", *lines] if lines else []


def _prices(recipe: Recipe) -> str:
    """`plan_text` here, or why there is none: a dry run also shows what cannot be priced."""
    try:
        return plan_text(recipe, None)
    except LengthenError as error:
        return f"not known. {error}"


def _slower() -> str:
    """The rough costs of stages were measured on two cores with bf16 instructions."""
    import torch

    from lengthen.models import pick_dtype

    if torch.cuda.is_available() or pick_dtype("auto")[0] == "bfloat16":
        return ""
    return " that compute in bf16; this processor does not, so expect four to seven times as long"


def evaluation_recipe(
    model: str, suites: str, lengths: str, samples: int | None, arm: str | None, changes: Sequence[str]
) -> Recipe:
    """A recipe of one evaluate stage and its report, from the command's options."""
    from lengthen.models import model_title

    title = _slug(arm or model_title(model))
    stage: dict[str, Any] = {
        "kind": "evaluate",
        "model": model,
        "arm": arm or model_title(model),
        "suites": _list(suites),
        "lengths": _list(lengths),
    }
    if samples is not None:
        stage["samples"] = samples
    return one_stage_recipe(
        f"evaluate-{title}",
        stage,
        changes,
        after={"kind": "report", "evaluations": [{"label": stage["arm"], "run": "@evaluate"}]},
    )


def synthesis_recipe(kind: str, model: str | None, count: int | None, changes: Sequence[str]) -> Recipe:
    """A recipe of one `tables` or `questions` stage."""
    stage: dict[str, Any] = {"kind": kind}
    if model is not None:
        stage["model"] = model
    if count is not None:
        stage["count"] = count
    return one_stage_recipe(kind, stage, changes)


def one_stage_recipe(
    name: str, stage: dict[str, Any], changes: Sequence[str], after: dict[str, Any] | None = None
) -> Recipe:
    """A recipe around a single stage; `--set key=value` speaks of that stage, or of the recipe's own keys."""
    data: dict[str, Any] = {"name": name, "stages": [stage, *([after] if after else [])]}
    for change in changes:
        key = change.split("=", 1)[0].strip()
        if key == "model":
            raise LengthenError(f"--set {change}: the model is named on the command line itself.", fix="drop the --set")
        own = key in ("seed", "description") or (after is not None and key.startswith(f"{after['kind']}."))
        apply_change(data, change if own else f"{stage['kind']}.{change}")
    return build_recipe(data, name)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "model"


def compare(runs: Sequence[Path], out: Path) -> str:
    """Write the comparison of several runs; returns the line to print."""
    from lengthen.report.run import write_comparison

    for run in runs:
        if not run.exists():
            raise LengthenError(f"There is no {run}.", fix="give run folders, or evaluate stages inside them")
    page = write_comparison(list(runs), out)
    return f"Report:  {page}"


def plan_text(recipe: Recipe, devices: str | None) -> str:
    """Cost of every train stage of a recipe on the given devices, each for the model that it starts from; a sentence
    where the training would be refused."""
    from lengthen.recipe.stages.train import TrainStage
    from lengthen.train.estimate import parse_devices

    trainings = [stage for stage in recipe.stages if isinstance(stage, TrainStage)]
    if not trainings:
        return f"'{recipe.name}' has no train stage; nothing to price."
    on = parse_devices(devices)
    return "\n\n".join(_price(recipe, stage, on) for stage in trainings)


def _price(recipe: Recipe, stage: TrainStage, on: Devices) -> str:
    from lengthen.models import model_facts
    from lengthen.train.estimate import estimate, render, row_length_in

    facts = model_facts(_start_model(recipe, stage.model))
    try:
        return render(estimate(stage, facts, on, row_length_in(recipe, stage)))
    except LengthenError as error:
        return f"{stage.name} on {on.title}: would be refused. {error}"


def _start_model(recipe: Recipe, name: str) -> str:
    """The model at the beginning of a chain of stages: each of them has its architecture."""
    while name.startswith("@"):
        stage = recipe.stage(name[1:].split("/", 1)[0])
        if isinstance(stage, MergeStage):
            name = stage.config_from or stage.checkpoints or stage.models[0]
        else:
            name = getattr(stage, "model", recipe.model)
    return name


def presets_text() -> str:
    """All presets with their first sentence."""
    rows = []
    for name in preset_names():
        data = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
        rows.append((name, str(data.get("description", "")).split(". ")[0].strip().rstrip(".")))
    width = max(len(name) for name, _ in rows)
    body = "\n".join(f"  {name:<{width}}  {about}" for name, about in rows)
    return f"Recipes (lengthen run NAME, lengthen show NAME):\n{body}"


def schema_text() -> str:
    return json.dumps(json_schema(), indent=2)


def show_text(recipe: Recipe) -> str:
    """Every setting, with its meaning's source, and each derived number with its reason."""
    facts = _facts(recipe)
    lines = [f"# {recipe.name}: {recipe.description}".rstrip(": ")]
    if recipe.paper:
        lines.append(f"# paper: arXiv {recipe.paper}")
    note = f"   # {recipe.sources['model']}" if "model" in recipe.sources else ""
    lines += [f"name: {recipe.name}", f"model: {recipe.model}{note}", f"seed: {recipe.seed}"]
    if facts is not None:
        window = size_text(facts.window) if facts.window else "unknown"
        lines.append(f"# model window {window}, RoPE base {facts.rope_theta:,.0f}, "
                     f"{facts.heads} query and {facts.kv_heads} KV heads of {facts.head_size}")  # fmt: skip
    lines.append("stages:")
    for stage in recipe.stages:
        lines += _stage_lines(stage, recipe, facts)
    return "\n".join(lines)


def _stage_lines(stage: StageSettings, recipe: Recipe, facts: ModelFacts | None) -> list[str]:
    plain = {"kind": stage.kind, "name": stage.name}
    plain |= {k: v for k, v in stage.model_dump(mode="json").items() if k not in ("kind", "name")}
    text = yaml.safe_dump([plain], sort_keys=False, allow_unicode=True, width=110)
    lines = []
    for line in text.rstrip().splitlines():
        key = line.strip("- ").split(":", 1)[0]
        source = recipe.sources.get(f"{stage.name}.{key}") if line[:2] in ("- ", "  ") and line[2:3] != " " else None
        lines.append(line + (f"   # {source}" if source else ""))
    if stage.name in recipe.sources:
        lines.append(f"  # source of all of it: {recipe.sources[stage.name]}")
    nested = {k: v for k, v in recipe.sources.items() if k.startswith(stage.name + ".") and k.count(".") > 1}
    lines += [f"  # source of {key.removeprefix(stage.name + '.')}: {source}" for key, source in nested.items()]
    # A stage that reads an earlier stage's model has the start model's architecture, which is all that is asked here.
    for item in stage.derived(facts):
        lines.append(f"  # derived: {item.key} = {item.value}   because {item.reason}")
    return lines


def _facts(recipe: Recipe) -> ModelFacts | None:
    """The start model's config, if it can be had without a download; numbers that need it stay open otherwise."""
    from lengthen.models import model_facts

    try:
        return model_facts(recipe.model)
    except LengthenError:
        return None


def inspect_text(path: Path, rows: int, model: str | None) -> str:
    """Readable text for whatever `path` is."""
    if not path.exists():
        raise LengthenError(f"There is no {path}.", fix="give rows, chat.jsonl, a stage folder, a run or a state file")
    if path.suffix in (".sqlite", ".db"):
        from lengthen.selflengthen.store import describe

        return describe(path)
    if (path / "stages").is_dir():
        return _run_text(path)
    if (path / "state.sqlite").is_file():
        return inspect_text(path / "state.sqlite", rows, model)
    from lengthen.data.inspect import inspect_path

    return inspect_path(path, rows=rows, model=model)


def _run_text(run: Path) -> str:
    lines = [f"Run {run}"]
    for folder in sorted((run / "stages").iterdir(), key=lambda f: f.stat().st_mtime):
        path = folder / MANIFEST
        if not path.exists():
            continue
        manifest = read_json(path)
        lines.append(f"  {folder.name}: {manifest['status']}, {clock(manifest.get('seconds', 0))}, "
                     f"{manifest.get('peak_memory_gib', '?')} GiB")  # fmt: skip
        lines += [f"      {key}: {value:,}" for key, value in manifest.get("counts", {}).items()]
        for rule, row in manifest.get("drops", {}).items():
            lines.append(f"      dropped by {rule}: {row['items']:,} items, {row['tokens']:,} tokens")
    for state in sorted(run.glob("stages/*/state.sqlite")):  # also of a stage that is still running
        lines += ["", inspect_text(state, 0, None)]
    return "\n".join(lines)


def doctor_text(model: str | None) -> tuple[str, bool]:
    """The machine's check list, and with a model the document-leak probe. Returns (text, all well)."""
    from lengthen.doctor import examine, render

    checks = examine()
    text, good = render(checks), all(check.state != "bad" for check in checks)
    if model is not None:
        from lengthen.train.probe import probe_model

        verdict = probe_model(model)
        text, good = f"{text}\n\n{verdict.text}", good and verdict.clean
    return text, good
