"""Settings of the `merge` stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lengthen.recipe.base import StageSettings


class MergeStage(StageSettings):
    """A weighted average of models, or of a run's last checkpoints."""

    kind: Literal["merge"] = "merge"
    models: list[str] = Field(
        default_factory=list, description="Two or more models: @stage, folder, Hub name or default. "
        "The config, with its RoPE parameters, is taken from `config_from`."
    )  # fmt: skip
    weights: list[float] = Field(default_factory=list, description="One weight a model; default: equal. They sum to 1.")
    checkpoints: str | None = Field(default=None, description="Instead of models: a train stage (@name).")
    last: int = Field(default=3, ge=2, description="How many of that stage's last checkpoints are averaged.")
    config_from: str | None = Field(
        default=None,
        description="Model whose config and tokenizer are kept. Needed where the configs differ: a model merged back "
        "towards its start must keep the longer RoPE (LongRecipe, arXiv 2409.00509, section 4.4).",
    )

    @model_validator(mode="after")
    def _fits(self) -> MergeStage:
        if (self.checkpoints is None) == (not self.models):
            raise ValueError("give either models or checkpoints")
        if self.models and len(self.models) < 2:
            raise ValueError("a merge needs at least two models")
        if self.models and self.last != type(self).model_fields["last"].default:
            raise ValueError("last has no effect with models; drop it, or give checkpoints")
        count = len(self.models) if self.models else self.last
        if self.weights and len(self.weights) != count:
            raise ValueError(f"{len(self.weights)} weights for {count} models")
        if self.weights and abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"the weights sum to {sum(self.weights):g}, not 1")
        return self

    def external_inputs(self) -> list[str]:
        named = [*self.models, self.checkpoints or "", self.config_from or ""]
        return [name for name in named if name and not name.startswith("@")]
