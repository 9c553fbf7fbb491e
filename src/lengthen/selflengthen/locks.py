"""Settings that may still be changed: all that no phase has read yet.

A phase keeps what it reads of the settings when it begins. Another value later is refused, by name, since the state
would hold things made in two ways; what no phase has read (the length demands while the texts are being written) is
free, and so is what only a training or an evaluation without a result has read. Files and folders count by content, not
by name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lengthen.common.errors import Refused
from lengthen.common.files import explain_disk, read_json, sha256_tree
from lengthen.common.manifest import MANIFEST
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.store import Store

_ALWAYS = ("method", "model", "languages", "prompts", "window", "template_options")
_MEASURED = ("held_out", "respond.system", "sampling", "checks")
_READS: dict[str, tuple[str, ...]] = {
    "measure": _MEASURED,
    "evaluate": ("evaluate",),
    "instruct": ("instruct", "held_out"),
    "write": ("respond", "extend", "sampling", "checks", "retry", "select"),
    "train": ("training",),
    "final": ("final.samples", "respond", "sampling", "checks", "retry"),
    "weave": ("constraints", "final.pool", "sampling"),
    "plan-and-write": ("respond", "sampling", "checks", "retry"),
    "back-translation": (
        "texts",
        "instruct",
        "instruct.count",
        "held_out",
        "respond.system",
        "sampling",
        "checks",
    ),
}
"""Phase -> settings, or whole sections of them, that it reads."""
_APART = {"instruct": ("count",), "training": ("launch",), "retry": ("error_tries",), "evaluate": ("batch_size",)}
"""Not part of their section: the count is the final one's in the last macro-iteration, the others change no result."""
FILES = "files"


def reads(settings: SelfLengthenStage, seed: int, iteration: int, phase: str) -> dict[str, Any]:
    """What a phase reads: key -> value; `files`: path -> SHA-256 of those to keep away from."""
    keys = [*_ALWAYS, *_READS.get(phase, ())]
    last = settings.method == "self-lengthen" and iteration == settings.iterations + 1
    if last and phase not in ("measure", "evaluate"):
        keys += ["iterations", *{"instruct": ["final.count"], "train": ["final.start"]}.get(phase, [])]
    elif phase == "instruct":
        keys.append("instruct.count")
    if phase == "instruct" and settings.instruct.source == "self":
        keys.append("sampling")
    if phase == "evaluate" and settings.asks_held_out(settings.evaluation("default")):
        keys.append("held_out")
    plain = _by_content(settings)
    return {"seed": seed, **{key: _value(plain, key) for key in keys}, FILES: _kept_away(settings, phase)}


def check(store: Store, settings: SelfLengthenStage, seed: int) -> None:
    """Refuse a setting that differs from what a phase has read. A phase that has no result is put away instead, and
    begins anew: one that failed, an evaluation that did not end, a training of which no model has come.

    Raises:
        Refused: names the setting, both values and the phase; nothing was put away then.
    """
    plain = {**_by_content(settings), "seed": seed}
    away: list[tuple[int, str]] = []
    for iteration, phase, read, failed, ended in store.used():
        now = {key: _value(plain, key) for key in read if key != FILES}
        if phase == "evaluate" and ended and settings.evaluate is None:
            del now["evaluate"]  # to evaluate no more changes nothing of what there is
        found = _difference(read, now) or _new_file(read[FILES], _kept_away(settings, phase))
        macro = settings.method == "self-lengthen" and phase in ("instruct", "write", "train")
        if found is None and macro and "iterations" not in read and iteration > settings.iterations:
            found = f"iterations is {settings.iterations}, and macro-iteration {iteration} has begun"
        if found is None:
            continue
        if failed or not (ended or _has_result(store, iteration, phase)):
            away.append((iteration, phase))
            continue
        raise Refused(
            f"{found}: it was read by {named(iteration, phase)}.",
            why=f"{store.path} would hold things made in two ways",
            fix="set it back; or begin anew in another folder (--out), or here with --redo "
            f"{settings.name or settings.kind} (what is there is kept aside)",
        )
    for iteration, phase in away:
        for folder in _folders(store, iteration, phase):
            _put_aside(folder)
        store.forget(iteration, phase)


def _has_result(store: Store, iteration: int, phase: str) -> bool:
    """Whether an open phase holds something that is used: texts, or the model of one role."""
    if phase == "train":
        return any((folder / "trained.json").exists() for folder in _folders(store, iteration, phase))
    return phase != "evaluate"


def _folders(store: Store, iteration: int, phase: str) -> list[Path]:
    """Where a training or an evaluation works."""
    names = {
        "train": [f"{iteration}-generator", f"{iteration}-extender", "final"],
        "evaluate": [f"{iteration}-evaluate"],
    }
    return [store.path.parent / "iterations" / name for name in names.get(phase, [])]


def _put_aside(folder: Path) -> None:
    """Rename a half-made folder to a hidden one, which is no output of the stage."""
    number = 1
    while (aside := folder.with_name(f".{folder.name}.old-{number}")).exists():
        number += 1
    if folder.exists():
        with explain_disk(folder):
            os.rename(folder, aside)


def named(iteration: int, phase: str) -> str:
    """A phase in words."""
    if phase in ("measure", "evaluate"):
        return f"the phase `{phase}` after {iteration} training{'s' * (iteration != 1)}"
    return f"the phase `{phase}` of macro-iteration {iteration}"


def _value(plain: Mapping[str, Any], key: str) -> Any:
    value: Any = plain
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, dict) and key in _APART:
        return {name: inner for name, inner in value.items() if name not in _APART[key]}
    return value


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    return SelfLengthenStage().model_dump(mode="json")


def _difference(read: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting that differs. One that this version adds to a section had its default."""
    for key, new in now.items():
        old = read[key]
        if isinstance(old, dict) and isinstance(new, dict) and not (_is_file(old) or _is_file(new)):
            before = {**(_value(_defaults(), key) or {}), **old}
            names = sorted({*before, *new} - set(_APART.get(key, ())))
            pairs = [(f"{key}.{name}", before.get(name), new.get(name)) for name in names]
        else:
            pairs = [(key, old, new)]
        for name, was, is_now in pairs:
            if not _same(was, is_now):
                was, is_now = _shown(was), _shown(is_now)
                if was == is_now:
                    return f"{was if isinstance(was, str) else f'a file of {name}'} has changed"
                return f"{name} was {was!r} and is now {is_now!r}"
    return None


# ------------------------------------------------------------------------------------------------ files and folders
def _by_content(settings: SelfLengthenStage) -> dict[str, Any]:
    """The settings, with {"path", "sha256"} for each file or folder that they name and that is there."""
    evaluated = settings.evaluation("default").external_inputs() if settings.evaluate is not None else []
    named = {*settings.external_inputs(), *evaluated} - {"default"}

    def marked(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: marked(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [marked(inner) for inner in value]
        there = isinstance(value, str) and value in named and Path(value).expanduser().exists()
        return {"path": value, "sha256": _sha256(value)} if there else value

    return marked(settings.model_dump(mode="json"))


def _sha256(name: str) -> str:
    """Of a stage's folder the outputs that its manifest lists count, else all that is there."""
    path = Path(name).expanduser()
    manifest = read_json(path / MANIFEST) if (path / MANIFEST).is_file() else None
    if isinstance(manifest, dict) and "stage" in manifest and "outputs" in manifest:
        rows = {file: row["sha256"] for file, row in manifest["outputs"].items()}
        return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return sha256_tree(path)


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"path", "sha256"}


def _same(old: Any, new: Any) -> bool:
    """Equal, with files by content (by name where no content was kept)."""
    if _is_file(old) and _is_file(new):
        return old["sha256"] == new["sha256"]
    if _is_file(new):
        return old == new["path"]
    if isinstance(old, dict) and isinstance(new, dict):
        return all(_same(old.get(key), new.get(key)) for key in {*old, *new})
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    return old == new


def _shown(value: Any) -> Any:
    """As the user wrote it."""
    if isinstance(value, dict):
        return value["path"] if _is_file(value) else {key: _shown(inner) for key, inner in value.items()}
    return [_shown(inner) for inner in value] if isinstance(value, list) else value


def _kept_away(settings: SelfLengthenStage, phase: str) -> dict[str, str]:
    """Path -> SHA-256 of the prompt files that the instructions of this phase keep away from."""
    paths = settings.evaluation_files() if phase in ("instruct", "back-translation") else []
    return {path: _sha256(path) for path in paths if Path(path).expanduser().exists()}


def _new_file(read: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """One that was not kept away from. To have kept away from more than is asked now does no harm."""
    for path, digest in now.items():
        if digest not in read.values():
            return f"{path} has changed" if path in read else f"{path} is a new file to keep away from"
    return None
