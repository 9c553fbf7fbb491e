"""Settings of the `choose-sentences` stage: short rows that stand for long ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lengthen.recipe.base import Derived, ModelFacts, Size, StageSettings


class ChooseSentencesStage(StageSettings):
    """Keep some sentences of each long row, in order, with `unit_lens`, so that `positions: {type: skip}` spreads them
    over the long row's positions (LongRecipe, arXiv 2409.00509, section 3)."""

    kind: Literal["choose-sentences"] = "choose-sentences"
    model: str = Field(default="default", description="Model whose tokenizer made the rows.")
    rows: list[str] = Field(min_length=1, description="Row folders or prepare stages (@name) with rows of full length.")
    weights: str | None = Field(
        default=None, description="An analyse-tokens stage (@name) or its weights.json. Needed for choose: weighted."
    )
    row_length: Size = Field(ge=16, description="Longest row that is written, in tokens (LongRecipe: 30%).")
    choose: Literal["weighted", "random", "first"] = Field(
        default="weighted",
        description="weighted: drawn with chances in proportion to the mean weight of a sentence's words. random: with "
        "equal chances. first: the row's beginning, as it is (both for comparison).",
    )

    @model_validator(mode="after")
    def _fits(self) -> ChooseSentencesStage:
        if (self.choose == "weighted") != (self.weights is not None):
            what = "needs weights" if self.choose == "weighted" else "has no use for weights"
            raise ValueError(f"choose: {self.choose} {what}")
        return self

    def derived(self, facts: ModelFacts | None) -> list[Derived]:
        return []

    def external_inputs(self) -> list[str]:
        weights = [self.weights] if self.weights else []
        return [*super().external_inputs(), *(name for name in (*self.rows, *weights) if not name.startswith("@"))]
