"""Settings that may still be changed: all that no phase has read yet.

A phase keeps what it reads of the settings when it begins. Another value later is refused, by name, since the state
would hold things made in two ways; what no phase has read (the length demands while the texts are being written) is
free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.files import sha256_tree
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.store import Store

_ALWAYS = ("method", "model", "languages", "prompts", "window", "template_options")
_MEASURED = ("held_out", "respond.system", "sampling", "checks", "retry.error_tries")
_READS: dict[str, tuple[str, ...]] = {
    "measure": _MEASURED,
    "evaluate": ("evaluate",),
    "instruct": ("instruct", "held_out"),
    "write": ("respond", "extend", "sampling", "checks", "retry", "select"),
    "train": ("training",),
    "final": ("final.samples", "respond", "sampling", "checks", "retry"),
    "weave": ("constraints", "final.pool", "sampling", "retry.error_tries"),
    "plan-and-write": ("respond", "sampling", "checks", "retry"),
    "back-translation": (
        "texts",
        "instruct",
        "instruct.count",
        "held_out",
        "respond.system",
        "sampling",
        "checks",
        "retry.error_tries",
    ),
}
"""Phase -> settings, or whole sections of them, that it reads."""
_APART = {"instruct": ("count",), "training": ("launch",)}
"""Not part of their section: the count is the final one's in the last macro-iteration, the launcher changes nothing."""
FILES = "files"


def reads(settings: SelfLengthenStage, seed: int, iteration: int, phase: str) -> dict[str, Any]:
    """What a phase reads: key -> value; `files`: path -> SHA-256 of the user's files."""
    keys = [*_ALWAYS, *_READS.get(phase, ())]
    last = settings.method == "self-lengthen" and iteration == settings.iterations + 1
    if last and phase not in ("measure", "evaluate"):
        keys += ["iterations", *{"instruct": ["final.count"], "train": ["final.start"]}.get(phase, [])]
    elif phase == "instruct":
        keys.append("instruct.count")
    if phase == "instruct" and settings.instruct.source == "self":
        keys += ["sampling", "retry.error_tries"]
    if phase == "evaluate" and settings.asks_held_out(settings.evaluation("default")):
        keys.append("held_out")
    plain = settings.model_dump(mode="json")
    return {"seed": seed, **{key: _value(plain, key) for key in keys}, FILES: _hashes(_files(settings, phase))}


def check(store: Store, settings: SelfLengthenStage, seed: int) -> None:
    """Refuse a setting that differs from what a phase has read. A phase that failed without a result is put away
    instead, and asked anew.

    Raises:
        LengthenError: names the setting, both values and the phase.
    """
    plain = {**settings.model_dump(mode="json"), "seed": seed}
    for iteration, phase, read, failed in store.used():
        now = {key: _value(plain, key) for key in read if key != FILES}
        found = _difference(read, now) or _changed_file(read[FILES], _hashes(_files(settings, phase)))
        macro = settings.method == "self-lengthen" and phase in ("instruct", "write", "train")
        if found is None and macro and "iterations" not in read and iteration > settings.iterations:
            found = f"iterations is {settings.iterations}, and macro-iteration {iteration} has begun"
        if found is None:
            continue
        if failed:
            store.forget(iteration, phase)
            continue
        raise LengthenError(
            f"{found}: it was read by {named(iteration, phase)}.",
            why=f"{store.path} would hold things made in two ways",
            fix="set it back; or begin anew in another folder (--out), or here with --redo "
            f"{settings.name or settings.kind} (what is there is kept aside)",
        )


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
        if isinstance(old, dict) and isinstance(new, dict):
            before = {**(_value(_defaults(), key) or {}), **old}
            names = [name for name in sorted({*before, *new}) if before.get(name) != new.get(name)]
            if names:
                return f"{key}.{names[0]} was {before.get(names[0])!r} and is now {new.get(names[0])!r}"
        elif old != new:
            return f"{key} was {old!r} and is now {new!r}"
    return None


def _changed_file(read: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    for path in sorted({*read, *now}):
        if path not in read:
            return f"{path} is a new file to keep away from"
        if read[path] != now.get(path):
            return f"{path} has changed" if path in now else f"{path} is gone"
    return None


def _files(settings: SelfLengthenStage, phase: str) -> list[str]:
    held_out, apart = [settings.held_out.file], settings.evaluation_files()
    evaluated = settings.evaluation("default").external_inputs() if settings.evaluate is not None else []
    found: dict[str, list[str | None]] = {
        "measure": held_out,
        "evaluate": [*(path for path in evaluated if path != "default"), *held_out],
        "instruct": [settings.instruct.file, settings.instruct.seeds, *held_out, *apart],
        "train": [settings.training.replay],
        "back-translation": [settings.texts, *held_out, *apart],
    }
    return [path for path in (settings.prompts, *found.get(phase, [])) if path]


def _hashes(paths: Iterable[str]) -> dict[str, str]:
    there = [path for path in dict.fromkeys(paths) if Path(path).expanduser().exists()]
    return {path: sha256_tree(Path(path).expanduser()) for path in there}
