"""Settings of the `report` stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from lengthen.recipe.base import Settings, StageSettings


class EvaluationRef(Settings):
    """One measured model of the report."""

    label: str = Field(
        min_length=1,
        description="The arm's name in tables: 'as-is', 'yarn-untrained', or the recipe's name.",
    )
    run: str = Field(description="The evaluate stage (@name) or its folder.")


class ReportStage(StageSettings):
    """One HTML page with a CSV beside every picture, Markdown, summary.json, and the model with its card."""

    kind: Literal["report"] = "report"
    title: str = Field(default="", description="Heading of the page. Default: the recipe's name.")
    model: str | None = Field(
        default=None,
        description="The trained model to publish as model/ with a card: a train stage (@name) or a model folder.",
    )
    evaluations: list[EvaluationRef] = Field(
        default_factory=list,
        description="Measured models in the order of the story: as they were first, the final one last.",
    )
    train: list[str] = Field(default_factory=list, description="Train stages: loss curves, tokens, time.")
    data: list[str] = Field(default_factory=list, description="Data stages: documents, tokens, what was dropped.")
    self_lengthen: list[str] = Field(
        default_factory=list,
        description="Self-lengthen stages: growth of the length by macro-iteration, rejections by rule.",
    )
    failures: int = Field(default=12, ge=0, le=200, description="How many failed answers to show for reading.")

    @field_validator("evaluations")
    @classmethod
    def _labels_differ(cls, evaluations: list[EvaluationRef]) -> list[EvaluationRef]:
        labels = [one.label for one in evaluations]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"two evaluations are labelled '{label}'; give each its own label")
        return evaluations

    def external_inputs(self) -> list[str]:
        """Evaluations and trainings outside this run."""
        named = [self.model or "", *(one.run for one in self.evaluations), *self.train, *self.data, *self.self_lengthen]
        return [name for name in named if name and not name.startswith("@")]
