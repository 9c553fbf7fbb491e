"""Settings of the `instructions` stage: conversations that a model writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lengthen.recipe.base import Derived, ModelFacts, Size, StageSettings
from lengthen.recipe.stages.evaluate import EndpointSettings

Prompt = Literal["general", "summary", "reasoning", "extraction"]


class InstructionsStage(StageSettings):
    """Questions and answers about documents, both written by a model (LongAlign, arXiv 2401.18058, section 3.1)."""

    kind: Literal["instructions"] = "instructions"
    model: str = Field(default="default", description="Model to be trained: its tokenizer measures the lengths.")
    writer: str = Field(
        default="",
        description="Model that writes: a folder, a train stage (@name), a Hub name, 'default', or "
        "http://host:port/v1#model-name. Default: `model`.",
    )
    about: Literal["documents", "topics"] = Field(
        default="documents",
        description="documents: questions about long texts, asked and answered by the writer. topics: short everyday "
        "questions made by program, answered by the writer (short chats where none are at hand).",
    )
    documents: list[str] = Field(
        default_factory=list,
        description="about documents: texts as in the questions stage (folders, .jsonl, .parquet, @stage, "
        "package:NAME==VERSION, installed:NAME, python). One source is drawn for each conversation.",
    )
    count: int = Field(default=1000, ge=1, description="Number of conversations that are wanted.")
    tries: float = Field(
        default=2.0,
        ge=1,
        description="Asks for at most this many times `count` conversations; what is refused is made up.",
    )
    min_tokens: Size = Field(default=8192, ge=32, description="Shortest document, in tokens.")
    max_tokens: Size = Field(default=65_536, ge=32, description="Longest document; lengths are log-uniform.")
    languages: list[Literal["en", "zh"]] = Field(
        default=["en"],
        min_length=1,
        description="Languages, drawn; repeat one to draw it more often. The prompt is in the document's own language, "
        "and documents in other languages are left out and counted.",
    )
    prompts: list[Prompt] = Field(
        default=["general", "summary", "reasoning", "extraction"],
        min_length=1,
        description="Kinds of question that the writer is asked for, drawn with equal chances.",
    )
    questions: int = Field(default=5, ge=1, le=20, description="Questions asked for at once; one of them is drawn.")
    question_tokens: int = Field(default=512, ge=16, description="Room for the list of questions.")
    answer_tokens: int = Field(default=1024, ge=8, description="Room for the answer.")
    temperature: float = Field(default=0.7, ge=0, description="Of both; 0 is greedy.")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Of both.")
    min_answer_words: int = Field(default=3, ge=1, description="Shorter answers are refused.")
    question_first: float = Field(default=0.0, ge=0, le=1, description="Share with the question before the document.")
    batch: int = Field(default=64, ge=1, description="Conversations worked on at once.")
    endpoint: EndpointSettings = Field(default_factory=EndpointSettings, description="For a writer behind an endpoint.")

    @model_validator(mode="after")
    def _fits(self) -> InstructionsStage:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens})")
        if self.about == "documents" and not self.documents:
            raise ValueError("documents is empty; name texts, or set about: topics")
        if self.about == "topics" and self.documents:
            raise ValueError("documents have no meaning with about: topics")
        return self

    def derived(self, facts: ModelFacts | None) -> list[Derived]:
        if self.about == "topics":
            return []
        from math import log

        low, high = self.min_tokens, self.max_tokens
        mean = low if low == high else (high - low) / log(high / low)
        return [Derived("tokens read by the writer", round(2 * self.count * mean),
                        f"{self.count:,} documents of {mean:,.0f} tokens on average, read twice")]  # fmt: skip

    def growing(self) -> set[str]:
        return {"count"}

    def without_effect(self) -> set[str]:
        return {"batch", "endpoint"}

    def cost(self) -> float:
        read = 0 if self.about == "topics" else self.derived(None)[0].value
        # The embedded model on two cores reads about 1,500 tokens a second and writes 150 in batches.
        return 20.0 + read / 1500 + self.count * min(self.answer_tokens, 200) / 150

    def external_inputs(self) -> list[str]:
        known = ("@", "package:", "installed:")
        paths = [document.partition("#")[0] for document in self.documents]
        found = [p for p in paths if not p.startswith(known) and p != "python"]
        writer = [self.writer] if self.writer and not self.writer.startswith("@") else []
        return [*super().external_inputs(), *found, *writer]
