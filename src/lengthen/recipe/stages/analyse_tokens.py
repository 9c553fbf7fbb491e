"""Settings of the `analyse-tokens` stage: which kinds of words gain from long training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lengthen.recipe.base import Size, StageSettings


class AnalyseTokensStage(StageSettings):
    """LongRecipe's impactful tokens (arXiv 2409.00509, section 3.1): what a long-tuned model expects more than its base
    does, tallied by word class."""

    kind: Literal["analyse-tokens"] = "analyse-tokens"
    rows: list[str] = Field(
        min_length=1, description="Row folders or prepare stages (@name) that samples are taken of."
    )
    base: str = Field(description="The model before long training: folder, Hub name, @stage or default.")
    tuned: str = Field(description="A long-tuned model with the same tokenizer.")
    samples: int = Field(default=200, ge=1, description="Rows looked at, evenly spread over the set.")
    length: Size = Field(default=4096, ge=16, description="Most tokens of a row that are looked at, from its start.")
    top: float = Field(default=0.2, gt=0, lt=1, description="Share of a sample's positions that count as impactful.")
    score: Literal["logit", "log_prob"] = Field(
        default="logit", description="What is compared at the true token: its logit (the paper) or its log probability."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="Number format of both models.")

    @model_validator(mode="after")
    def _differ(self) -> AnalyseTokensStage:
        if self.base == self.tuned:
            raise ValueError(f"base and tuned are the same model ({self.base}); there is nothing to compare")
        return self

    def cost(self) -> float:
        return 20.0 + 2 * self.samples * self.length / 1500

    def external_inputs(self) -> list[str]:
        return [name for name in (*self.rows, self.base, self.tuned) if not name.startswith("@")]
