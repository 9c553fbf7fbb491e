"""What every stage's settings share: strict fields, sizes such as `64k`, references, derived values."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "b": 2**30, "t": 2**40}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmbt]?)\s*$", re.IGNORECASE)


def parse_size(value: Any) -> Any:
    """`64k` -> 65536, `20B` -> 20 * 2**30, `2e6` -> 2000000. K, M, B are powers of 1,024 (ProLong, arXiv 2410.02660,
    footnote 2); write the digits out where a decimal number is meant."""
    if isinstance(value, bool):
        raise ValueError(f"'{value}' is no size: write a number such as 4096, 64k or 20B")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if match:
        size = float(match[1]) * _UNITS[match[2].lower()]
    else:
        try:
            size = float(value)
        except ValueError:
            raise ValueError(f"'{value}' is no size: write a number such as 4096, 64k or 20B") from None
    if not size.is_integer():
        raise ValueError(f"'{value}' is no whole number of tokens")
    return int(size)


def size_text(value: int) -> str:
    """65536 -> `64K`; values that are no round multiple stay digits."""
    for unit in ("b", "m", "k"):
        if value >= _UNITS[unit] and value % _UNITS[unit] == 0:
            return f"{value // _UNITS[unit]}{unit.upper()}"
    return f"{value:,}"


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[kKmMbBtT]?\s*$"}]}
    ),
]
"""A number of tokens (or bytes): 4096, '64k', '20B'."""


@dataclass(frozen=True)
class Derived:
    """A value that the settings leave open, with what it becomes and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class ModelFacts:
    """What a model folder's config.json says, read without torch.

    window: positions that the model was made for (`max_position_embeddings`, or YaRN's original window where given).
    """

    folder: Path
    config: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> ModelFacts:
        config = json.loads((folder / "config.json").read_text())
        # Multimodal checkpoints keep the language model's numbers one level down.
        return cls(folder, config.get("text_config", config))

    @property
    def window(self) -> int:
        rope = self.rope
        return int(rope.get("original_max_position_embeddings") or self.config.get("max_position_embeddings") or 0)

    @property
    def rope(self) -> dict[str, Any]:
        return dict(self.config.get("rope_parameters") or self.config.get("rope_scaling") or {})

    @property
    def rope_theta(self) -> float:
        return float(self.rope.get("rope_theta") or self.config.get("rope_theta") or 10_000.0)

    @property
    def heads(self) -> int:
        return int(self.config["num_attention_heads"])

    @property
    def kv_heads(self) -> int:
        return int(self.config.get("num_key_value_heads") or self.heads)

    @property
    def head_size(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.heads)


class Settings(BaseModel):
    """Strict, frozen settings: an unknown key is an error that names its nearest neighbour."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class StageSettings(Settings):
    """Settings of one stage. `kind` chooses the stage; `name` is how others refer to it (`@name`)."""

    kind: str
    name: str = Field(
        default="",
        pattern=r"^[a-z0-9]?[a-z0-9._-]*$",
        description="Name of the stage in this recipe; others refer to it as @name. Default: its kind.",
    )

    def derived(self, facts: ModelFacts | None) -> list[Derived]:
        """Values that follow from others, for `lengthen show`. `facts` describe the model, where it is known."""
        return []

    def external_inputs(self) -> list[str]:
        """Files and folders of the user's that the stage reads (not those of other stages): their contents decide
        whether a finished stage is still valid. A stage that reads more than its model overrides this."""
        model = getattr(self, "model", None)
        return [model] if isinstance(model, str) and model and not model.startswith("@") else []

    def without_effect(self) -> set[str]:
        """Keys that change no result (batch sizes of an evaluation, worker counts): altering them re-runs nothing."""
        return set()

    def growing(self) -> set[str]:
        """Keys that only say how much is asked for (samples, lengths): when nothing else has changed, the stage keeps
        its folder and does what is missing."""
        return set()

    def growing_inputs(self) -> set[str]:
        """Inputs (files, and `@name` of stages) that only keys of `growing` name, and that the stage compares with what
        it has read: others than before do not make it begin anew either."""
        return set()

    def cost(self) -> float:
        """Rough work in seconds on two cores, for the whole run's ETA."""
        return 5.0

    def references(self) -> list[str]:
        """Names of the stages whose output this one reads: every string that begins with `@`."""
        return sorted(_references(self.model_dump(mode="json")))

    def resolved(self, folders: dict[str, Path]) -> Any:
        """The same settings with `@name` (and `@name/file`) replaced by the stage's folder."""
        return type(self).model_validate(_replace(self.model_dump(), folders))


def _references(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value[1:].split("/", 1)[0]} if value.startswith("@") else set()
    if isinstance(value, dict):
        return set().union(*(_references(v) for v in value.values()))
    if isinstance(value, list | tuple):
        return set().union(*(_references(v) for v in value))
    return set()


def _replace(value: Any, folders: dict[str, Path]) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        name, _, rest = value[1:].partition("/")
        return str(folders[name] / rest) if rest else str(folders[name])
    if isinstance(value, dict):
        return {key: _replace(v, folders) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replace(v, folders) for v in value)
    return value
