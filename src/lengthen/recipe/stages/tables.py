"""Settings of the `tables` stage: synthetic lengthy tables with computed answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lengthen.recipe.base import Derived, ModelFacts, Size, StageSettings

Language = Literal["en", "zh"]
Family = Literal["retrieval", "reasoning", "global"]
Rendering = Literal["pipe", "csv", "jsonl", "records", "html", "prose"]
Task = Literal[
    "cell", "row", "match", "kth", "neighbour", "absent",
    "difference", "sum", "ratio", "compare", "two_hop", "filter_lookup", "date_difference", "join",
    "count", "total", "mean", "extreme", "mode", "group_best", "top_k", "distinct", "duplicates", "sorted",
    "join_count", "join_total",
]  # fmt: skip
FAMILIES: dict[Family, tuple[Task, ...]] = {
    "retrieval": ("cell", "row", "match", "kth", "neighbour", "absent"),
    "reasoning": ("difference", "sum", "ratio", "compare", "two_hop", "filter_lookup", "date_difference", "join"),
    "global": ("count", "total", "mean", "extreme", "mode", "group_best", "top_k", "distinct", "duplicates",
               "sorted", "join_count", "join_total"),
}  # fmt: skip


class TablesStage(StageSettings):
    """Conversations about long random tables; every answer computed, then checked from the rendered text."""

    kind: Literal["tables"] = "tables"
    model: str = Field(default="default", description="Model whose tokenizer measures the lengths.")
    count: int = Field(default=1000, ge=1, description="Number of conversations, one table (or joined pair) each.")
    min_tokens: Size = Field(
        default=2048, ge=32, description="Shortest target, in tokens of the whole conversation with its chat template."
    )
    max_tokens: Size = Field(
        default=100_000, ge=32, description="Longest target; targets are log-uniform between the two, never exceeded."
    )
    min_columns: int = Field(default=4, ge=2, le=12, description="Fewest columns, the key among them.")
    max_columns: int = Field(default=12, ge=2, le=12, description="Most columns, the key among them.")
    languages: list[Language] = Field(default=["en", "zh"], min_length=1, description="Drawn with equal chances.")
    renderings: list[Rendering] = Field(
        default=["pipe", "csv", "jsonl", "records", "html", "prose"],
        min_length=1,
        description="How tables are written; drawn with equal chances.",
    )
    families: list[Family] = Field(
        default=["retrieval", "reasoning", "global"], min_length=1, description="Task families, equal chances."
    )
    tasks: list[Task] | None = Field(
        default=None, min_length=1, description="Only these tasks of the families; all of them when left out."
    )
    answers: Literal["worked", "sentence"] = Field(
        default="worked",
        description="worked: steps, then the bare answer on the last line. sentence: one sentence that ends with it.",
    )
    turns: int = Field(default=3, ge=1, le=32, description="Most questions for one table; 1 to this many are drawn.")
    question_first: float = Field(default=0.2, ge=0, le=1, description="Share with the question before the table.")
    joins: float = Field(default=0.2, ge=0, le=1, description="Share with a second table that the first refers to.")
    near_keys: float = Field(default=0.3, ge=0, le=1, description="Share of tables in which some keys differ little.")
    missing: float = Field(default=0.3, ge=0, le=1, description="Share of tables with empty cells.")
    repeat_header: float = Field(
        default=0.2, ge=0, le=1, description="Share whose header comes again every 50-200 rows (pipe, CSV, HTML)."
    )
    split: Literal["train", "test"] = Field(
        default="train", description="Column titles, names, keys and wordings of the two splits are disjoint."
    )
    workers: int = Field(default=1, ge=1, description="Processes; the file is the same for any number.")

    @model_validator(mode="after")
    def _ranges(self) -> TablesStage:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})")
        if self.min_columns > self.max_columns:
            raise ValueError(f"min_columns ({self.min_columns}) is above max_columns ({self.max_columns})")
        allowed = {task for family in self.families for task in FAMILIES[family]}
        strange = sorted(set(self.tasks or ()) - allowed)
        if strange:
            raise ValueError(f"tasks {', '.join(strange)} belong to none of the families {', '.join(self.families)}")
        for family in self.families:
            if self.tasks and not set(FAMILIES[family]) & set(self.tasks):
                raise ValueError(f"family {family} has none of its tasks in `tasks`: {', '.join(FAMILIES[family])}")
        return self

    def chosen(self, family: Family) -> tuple[Task, ...]:
        """Tasks of one family that may be drawn."""
        return tuple(task for task in FAMILIES[family] if self.tasks is None or task in self.tasks)

    def derived(self, facts: ModelFacts | None) -> list[Derived]:
        from math import log

        low, high = self.min_tokens, self.max_tokens
        mean = low if low == high else (high - low) / log(high / low)
        reason = f"{self.count:,} x {mean:,.0f}, the mean of a log-uniform length in {low:,}-{high:,}"
        return [Derived("tokens", round(self.count * mean), reason)]

    def growing(self) -> set[str]:
        return {"count"}

    def without_effect(self) -> set[str]:
        return {"workers"}

    def cost(self) -> float:
        return 10.0 + self.derived(None)[0].value / 1.5e5
