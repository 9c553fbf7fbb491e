"""Settings of the `evaluate` stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lengthen.recipe.base import Derived, ModelFacts, Settings, Size, StageSettings, size_text
from lengthen.recipe.rope import RopeSettings

Samples = int | dict[Size, int]
# Options of suites that name files of the user's.
_FILES = (
    "data", "demos", "documents", "hotpotqa", "labelled", "longbench_write", "longen", "prompts", "squad",
)  # fmt: skip


class SuiteSettings(Settings):
    """One suite of the evaluation; what is left open is taken from the stage."""

    suite: str = Field(description="Name of the suite, or of a single task of one (ruler's vt).")
    tasks: list[str] | None = Field(default=None, description="Its tasks. Default: the suite's own choice.")
    lengths: list[Size] | None = Field(default=None, description="Nominal lengths in tokens.")
    samples: Samples | None = Field(default=None, description="Samples per task and length: 20, or {4k: 20, 32k: 5}.")
    max_new_tokens: int | None = Field(default=None, ge=1, description="Room for the answer, inside the length.")
    options: dict[str, Any] = Field(default_factory=dict, description="The suite's own options; it checks their names.")


class EndpointSettings(Settings):
    """How to speak to an OpenAI-compatible endpoint."""

    api: Literal["auto", "chat", "completions"] = Field(
        default="auto", description="auto: chat where it can continue a given beginning, else completions."
    )
    concurrency: int = Field(default=8, ge=1, le=1024, description="Requests at once.")
    retries: int = Field(default=5, ge=0, le=20, description="Further tries after 429, 5xx, garbage, a time-out.")
    seconds: float = Field(default=60.0, gt=0, description="Time allowed to a request besides its tokens.")
    seconds_per_token: float = Field(default=0.5, gt=0, description="Time allowed for each token of the answer.")
    key: str = Field(
        default="OPENAI_API_KEY", description="Name of the environment variable that holds the endpoint's key."
    )


def _names_in_schema(schema: dict[str, Any]) -> None:
    """Editors may offer a plain name where settings can stand: `needle`, or `{suite: needle, samples: 20}`."""
    schema["items"] = {"anyOf": [{"type": "string"}, schema["items"]]}


class EvaluateStage(StageSettings):
    """How long a model really reads and writes: suites of tasks at nominal lengths, with intervals."""

    kind: Literal["evaluate"] = "evaluate"
    model: str = Field(
        default="default",
        description="A model folder, a train stage (@name), a Hub name, 'default', or http://host:port/v1#model-name.",
    )
    arm: str = Field(default="", description="The model's name in tables. Default: from the model's name.")
    suites: list[SuiteSettings] = Field(
        default_factory=lambda: [SuiteSettings(suite="needle")],
        min_length=1,
        json_schema_extra=_names_in_schema,
        description="Suites or single tasks, by name, or with settings of their own.",
    )
    lengths: list[Size] = Field(
        default_factory=lambda: [4096, 8192, 16384], min_length=1, description="Nominal lengths in tokens."
    )
    samples: Samples = Field(default=20, description="Samples per task and length: 20, or {4k: 20, 32k: 5}.")
    samples_seed: int = Field(
        default=0, ge=0, description="Which samples. Arms with the same seed are asked the same questions."
    )
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="Room for the answer, inside the length. Default: the task's own."
    )
    depths: list[float] | None = Field(
        default=None,
        description="Needle depths in percent, taken in turn. Default: evenly spread over any number of samples.",
    )
    haystack: str = Field(
        default="essays",
        description="Text around needles: 'essays' (the classic ones, from a package), 'noise', or a folder or file of "
        ".txt and .md.",
    )
    same_haystack: bool = Field(
        default=False,
        description="All depths of a round in the same piece of text: faster, but fewer independent contexts.",
    )
    template: Literal["on", "off", "raw"] = Field(
        default="on",
        description="on: the model's chat template. off: plain text with the tokenizer's begin token. raw: plain text.",
    )
    template_options: dict[str, bool | int | str] = Field(
        default_factory=dict, description="Variables of the chat template, e.g. {enable_thinking: false}."
    )
    ngrams: bool = Field(
        default=True, description="Write n-gram files of the samples, to clean training data of them (decontaminate)."
    )
    rope: RopeSettings | None = Field(
        default=None, description="Other position parameters without training, e.g. {type: yarn, factor: 4}."
    )
    beyond_window: Literal["warn", "refuse"] = Field(
        default="warn", description="A length beyond the model's window: measure it with a note, or stop."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Number format of the in-process model."
    )
    batch_size: int | None = Field(default=None, ge=1, description="Most texts at once. Default: by memory.")
    tokenizer: str | None = Field(
        default=None,
        description="Tokenizer of an endpoint's model: a folder or a Hub name, to count lengths.",
    )
    endpoint: EndpointSettings = Field(default_factory=EndpointSettings, description="For models behind an endpoint.")

    @field_validator("suites", mode="before")
    @classmethod
    def _names(cls, suites: Any) -> Any:
        if isinstance(suites, str):
            suites = [part.strip() for part in suites.split(",") if part.strip()]
        if isinstance(suites, list):
            return [{"suite": suite} if isinstance(suite, str) else suite for suite in suites]
        return suites

    @field_validator("depths")
    @classmethod
    def _percent(cls, depths: list[float] | None) -> list[float] | None:
        for depth in depths or []:
            if not 0 <= depth <= 100:
                raise ValueError(f"a depth is a percentage from 0 to 100, not {depth:g}")
        return depths

    @model_validator(mode="after")
    def _every_length_has_samples(self) -> EvaluateStage:
        for suite in self.suites:
            samples = self.samples if suite.samples is None else suite.samples
            if isinstance(samples, int):
                continue
            for length in suite.lengths or self.lengths:
                if length not in samples:
                    raise ValueError(f"samples names no number for {size_text(length)} ({suite.suite})")
        return self

    def without_effect(self) -> set[str]:
        return {"batch_size", "endpoint"}

    def external_inputs(self) -> list[str]:
        found = [self.haystack] if self.haystack not in ("essays", "noise") else []
        found += [self.tokenizer] if self.tokenizer else []
        options = [(key, part) for s in self.suites for key, value in s.options.items() for part in _parts(value)]
        # Options name files of texts and prompts, and models; only what exists as a path is hashed.
        listed = [v for key, v in options if isinstance(v, str) and (key in _FILES or "/" in v) and v != "essays"]
        return [*super().external_inputs(), *found, *listed]

    def growing(self) -> set[str]:
        return {"suites", "lengths", "samples"}

    def cost(self) -> float:
        total = 10.0
        for suite in self.suites:
            for length in suite.lengths or self.lengths:
                number = samples_at(self.samples if suite.samples is None else suite.samples, length)
                # Seconds of one prompt of the embedded model on two cores: linear and quadratic part.
                total += number * (length / 3000 + (length / 3500) ** 2) * len(suite.tasks or [1])
        return total

    def derived(self, facts: ModelFacts | None) -> list[Derived]:
        if self.arm or facts is None:
            return []
        return [Derived("arm", facts.folder.name, "the model's name")]


def _parts(value: Any) -> list[Any]:
    """A list's items, a mapping's values (helmet's `data`: file by task), or the value alone."""
    return value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]


def samples_at(samples: Samples, length: int) -> int:
    """Number of samples at a length."""
    return samples if isinstance(samples, int) else samples[length]
