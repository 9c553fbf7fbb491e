"""Settings of the stage `self-lengthen`: a model that trains itself to write longer (arXiv 2410.23933).

Numbers without a remark are those of the authors' published code; "ours" marks where it is changed, and
docs/self-lengthen.md says why.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lengthen.recipe.base import Derived, ModelFacts, Settings, Size, StageSettings
from lengthen.recipe.stages.evaluate import EvaluateStage, SuiteSettings, samples_at
from lengthen.recipe.stages.self_lengthen_unread import unread

Language = Literal["en", "zh"]


class Sampling(Settings):
    """How answers are sampled."""

    temperature: float = Field(default=0.7, ge=0.0)
    top_p: float = Field(default=0.8, gt=0.0, le=1.0)
    top_k: int = Field(default=20, ge=0)
    repetition_penalty: float = Field(default=1.1, gt=0.0)
    max_new_tokens: Size = Field(default=16384, gt=0)
    stop: tuple[str, ...] = ()
    """Stop strings beside the end of the turn. None (ours): the original stops at every `---` and cuts tables."""


class Instruct(Settings):
    """Where instructions come from."""

    source: Literal["self", "templates", "file"] = "self"
    """self: the starting model writes them after the seeds, and judges them. templates: packaged topics x forms, for
    models too small to judge. file: a JSONL file with `instruction` (and `language`)."""
    file: str | None = None
    """JSONL file of instructions, for source: file."""
    count: int = Field(default=5000, gt=0)
    """Instructions of each macro-iteration, new each time."""
    seeds: str | None = None
    """JSONL file of seed instructions (`instruction`, `language`). Default: the packaged ones."""
    shown: int = Field(default=2, ge=1)
    """Examples shown; the next one is completed."""
    block: int = Field(default=500, gt=0)
    """Instructions that passed join the examples of later blocks of so many (serve.in_flight, where that is more)."""
    grow: bool = True
    """Examples come from seeds and earlier blocks (the Qwen tree); false: from the seeds alone (the Llama tree)."""
    judge: bool = True
    """The starting model must answer yes when asked whether the instruction fits a long text."""
    judge_temperature: float = Field(default=0.7, ge=0.0)
    max_new_tokens: Size = Field(default=1024, gt=0)
    above_words: int = 3
    below_words: int = 500
    tries: int = Field(default=10, ge=1)
    candidates_per_instruction: float = Field(default=3.0, ge=1.0)
    """Candidates at most, per instruction wanted; with fewer accepted by then the loop goes on with those, which is
    noted (ours). With under 2% accepted of the first 100 (or twice serve.in_flight) it stops."""
    near_duplicate: float = Field(default=0.7, gt=0.0, le=1.0)
    """ROUGE-L (F) from which two instructions are the same (Self-Instruct, arXiv 2212.10560; the original has none)."""
    evaluation_prompts: list[str] = Field(default_factory=list)
    """Files of evaluation prompts (JSONL with `prompt`, `query` or `instruction`; or text, one a line). Instructions
    near to one of them, or that share `shared_ngram` words in a row with one, are dropped and counted."""
    shared_ngram: int = Field(default=8, ge=2)


class Respond(Settings):
    """First answers: the bare instruction, no length asked."""

    samples: int = Field(default=2, ge=1)
    tries: int = Field(default=20, ge=1)
    system: str | None = None
    """System message; none by default."""


class Extend(Settings):
    """Two-stage extension: half of the text is extended, its beginning kept, the whole continued from there."""

    samples: int = Field(default=1, ge=1)
    """Extensions of each kept response (ours; the original makes 2, near-duplicates in the training data)."""
    per_instruction: int | None = Field(default=1, ge=1)
    """Selected extensions of one instruction that are trained on, the longest first (ours). null: all of them, as the
    original, whose two answers to an instruction give two rows that differ little."""
    tries: int = Field(default=20, ge=1)
    rounds: int = Field(default=3, ge=1)
    """Micro-iterations: how often a text is extended before it is judged by `growth`."""
    half: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of the text (in words) that stage one extends."""
    keep: float = Field(default=2 / 3, gt=0.0, lt=1.0)
    """Share of stage one's answer that is kept as the beginning; its end would make an abrupt joint."""
    growth: float = Field(default=1.2, ge=1.0)
    """A text is accepted with more than this many times the response's words."""


class Checks(Settings):
    """What an answer must satisfy. Each rule counts what it rejects."""

    ngram_words: int = Field(default=10, ge=2)
    ngram_signs: int = Field(default=13, ge=2)
    repeated_share: float = Field(default=0.02, ge=0.0, le=1.0)
    """Share of repeated n-grams allowed (ours; 0 is the original's rule: one repeated n-gram rejects)."""
    longest_copy: int = Field(default=40, ge=0)
    """Words of the longest stretch that may copy an earlier one (ours; the original: no n-gram twice)."""
    min_words: int = Field(default=20, ge=0)
    sentence_end: bool = True
    meta: bool = True
    """Refuse answers that open or close by talking about themselves ("Here is the revised version:")."""
    refusals: bool = True
    language: bool = True
    """Refuse answers in another script than the instruction's."""


class Retry(Settings):
    """What changes when an answer is rejected (ours; the original repeats the same request)."""

    after_cut: Literal["more-room", "stop", "same"] = "more-room"
    """An answer cut by the token limit is stored and marked, never accepted. more-room: one more try with twice the
    room, or with a higher repetition penalty when it was going round in circles; stop: none; same: like any other."""
    cut_tries: int = Field(default=1, ge=0)
    penalty_step: float = Field(default=0.05, ge=0.0)
    error_tries: int = Field(default=3, ge=1)
    """How often a request that ends in an error is given to the endpoint before its try counts as failed. Each time it
    may go out up to six times, with growing pauses, after 429, 5xx, a lost connection or garbage; a time-out ends it at
    once. Every try on the wire is counted (`resent`)."""


class Select(Settings):
    """Length-biased selection: keep a text of percentile p (0 = shortest) when u > strength (1 - p)^power."""

    enabled: bool = True
    strength: float = Field(default=2.0, ge=0.0)
    power: float = Field(default=3.0, gt=0.0)


class Constraints(Settings):
    """Length demands in the final data, verified against the text with LonGen's scorer."""

    share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of the final rows with a length demand."""
    weave: Literal["model", "append"] = "model"
    """model: the starting model writes the demand into the instruction; append: as a sentence at its end."""
    tries: int = Field(default=3, ge=1)
    low: int | Literal["auto"] = 2000
    high: int | Literal["auto"] = 8000
    step: int | Literal["auto"] = 1000
    """Numbers are multiples of this. auto (for all three): from the lengths that the model writes."""
    without_band: Literal["bare", "drop"] = "bare"
    """What becomes of a text that no band holds: bare keeps it with its bare instruction, so that the longest texts are
    not lost; drop leaves it out, as the original. It is counted either way."""
    double_step: float = Field(default=0.2, ge=0.0, le=1.0)
    """Probability of twice the step."""
    kinds: dict[Literal["about", "range", "above", "below"], float] = Field(
        default_factory=lambda: {"about": 0.4, "range": 0.25, "above": 0.1, "below": 0.25}
    )
    chinese_numerals: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of the Chinese demands whose number is written in Chinese numerals."""

    @field_validator("kinds")
    @classmethod
    def _some_kind(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or min(value.values()) < 0 or sum(value.values()) <= 0:
            raise ValueError("give at least one kind of demand a positive weight")
        return value


class RoleTraining(Settings):
    """LoRA training of Generator and Extender, through the stage `train`."""

    epochs: float = Field(default=4, gt=0)
    learning_rate: float = Field(default=1e-4, gt=0)
    warmup_ratio: float = Field(default=0.1, ge=0.0, lt=1.0)
    lora_rank: int = Field(default=8, ge=0)
    """Rank of the adapter on all linear layers (the original trainer's default); 0 trains all weights."""
    lora_alpha: int = Field(default=16, gt=0)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the training and of the merged model. A merge in bfloat16 rounds away the smallest changes of an adapter."""
    row_length: Size = Field(default=16384, gt=0)
    """Longer examples are left out and counted (the original cuts off their ending)."""
    rows_per_step: int = Field(default=8, ge=1)
    """Training rows of one step over all processes (the original: one on each of 8 GPUs)."""
    keep_line: float = Field(default=0.8, gt=0.0, le=1.0)
    """Probability with which a line of the first response stays in the Extender's outline."""
    replay: str | None = None
    """chat.jsonl of ordinary SFT data that is mixed in, against forgetting (ours; the original trains on survivors)."""
    replay_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the examples that come from `replay`."""
    launch: list[str] = Field(default_factory=list)
    """Launcher of the trainings as processes of their own, before `-m lengthen run ...`: [torchrun, --nproc-per-node,
    "8"]. Default: inside this process, on one GPU or the CPU."""
    least_rows: int = Field(default=1, ge=1)
    """With fewer survivors the loop stops and says why."""


class Final(Settings):
    """The last training data and the last training."""

    count: int = Field(default=5000, ge=0)
    """Fresh instructions answered by the last Generator."""
    samples: int = Field(default=1, ge=1)
    pool: list[Literal["fresh", "extended"]] = Field(default_factory=lambda: ["fresh", "extended"])
    """fresh: those answers; extended: also the kept texts of every macro-iteration."""
    train: bool = True
    start: Literal["generator", "model"] = "model"
    """What the final training starts from: the starting model, or the last Generator."""


class HeldOut(Settings):
    """Prompts that no training sees, answered after each macro-iteration: length up to the first repeated span over
    all of them, and the share that passes the checks."""

    file: str | None = None
    """JSONL file (`prompt`, `query` or `instruction`). Default: packaged topics that are kept out of the templates."""
    count: int = Field(default=40, ge=0)
    """Prompts used, spread evenly over the file; 0 measures nothing."""


class Serve(Settings):
    """The server of a production run. Without an endpoint the model runs inside this process."""

    endpoint: str | None = None
    """Base URL of an OpenAI-compatible endpoint (http://host:8000/v1). The loop prints the command that serves each
    macro-iteration, and stops with it when the endpoint lacks the adapters."""
    start_vllm: bool = False
    """Start `vllm serve` for each macro-iteration and stop it before training (needs vLLM)."""
    port: int = Field(default=8000, ge=1, le=65535)
    arguments: list[str] = Field(default_factory=list)
    """More arguments for `vllm serve`, such as --tensor-parallel-size 4."""
    start_minutes: float = Field(default=20, gt=0)
    """How long a started server may take until it answers."""
    in_flight: int = Field(default=256, ge=1)
    """Requests in flight at an endpoint (the original: 32 a GPU)."""
    batch: int | None = Field(default=None, ge=1)
    """Sequences decoded together inside this process; default: the engine's choice."""
    slowest_tokens_per_second: float = Field(default=2.0, gt=0)
    """A request may take base_seconds + max_new_tokens / this many seconds: no text is dropped for being long."""
    base_seconds: float = Field(default=120, gt=0)
    key: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the endpoint's key; local servers need none."""


class SelfLengthenStage(StageSettings):
    """A model trains itself to write longer: instructions, answers, two-stage extensions, selection, training."""

    kind: Literal["self-lengthen"] = "self-lengthen"
    model: str = "default"
    """Instruct model to start from: default, a folder, @stage or a Hub name."""
    method: Literal["self-lengthen", "plan-and-write", "back-translation"] = "self-lengthen"
    """The loop, or one of the baselines on the same engines: plan-and-write (AgentWrite, arXiv 2408.07055) or
    instructions written for long human texts (`texts`)."""
    texts: str | None = None
    """Documents (JSONL with `text`) for back-translation."""
    languages: list[Language] = Field(default_factory=lambda: ["en"], min_length=1)
    iterations: int = Field(default=3, ge=1)
    """Macro-iterations."""
    window: Size | None = None
    """Tokens of prompt and answer together; default: the model's own window."""
    prompts: str | None = None
    """Folder whose *.jinja2 and *.json files replace the packaged ones of the same name."""
    instruct: Instruct = Field(default_factory=Instruct)
    respond: Respond = Field(default_factory=Respond)
    extend: Extend = Field(default_factory=Extend)
    sampling: Sampling = Field(default_factory=Sampling)
    checks: Checks = Field(default_factory=Checks)
    retry: Retry = Field(default_factory=Retry)
    select: Select = Field(default_factory=Select)
    constraints: Constraints = Field(default_factory=Constraints)
    training: RoleTraining = Field(default_factory=RoleTraining)
    final: Final = Field(default_factory=Final)
    held_out: HeldOut = Field(default_factory=HeldOut)
    serve: Serve = Field(default_factory=Serve)
    template_options: dict[str, bool | int | str] = Field(default_factory=dict)
    """Variables of the chat template, as in `evaluate`: {enable_thinking: false} for a model that thinks aloud. They go
    to the in-process engine and to an endpoint (chat_template_kwargs), and change answers, so they are no part of
    `serve`, which may change between two calls."""
    evaluate: dict | None = None
    """Settings of an `evaluate` stage (suites: [longform]), run on the starting model, on the Generator after each
    macro-iteration and on the final model, inside this process. Its prompt files count as evaluation prompts; where
    longform's task `prompts` names no file, it asks the held-out prompts."""

    @model_validator(mode="after")
    def _needs(self) -> SelfLengthenStage:
        if self.instruct.source == "file" and not self.instruct.file:
            raise ValueError("instruct.source is 'file': give instruct.file, a JSONL file with `instruction`")
        if self.method == "back-translation" and not self.texts:
            raise ValueError("method is 'back-translation': give texts, a JSONL file of long documents with `text`")
        remote = bool(self.serve.endpoint) or self.serve.start_vllm
        if remote and self.method == "self-lengthen" and self.training.lora_rank == 0:
            raise ValueError("training.lora_rank 0 trains all weights, and an endpoint serves adapters: give it a rank")
        # A mistake shows now, not after the first training.
        if self.evaluate is not None and self.asks_held_out(self.evaluation("default")) and not self.held_out.count:
            raise ValueError("evaluate asks the held-out prompts (longform's task prompts), and held_out.count is 0")
        if problem := unread(self):
            raise ValueError(problem)
        return self

    @property
    def trainings(self) -> int:
        """Trainings of the Generator before the final one."""
        return self.iterations if self.method == "self-lengthen" else 0

    def evaluation(self, model: str, held_out: str | None = None) -> EvaluateStage:
        """The `evaluate` stage of a model. held_out: file for longform's task `prompts` where it names none."""
        plain = {"template_options": self.template_options, **(self.evaluate or {}), "kind": "evaluate", "model": model}
        stage = EvaluateStage.model_validate(plain)
        if held_out is None or not self.asks_held_out(stage):
            return stage
        suites = [
            suite.model_copy(update={"options": {**suite.options, "prompts": held_out}}) if _own(suite) else suite
            for suite in stage.suites
        ]
        return stage.model_copy(update={"suites": suites})

    @staticmethod
    def asks_held_out(stage: EvaluateStage) -> bool:
        """Whether an evaluation needs the file of the held-out prompts."""
        return any(map(_own, stage.suites))

    def evaluation_files(self) -> list[str]:
        """Files of prompts that no instruction may come near to: `instruct.evaluation_prompts`, and those of
        `evaluate`."""
        found = list(self.instruct.evaluation_prompts)
        if self.evaluate is not None:
            suites = self.evaluation("default").suites
            options = [one.options.get(name) for one in suites for name in ("longen", "longbench_write", "prompts")]
            found += [path for path in options if isinstance(path, str)]
        return list(dict.fromkeys(found))

    def external_inputs(self) -> list[str]:
        files = [
            self.texts, self.prompts, self.instruct.file, self.instruct.seeds, *self.evaluation_files(),
            self.held_out.file, self.training.replay,
        ]  # fmt: skip
        return [*super().external_inputs(), *(path for path in files if path and not path.startswith("@"))]

    def without_effect(self) -> set[str]:
        """Who serves the model changes no result that counts."""
        return {"serve"}

    def growing(self) -> set[str]:
        """All that the loop itself watches over: it refuses by name what a phase has read (selflengthen/locks.py)."""
        return {
            "iterations", "instruct", "respond", "extend", "sampling", "checks", "retry", "select", "constraints",
            "training", "final", "held_out", "evaluate",
        }  # fmt: skip

    def growing_inputs(self) -> set[str]:
        files = [self.instruct.file, self.instruct.seeds, *self.evaluation_files(), self.held_out.file]
        growing, lasting = (
            {path.split("/", 1)[0] if path.startswith("@") else path for path in paths if path}
            for paths in ((*files, self.training.replay), (self.model, self.texts, self.prompts))
        )
        return growing - lasting

    def cost(self) -> float:
        kept = kept_share(self.select.strength, self.select.power) if self.select.enabled else 1.0
        # About one and a half tries for an answer; extensions live from rejection (two or three tries of two texts).
        answers = self.instruct.count * self.respond.samples * min(self.respond.tries, 1.5)
        extensions = answers * kept * self.extend.samples * 2 * self.extend.rounds * min(self.extend.tries, 2.5) / 1.5
        final = self.final.count * self.final.samples * min(self.respond.tries, 1.5)
        texts = (answers + extensions) * self.iterations + final + self.held_out.count * (self.iterations + 2)
        # A text of the embedded model: some 800 tokens, at 150 tokens/s in batches on two cores.
        return 60.0 + 5.3 * texts + (self.trainings + 1 + self.final.train) * self._evaluation_cost()

    def _evaluation_cost(self) -> float:
        if self.evaluate is None:
            return 0.0
        stage = self.evaluation("default")
        long = [suite for suite in stage.suites if suite.suite == "longform"]
        counts = [samples_at(s.samples if s.samples is not None else stage.samples, stage.lengths[0]) for s in long]
        return stage.cost() + 5.3 * sum(count * len(s.tasks or [1, 2]) for count, s in zip(counts, long))

    def derived(self, facts: ModelFacts | None) -> list[Derived]:
        found: list[Derived] = []
        if self.window is None and facts is not None:
            found.append(Derived("window", facts.window, "the model's own window"))
        if self.method == "self-lengthen":
            responses = self.instruct.count * self.respond.samples
            kept = kept_share(self.select.strength, self.select.power) if self.select.enabled else 1.0
            rows = responses * kept * self.extend.samples * kept
            reason = "instructions x samples x kept x extensions x kept"
            found += [
                Derived("kept share", round(kept, 4), "integral of length-biased selection over all percentiles"),
                Derived("rows per role at most", int(self._most_rows(rows)), f"{reason}; extend.per_instruction"),
            ]
        return found

    def _most_rows(self, rows: float) -> float:
        each = self.extend.per_instruction
        return rows if each is None else min(rows, self.instruct.count * each)


def _own(suite: SuiteSettings) -> bool:
    """longform with prompts of one's own that are not named."""
    return suite.suite == "longform" and "prompts" in (suite.tasks or ()) and not suite.options.get("prompts")


def kept_share(strength: float, power: float) -> float:
    """Share of texts that length-biased selection keeps: 1 - integral of min(1, strength x^power), x = 1 - p.
    0.5953 for the original's 2 and 3."""
    edge = min(1.0, strength ** (-1 / power)) if strength > 0 else 1.0
    return 1.0 - (strength * edge ** (power + 1) / (power + 1) + (1.0 - edge))
