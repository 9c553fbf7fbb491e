"""The published model: the trained folder with a card that holds the measured figures."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from lengthen.common.errors import LengthenError
from lengthen.common.files import explain_disk, read_json, write_atomic
from lengthen.models import DEFAULT, DEFAULT_TITLE, resolve_model
from lengthen.report import compare
from lengthen.report.collect import Evidence
from lengthen.report.render import View, render_text, to_markdown

_CARD = "README.md"
_DEFAULT_BASE, _DEFAULT_LICENSE = f"HuggingFaceTB/{DEFAULT_TITLE}", "apache-2.0"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def publish(model: str, target: Path, view: View) -> None:
    """Fill `target` with the model's files (hard links where the file system allows them, else copies) and its card.

    Args:
        model: a train stage's folder, or a model folder.
        target: the stage's `model/`; replaced as a whole.
    """
    source = resolve_model(model)
    part = target.with_name(f".{target.name}.part")
    with explain_disk(target):
        shutil.rmtree(part, ignore_errors=True)
        _link_tree(source, part)
        # Written anew and moved into place, so that a card of the source is not changed through its hard link.
        write_atomic(part / _CARD, card(source, target, view))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)


def _link_tree(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if not path.is_file() or any(name.startswith(".") for name in relative.parts):
            continue
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), place)
        except OSError:
            shutil.copyfile(path, place)


def card(source: Path, target: Path, view: View) -> str:
    """README.md of a model: metadata as the Hub reads it, how to load it, and the report's Markdown."""
    from huggingface_hub import ModelCardData

    evidence = view.evidence
    base, license_name = base_of(evidence)
    title = f"{(base or 'model').rsplit('/', 1)[-1]}-{evidence.recipe or 'lengthened'}"
    data = ModelCardData(
        base_model=base if base and _HUB_NAME.fullmatch(base) else None,
        license=license_name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["long-context", "lengthen"],
        model_name=title,
        eval_results=_results(evidence) or None,
    )
    config = read_json(source / "config.json")
    config = config.get("text_config", config)
    text = render_text(
        "card.md.j2",
        title=title,
        headline=view.headline,
        recipe=evidence.recipe,
        base=base,
        license=license_name,
        path=target.name,
        chat=_has_template(source),
        positions=int(config.get("max_position_embeddings") or 0),
        rope=yaml.safe_dump(config.get("rope_parameters") or {}, default_flow_style=True, width=10_000).strip(),
        report=to_markdown(view, published=False).split("\n", 1)[1].strip().removeprefix(view.headline).strip(),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text.strip()}\n"


def base_of(evidence: Evidence) -> tuple[str | None, str | None]:
    """(base model, licence) from the first train stage's settings. A licence is taken only from the base's own card."""
    for training in evidence.trainings:
        name = str(training.stage.settings.get("model") or "")
        if not name or name.startswith("@"):
            continue
        if name == DEFAULT:
            return _DEFAULT_BASE, _DEFAULT_LICENSE
        return name, _license_in(name)
    return None, None


def _license_in(name: str) -> str | None:
    try:
        path = resolve_model(name) / _CARD
    except LengthenError:
        return None
    match = re.match(r"---\n(.*?)\n---", path.read_text(encoding="utf-8"), re.S) if path.exists() else None
    try:
        front = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return None
    found = front.get("license") if isinstance(front, dict) else None
    return str(found) if found else None


def _has_template(source: Path) -> bool:
    if (source / "chat_template.jinja").exists():
        return True
    path = source / "tokenizer_config.json"
    return path.exists() and bool(read_json(path).get("chat_template"))


def _results(evidence: Evidence) -> list[Any]:
    """The last arm's averages, one entry a suite and length."""
    from huggingface_hub import EvalResult

    if evidence.final is None:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=f"lengthen-{suite}",
            dataset_name=f"{suite}, {length} tokens, {len(point.tasks)} task{'s' if len(point.tasks) > 1 else ''}",
            metric_type="accuracy",
            metric_name="score",
            metric_value=round(100 * point.score, 2),
        )
        for suite in compare.suites_of([evidence.final])
        for length, point in compare.averages(evidence.final, suite).items()
    ]
