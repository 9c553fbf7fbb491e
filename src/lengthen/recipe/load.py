"""Recipes from YAML: presets by name or file, `extends`, `--set`."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lengthen.common.errors import LengthenError, nearest
from lengthen.recipe.schema import Recipe, build_recipe

PRESETS = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_recipe(name: str, *, model: str | None = None, changes: Sequence[str] = ()) -> Recipe:
    """A recipe by preset name or file.

    Args:
        name: `quickstart`, or a path to a YAML file.
        model: replaces the recipe's start model.
        changes: `--set` texts: `train.learning_rate=1e-4` (a stage's setting), `seed=1` (the recipe's own),
            `prepare.sources.books.share=0.3` (an item of a list by its name, or by its number). Values are YAML.
    """
    data = read_recipe(name)
    if model is not None:
        data["model"] = model
    for change in changes:
        apply_change(data, change)
    return build_recipe(data, name)


def read_recipe(name: str, _seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Plain data of a recipe with its `extends` chain merged."""
    path = find_recipe(name)
    if str(path) in _seen:
        raise LengthenError(f"{name}: `extends` goes in a circle: {' -> '.join([*_seen, str(path)])}")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LengthenError(f"{name} is not YAML: {error}", fix="see docs/recipes.md for the form") from None
    if not isinstance(data, dict):
        raise LengthenError(f"{name} is not a recipe: it holds {type(data).__name__}, not a mapping of keys.")
    base = data.pop("extends", None)
    without = data.pop("without", [])
    if base is not None:
        near = path.parent / str(base)
        parent = read_recipe(str(near) if near.exists() else str(base), (*_seen, str(path)))
        parent["sources"] = _still_there(parent.get("sources") or {}, data.get("stages") or [])
        data = merge_recipes(parent, data)
    return _without(data, without, name)


def _still_there(notes: dict[str, str], changes: list[Any]) -> dict[str, str]:
    """The base's notes on sources, without those on items of a list that the change replaces by a list without them."""
    gone: set[str] = set()
    for stage in (stage for stage in changes if isinstance(stage, dict)):
        for key, items in ((k, v) for k, v in stage.items() if isinstance(v, list)):
            place = f"{stage.get('name') or stage.get('kind')}.{key}."
            names = {str(item.get("name") or item.get("kind")) for item in items if isinstance(item, dict)}
            names |= {str(number) for number in range(len(items))}
            gone |= {k for k in notes if k.startswith(place) and k.removeprefix(place).split(".")[0] not in names}
    return {key: note for key, note in notes.items() if key not in gone}


def find_recipe(name: str) -> Path:
    """The file of a recipe; a clear error with the nearest preset otherwise."""
    path = Path(name)
    if path.is_file():
        return path
    preset = PRESETS / f"{name}.yaml"
    if preset.is_file():
        return preset
    raise LengthenError(
        f"There is no recipe '{name}': no such file, and no such preset.", fix=nearest(name, preset_names())
    )


def merge_recipes(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` over `base`: mappings are merged, lists replaced, except stages, which are merged by name; a stage
    that the base does not have is added at the end, or behind the stage that its key `after` names."""
    merged = _merge(base, {key: value for key, value in change.items() if key != "stages"})
    stages = [copy.deepcopy(stage) for stage in base.get("stages", [])]
    for stage in change.get("stages", []):
        stage = copy.deepcopy(stage)
        after = stage.pop("after", None)
        names = [s.get("name") or s.get("kind") for s in stages]
        name = stage.get("name") or stage.get("kind")
        if name in names:
            stages[names.index(name)] = _merge(stages[names.index(name)], stage)
        elif after is not None:
            if after not in names:
                raise LengthenError(f"stage '{name}': after: there is no stage '{after}'.", fix=nearest(after, names))
            stages.insert(names.index(after) + 1, stage)
        else:
            stages.append(stage)
    merged["stages"] = stages
    return merged


def _merge(base: Any, change: Any) -> Any:
    if isinstance(base, dict) and isinstance(change, dict):
        result = {key: copy.deepcopy(value) for key, value in base.items()}
        for key, value in change.items():
            result[key] = _merge(result[key], value) if key in result else copy.deepcopy(value)
        return result
    return copy.deepcopy(change)


def _without(data: dict[str, Any], without: list[str], origin: str) -> dict[str, Any]:
    names = [s.get("name") or s.get("kind") for s in data.get("stages", [])]
    for name in without:
        if name not in names:
            raise LengthenError(f"{origin}: without: there is no stage '{name}'.", fix=nearest(name, names))
    data["stages"] = [s for s, name in zip(data.get("stages", []), names) if name not in without]
    gone = tuple(f"{name}." for name in without)
    if gone and data.get("sources"):
        data["sources"] = {key: note for key, note in data["sources"].items() if not f"{key}.".startswith(gone)}
    return data


def apply_change(data: dict[str, Any], change: str) -> None:
    """One `--set` text applied to a recipe's plain data, in place."""
    key, sign, text = change.partition("=")
    if not sign or not key.strip():
        raise LengthenError(f"--set {change}: write it as key=value, such as --set train.learning_rate=1e-4.")
    try:
        value = yaml.load(text, Loader=_Loader) if text.strip() else ""
    except yaml.YAMLError as error:
        raise LengthenError(f"--set {change}: the value is not YAML: {error}") from None
    place, last = _place(data, key.strip(), change)
    place[last] = value


def _place(data: dict[str, Any], key: str, change: str) -> tuple[Any, Any]:
    """Container and key (or index) that `key` names."""
    stages = {str(s.get("name") or s.get("kind")): s for s in data.get("stages", [])}
    # The longest stage name wins: stage names may hold dots.
    stage = max((n for n in stages if key.startswith(n + ".")), key=len, default=None)
    place: Any = data if stage is None else stages[stage]
    parts = (key if stage is None else key[len(stage) + 1 :]).split(".")
    if stage is None and (len(parts) > 1 or parts[0] not in Recipe.model_fields):
        raise LengthenError(
            f"--set {change}: '{parts[0]}' is neither a stage nor a key of the recipe.",
            fix=nearest(parts[0], [*stages, *(k for k in Recipe.model_fields if k != "stages")]),
        )
    for part in parts[:-1]:
        place = _step(place, part, change)
    last: Any = parts[-1]
    if isinstance(place, list):
        last = _index(place, last, change)
    elif not isinstance(place, dict):
        raise LengthenError(f"--set {change}: '{'.'.join(parts[:-1])}' is a plain value and has no '{last}' inside.")
    return place, last


def _step(place: Any, part: str, change: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, change)]
    if isinstance(place, dict):
        if not isinstance(place.get(part), dict | list):
            place[part] = {}
        return place[part]
    raise LengthenError(f"--set {change}: there is nothing inside '{part}'.")


def _index(items: list[Any], part: str, change: str) -> int:
    if part.isdigit() and int(part) < len(items):
        return int(part)
    names = [str(item.get("name")) for item in items if isinstance(item, dict) and "name" in item]
    if part in names:
        return next(i for i, item in enumerate(items) if isinstance(item, dict) and str(item.get("name")) == part)
    raise LengthenError(
        f"--set {change}: the list has no item '{part}'.",
        fix=nearest(part, names) if names else f"it has {len(items)} items, counted from 0",
    )


class _Loader(yaml.SafeLoader):
    """YAML that reads `1e-5` as a number (YAML 1.1 wants a dot) and refuses a key that stands twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if key in result:
            raise yaml.MarkedYAMLError(problem=f"key '{key}' stands twice", problem_mark=key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=deep)
    return result


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
