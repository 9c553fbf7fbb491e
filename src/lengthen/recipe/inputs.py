"""What stages read from outside their run, and what of it is not there: known before the first stage starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lengthen.recipe.base import StageSettings

# Keys of models: `owner/name` is one of the Hub's there, and a folder in any other key.
_MODELS = frozenset(
    ("model", "models", "writer", "base", "tuned", "config_from", "tokenizer", "reference", "judge", "nli")
)
# Texts that are never a path, though they may read like one (a source called `books` over the folder `books`).
_LABELS = frozenset(
    ("name", "kind", "arm", "label", "title", "pool", "about", "text_field", "messages_field", "domain_field",
     "id_field")
)  # fmt: skip
_NO_PATHS = ("@", "package:", "installed:")


def is_hub_name(name: str) -> bool:
    """`owner/name`, by its shape."""
    return name.count("/") == 1 and not name.startswith(("/", ".", "~"))


def missing_inputs(stages: Iterable[StageSettings]) -> dict[str, list[str]]:
    """Local files and folders that the stages read and that do not exist: path -> the keys that name it.

    Outputs of other stages, Hub names, addresses and Python packages are none of them. What only looks like a Hub name
    is left to the stage: no network is asked.
    """
    found: dict[str, list[str]] = {}
    for stage in stages:
        outside = set(stage.external_inputs())
        for key, value in _texts(stage.model_dump(mode="json"), stage.name):
            # SOURCE#PATTERN keeps some files of a source.
            path = value if value in outside else value.partition("#")[0]
            if path in outside and _is_missing(key, path) and key not in found.get(path, ()):
                found.setdefault(path, []).append(key)
    return found


def missing_lines(missing: Mapping[str, Iterable[str]], notes: Mapping[str, str]) -> list[str]:
    """One line a path, with the keys that name it and what the recipe's `sources` say about them."""
    lines = []
    for path, keys in missing.items():
        said = dict.fromkeys(notes[key] for key in keys if key in notes)
        lines.append(f"  {path}: {', '.join(keys)}" + "".join(f"\n      {note}" for note in said))
    return lines


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """(key path, text) of all texts in settings. Items of a list go by their name, or number, as for `--set`; plain
    texts in a list by the list's key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in _LABELS:
                yield from _texts(inner, f"{key}.{name}")
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            name = inner.get("name") or number if isinstance(inner, dict) else None
            yield from _texts(inner, key if name is None else f"{key}.{name}")


def _is_missing(key: str, path: str) -> bool:
    last = key.rsplit(".", 1)[-1]
    # {k} in HELMET's file names stands for a number.
    if path == "python" or path.startswith(_NO_PATHS) or "://" in path or "{" in path:
        return False
    if last in _MODELS and (path == "default" or is_hub_name(path)):
        return False
    if last == "dataset" and not path.startswith(("/", ".", "~")) and path.count("/") < 2:
        return False
    return not Path(path).expanduser().exists()
