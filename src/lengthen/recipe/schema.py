"""The recipe: a name, a model, a seed and stages in order."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import Field, SerializeAsAny, ValidationError, field_validator

from lengthen.common.errors import LengthenError, nearest
from lengthen.recipe.base import Settings, StageSettings
from lengthen.recipe.stages import KINDS, settings_class

# These stages name their model themselves; all others take the recipe's where they leave it open.
_OWN_MODEL = ("report", "merge")
START = "@model"
"""The recipe's start model, wherever a stage names a model beside its own (`base`, `models`, a suite's `reference`)."""


class Recipe(Settings):
    """A recipe with every setting filled in."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Name of the recipe and of its run folder.")
    description: str = Field(default="", description="One or two sentences: what comes out.")
    paper: str = Field(default="", description="arXiv id of the paper that the recipe follows.")
    model: str = Field(
        default="default",
        description="Start model: 'default' (the embedded SmolLM2-135M-Instruct), a folder, or a Hub name.",
    )
    seed: int = Field(default=0, ge=0, description="One seed; every stage derives its own from it by name.")
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="Where numbers come from: 'stage.key' (a stage's name alone: all of it; 'model': the start "
        "model) -> paper and table, or 'lengthen: why'.",
    )
    stages: list[SerializeAsAny[StageSettings]] = Field(description="The stages, in order.")

    @field_validator("stages")
    @classmethod
    def _names_and_references(cls, stages: list[StageSettings]) -> list[StageSettings]:
        seen: list[str] = []
        for stage in stages:
            if f"@{stage.name}" == START:
                raise ValueError(f"no stage can be called 'model': {START} is the start model; give it another `name`")
            if stage.name in seen:
                raise ValueError(f"two stages are called '{stage.name}'; give one of them another `name`")
            for reference in stage.references():
                if f"@{reference}" == START:
                    raise ValueError(f"stage '{stage.name}': {START} is a whole model and stands alone, without a path")
                if reference not in seen:
                    raise ValueError(
                        f"stage '{stage.name}' refers to @{reference}, which is no stage before it. "
                        + (nearest(reference, seen) if seen else "It is the first stage.")
                    )
            seen.append(stage.name)
        return stages

    def stage(self, name: str) -> StageSettings:
        """The stage of that name."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise LengthenError(f"The recipe '{self.name}' has no stage '{name}'.", fix=nearest(name, self.names))

    @property
    def names(self) -> list[str]:
        return [stage.name for stage in self.stages]


def build_recipe(data: dict[str, Any], origin: str) -> Recipe:
    """Validate plain data. Errors name the key path, the value, what is allowed and the nearest name.

    Args:
        data: the recipe as read from YAML, with `extends` and `--set` already applied.
        origin: file or preset name, for errors.
    """
    data = copy.deepcopy(data)
    stages = data.get("stages")
    if not isinstance(stages, list) or not stages:
        raise LengthenError(
            f"{origin}: 'stages' must be a list with at least one stage.",
            fix="see docs/recipes.md, or start from a preset: `extends: quickstart`",
        )
    model = data.get("model", "default")
    if model == START:
        raise LengthenError(f"{origin}: model: {START} stands for this key.", fix="name a folder or a Hub name")
    data["stages"] = [_build_stage(_started(s, model), index, data, origin) for index, s in enumerate(stages)]
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise _explained(error, origin, "", Recipe) from None
    _check_sources(recipe, origin)
    return recipe


def _started(value: Any, model: Any) -> Any:
    """Settings with `@model` replaced by the recipe's start model."""
    if isinstance(value, dict):
        return {key: _started(inner, model) for key, inner in value.items()}
    if isinstance(value, list):
        return [_started(inner, model) for inner in value]
    return model if value == START else value


def _build_stage(stage: Any, index: int, recipe: dict[str, Any], origin: str) -> StageSettings:
    if not isinstance(stage, dict) or "kind" not in stage:
        raise LengthenError(
            f"{origin}: stages.{index} has no 'kind'.", fix=f"say what it does: one of {', '.join(sorted(KINDS))}"
        )
    kind = stage["kind"]
    where = f"stages.{stage.get('name') or kind}"
    if kind not in KINDS:
        raise LengthenError(f"{origin}: {where}.kind: there is no stage kind '{kind}'.", fix=nearest(str(kind), KINDS))
    cls = settings_class(kind)
    stage = {"name": kind, **stage}
    if kind not in _OWN_MODEL and "model" in cls.model_fields and "model" not in stage:
        stage["model"] = recipe.get("model", "default")
    try:
        return cls.model_validate(stage)
    except ValidationError as error:
        raise _explained(error, origin, where, cls) from None


def _explained(error: ValidationError, origin: str, where: str, cls: type[Settings]) -> LengthenError:
    lines = []
    for item in error.errors():
        path = ".".join([*([where] if where else []), *(str(part) for part in item["loc"])])
        if item["type"] == "extra_forbidden":
            lines.append(f"{origin}: {path}: there is no such key. {nearest(str(item['loc'][-1]), _keys(cls, item))}")
        elif item["type"] == "missing":
            lines.append(f"{origin}: {path} is missing.")
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = item.get("input")
            shown = f" (given: {value!r})" if isinstance(value, str | int | float | bool | None) else ""
            lines.append(f"{origin}: {path}: {message}{shown}")
    return LengthenError("\n".join(lines), fix="`lengthen show RECIPE` prints every key with its meaning")


def _keys(cls: type[Settings], item: Any) -> list[str]:
    """Allowed keys at the place of an unknown one: walk the models along the path as far as they are known."""
    model: Any = cls
    for part in item["loc"][:-1]:
        if isinstance(part, int) or model is None:
            continue
        field = model.model_fields.get(part)
        model = _inner_model(field.annotation) if field else model
        if model is None:
            return []
    return list(model.model_fields) if model is not None else []


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _inner_model(argument)
        if found is not None:
            return found
    return None


def _check_sources(recipe: Recipe, origin: str) -> None:
    plain = {stage.name: stage.model_dump() for stage in recipe.stages}
    for key in recipe.sources:
        if key == "model":
            continue
        value: Any = plain
        for part in _split(key, plain):
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, list) and any(isinstance(v, dict) and v.get("name") == part for v in value):
                value = next(v for v in value if isinstance(v, dict) and v.get("name") == part)
            elif isinstance(value, dict) and part in value:
                value = value[part]
            else:
                raise LengthenError(
                    f"{origin}: sources names '{key}', but '{part}' is not there.",
                    fix="write stage.key, stage.list.name.key, a stage's name, or model",
                )


def _split(key: str, stages: dict[str, Any]) -> list[str]:
    """`prolong-64k.lr` -> [`prolong-64k`, `lr`]; stage names may hold dots, so the longest known name wins."""
    for name in sorted(stages, key=len, reverse=True):
        if key == name or key.startswith(name + "."):
            return [name, *[part for part in key[len(name) + 1 :].split(".") if part]]
    return key.split(".")


def json_schema() -> dict[str, Any]:
    """JSON schema of recipe files, for editors."""
    schema = Recipe.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    kinds = []
    for kind in KINDS:
        stage = settings_class(kind).model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(stage.pop("$defs", {}))
        stage["properties"]["after"] = {"type": "string", "description": "With extends: the stage in front of it."}
        definitions[f"stage-{kind}"] = stage
        kinds.append({"$ref": f"#/$defs/stage-{kind}"})
    part = {"type": "object", "required": ["name"], "not": {"required": ["kind"]}}
    schema["properties"]["stages"] = {"type": "array", "items": {"anyOf": [*kinds, part]}}
    schema["properties"]["extends"] = {"type": "string", "description": "A preset or file that this recipe changes."}
    schema["properties"]["without"] = {"type": "array", "items": {"type": "string"}}
    schema["required"] = ["name"]
    return schema
