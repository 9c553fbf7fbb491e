"""Settings of the `train` stage."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from lengthen.common.errors import LengthenError
from lengthen.recipe.base import Derived, ModelFacts, Settings, Size, StageSettings, size_text
from lengthen.recipe.rope import RopeSettings, extend

RECOMPUTE_OVER = 4096  # tokens at once: beyond them activations outweigh the recomputing (a sixth of the speed)
PROLONG_BATCH = 4 * 2**20  # tokens a step of ProLong's first stage, arXiv 2410.02660, Table 9


class PositionSettings(Settings):
    """Which position each token of a row gets."""

    type: Literal["plain", "continuous", "pose", "skip"] = Field(
        default="plain",
        description="plain: 0, 1, 2 ... from each document's start. continuous: over the whole row. pose: two chunks, "
        "the second shifted (arXiv 2309.10400). skip: units of text keep their order and their inner positions, with "
        "random gaps between them up to a target (LongRecipe, arXiv 2409.00509).",
    )
    targets: list[Size] = Field(
        default_factory=list,
        description="pose, skip: target ranges; each document draws one. Repeat a value to draw it more often. "
        "Default: the stage's length.",
    )
    unit: tuple[int, int] = Field(
        default=(16, 160),
        description="skip: shortest and longest unit in tokens, where rows carry no unit_lens (conversations do).",
    )

    @model_validator(mode="after")
    def _fits(self) -> PositionSettings:
        if self.targets and self.type not in ("pose", "skip"):
            raise ValueError(f"targets have no meaning with positions.type {self.type}; use pose or skip")
        if self.type != "skip" and self.unit != type(self).model_fields["unit"].default:
            raise ValueError(f"unit has no effect with positions.type {self.type}; drop it, or use skip")
        if not 1 <= self.unit[0] <= self.unit[1]:
            raise ValueError("unit must be [shortest, longest] with 1 <= shortest <= longest")
        return self


class LoraSettings(Settings):
    """Train low-rank adapters instead of all weights; they are merged into the saved model."""

    rank: int = Field(default=16, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=32.0, gt=0, description="Scale: alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapters.")
    targets: list[str] | Literal["all-linear"] = Field(
        default="all-linear", description="Names of the layers that get adapters, or all-linear."
    )
    train_embeddings: bool = Field(
        default=False, description="Also train embeddings and norms in full (LongLoRA, arXiv 2309.12307)."
    )


class Gate(Settings):
    """A condition on an evaluate stage's scores."""

    scores: str = Field(description="The evaluate stage (@name) or its folder.")
    task: str = Field(description="Task or suite whose mean score counts.")
    length: Size | None = Field(default=None, description="Only rows of this length. Default: all lengths.")
    at_least: float = Field(description="Smallest score that passes (0..1), or share of `compared_to`'s score.")
    compared_to: str | None = Field(
        default=None, description="Another evaluate stage: the gate then asks for at_least x its score."
    )


class TrainStage(StageSettings):
    """Train a model on rows, with longer positions."""

    kind: Literal["train"] = "train"
    model: str = Field(default="default", description="Start model: @stage, folder, Hub name or default.")
    rows: list[str] = Field(min_length=1, description="Row folders or prepare stages (@name); all are used together.")
    length: Size | None = Field(
        default=None, gt=0, description="Context length to reach, in tokens. Default: the model's own."
    )
    rope: RopeSettings = Field(default_factory=RopeSettings, description="How positions are extended.")
    positions: PositionSettings = Field(default_factory=PositionSettings, description="Positions of training rows.")
    steps: int | None = Field(default=None, ge=1, description="Optimizer steps. One of steps, tokens, epochs.")
    tokens: Size | None = Field(default=None, gt=0, description="Tokens to train on, e.g. 20B.")
    epochs: float | None = Field(default=None, gt=0, description="Passes over the rows. Default, alone: 1.")
    batch_rows: int | None = Field(default=None, ge=1, description="Rows per optimizer step, over all ranks.")
    batch_tokens: Size | None = Field(default=None, gt=0, description="Tokens per optimizer step, over all ranks.")
    micro_batch: int = Field(default=1, ge=1, description="Rows that one rank passes through the model at once.")
    batching: Literal["balanced", "sorted", "random"] = Field(
        default="balanced",
        description="balanced: rows of a step are shared out by the sum of squared document lengths. sorted: each "
        "step takes rows of like length, the steps in random order (LongAlign's alternative to packing, arXiv "
        "2401.18058: for rows of packing none, with batch_rows above 1). random: as they come.",
    )
    loss: Literal["token", "sequence", "pack"] = Field(
        default="token",
        description="token: mean over all trained tokens of the step. sequence: every document counts the same "
        "(LongAlign eq. 2). pack: every row counts the same (eq. 3, for comparison).",
    )
    lr: float = Field(default=1e-5, gt=0, description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="After the warm-up.")
    lr_floor: float = Field(default=0.1, ge=0, le=1, description="Last learning rate as a share of the peak.")
    warmup: float = Field(default=0.1, ge=0, description="Warm-up: share of the steps below 1, else steps.")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="AdamW.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW.")
    weight_decay: float = Field(default=0.1, ge=0, description="AdamW; norms and biases are not decayed.")
    grad_clip: float = Field(default=1.0, ge=0, description="Largest gradient norm; 0 does not clip.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="bfloat16 keeps fp32 master weights. auto: bfloat16 where it is fast."
    )
    checkpointing: bool | Literal["auto"] = Field(
        default="auto",
        description="Recompute activations in the backward pass. auto: for rows (x micro_batch) over 4K tokens.",
    )
    activation_offload: bool = Field(default=False, description="Keep activations in main memory (GPUs).")
    liger: bool = Field(default=False, description="Use Liger's kernels (GPUs; pip install 'lengthen[gpu]').")
    lora: LoraSettings | None = Field(default=None, description="Adapters instead of full training.")
    sequence_parallel: int = Field(
        default=1,
        ge=1,
        description="Ranks that share each row's tokens (Ulysses, arXiv 2309.14509); must divide the number of "
        "processes and fit the model's heads. Needed where one row's activations do not fit one device.",
    )
    sharding: Literal["auto", "ddp", "fsdp2"] = Field(
        default="auto",
        description="ddp: every rank holds the whole model. fsdp2: weights, gradients and optimizer are shared out "
        "over all ranks. auto: fsdp2 on several GPUs, ddp on processors.",
    )
    optimizer_from: str | None = Field(
        default=None, description="A train stage (@name) whose optimizer state is carried on, with a fresh schedule."
    )
    requires: list[Gate] = Field(default_factory=list, description="Gates that must hold before this stage trains.")
    until: list[Gate] = Field(
        default_factory=list, description="When all of these hold already, the model is passed on untrained."
    )
    save_every: int | None = Field(default=None, ge=1, description="Steps between checkpoints.")
    keep: int = Field(default=2, ge=1, description="Checkpoints kept while training.")
    keep_after: int = Field(
        default=0, ge=0, description="Checkpoints kept after training (1 for optimizer_from, n for merging the last n)."
    )
    workers: int = Field(default=0, ge=0, description="Data loader processes.")
    report_to: list[str] = Field(default_factory=list, description="Trackers: wandb, tensorboard, mlflow ...")

    @model_validator(mode="before")
    @classmethod
    def _one_row_folder(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("rows"), str):
            return {**values, "rows": [values["rows"]]}
        return values

    @model_validator(mode="after")
    def _fits(self) -> TrainStage:
        if sum(value is not None for value in (self.steps, self.tokens, self.epochs)) > 1:
            raise ValueError("give only one of steps, tokens, epochs")
        if self.batch_rows is not None and self.batch_tokens is not None:
            raise ValueError("give only one of batch_rows, batch_tokens")
        if self.batching == "sorted" and self.batch_rows == 1:
            raise ValueError(
                "batching sorted has no effect with batch_rows 1, since it puts rows of like length into one step; "
                "raise batch_rows, or use balanced"
            )
        if self.keep_after > self.keep:
            raise ValueError(f"keep_after {self.keep_after} is more than keep {self.keep}")
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(f"warmup {self.warmup:g} is neither a share below 1 nor a whole number of steps")
        if self.schedule == "constant" and self.lr_floor != type(self).model_fields["lr_floor"].default:
            raise ValueError(
                "lr_floor has no effect with schedule constant, which stays at lr; drop it (or set it back to 0.1), "
                "or use another"
            )
        if self.steps is not None and (problem := warmup_problem(self, self.steps)):
            raise ValueError(problem)
        if self.positions.type in ("pose", "skip") and not self.positions.targets and self.length is None:
            raise ValueError(f"positions.type {self.positions.type} needs positions.targets, or the stage's length")
        return self

    def cost(self) -> float:
        # Rows of 2K tokens of the embedded model take about 6 s on two cores, optimizer step included.
        rows = self.batch_rows or 1
        return 30.0 + 6.0 * rows * (self.steps or 200)

    def external_inputs(self) -> list[str]:
        named = [*self.rows, self.optimizer_from or "", *(g.scores for g in (*self.requires, *self.until))]
        return [*super().external_inputs(), *(name for name in named if name and not name.startswith("@"))]

    def without_effect(self) -> set[str]:
        # The same numbers on any mesh and with or without recomputation: that is what the oracle proves. An
        # interrupted training goes on when only these differ (out of memory: `--set train.checkpointing=true`).
        return {
            "sequence_parallel", "sharding", "checkpointing", "activation_offload", "workers", "save_every", "keep",
            "report_to",
        }  # fmt: skip

    def derived(self, facts: ModelFacts | None) -> list[Derived]:
        found: list[Derived] = []
        if facts is not None:
            found += extend(facts, self.length, self.rope).derived
        if self.positions.type in ("pose", "skip") and not self.positions.targets and self.length:
            found.append(Derived("positions.targets", [self.length], "the stage's length"))
        if self.steps is None and self.tokens is None and self.epochs is None:
            found.append(Derived("epochs", 1, "neither steps, tokens nor epochs are set"))
        if self.length is not None and self.tokens is not None:
            # A guess, as if every row were full: the run itself knows its rows, and refuses a warm-up that is too long.
            found += batch_and_steps(self, self.length, self.tokens // self.length).derived
        return found


def warmup_problem(stage: TrainStage, steps: int) -> str | None:
    """A sentence where the warm-up is as long as the run, so that the learning rate would never reach `lr`."""
    if stage.warmup < max(1, steps):
        return None
    few = f"below {steps} or " if steps > 1 else ""
    return f"warmup is {stage.warmup:g} steps, the training {steps}: set warmup {few}as a share (0.1)"


def refuse_long_warmup(stage: TrainStage, steps: int) -> None:
    """Raises: LengthenError where `warmup_problem` has something to say about derived steps."""
    if problem := warmup_problem(stage, steps):
        raise LengthenError(f"{stage.name or 'train'}: {problem}.")


def recomputes(stage: TrainStage, row_length: int) -> bool:
    """Whether activations are computed again in the backward pass. `auto` looks at the longest line of tokens, before
    it is shared out to sequence-parallel ranks.

    Args:
        row_length: tokens of the longest row.
    """
    if stage.checkpointing == "auto":
        return row_length * stage.micro_batch > RECOMPUTE_OVER
    return stage.checkpointing


class Plan(Settings):
    """Rows per optimizer step and number of steps."""

    batch_rows: int
    steps: int
    derived: list[Derived]


def batch_and_steps(stage: TrainStage, row_length: int, rows: int, group: int = 1) -> Plan:
    """Derive what the settings leave open.

    Args:
        row_length: mean length of the rows, in tokens: shorter rows must not make a token budget smaller.
        rows: rows to be trained on once (all of the data set).
        group: rows that all ranks take at once; the batch is a multiple of it.
    """
    found: list[Derived] = []
    batch, why = stage.batch_rows, ""
    if batch is None:
        if stage.batch_tokens is not None:
            batch, why = stage.batch_tokens // row_length, f"{size_text(stage.batch_tokens)} tokens"
        else:
            # With the steps given, the rows are used once; else there shall be at least 100 steps.
            share = rows // stage.steps if stage.steps else _total_rows(stage, row_length, rows) // 100
            batch = max(1, min(PROLONG_BATCH // row_length, share))
            why = "4M tokens as ProLong, but " + ("each row once" if stage.steps else "at least 100 steps")
        batch = max(group, batch // group * group)
        found.append(Derived("batch_rows", batch, f"{why}; rows of {size_text(row_length)}, a multiple of {group}"))
    steps = stage.steps
    if steps is None:
        steps = max(1, math.ceil(_total_rows(stage, row_length, rows) / batch))
        source = f"{size_text(stage.tokens)} tokens" if stage.tokens else f"{stage.epochs or 1:g} x {rows:,} rows"
        found.append(Derived("steps", steps, f"{source} / {batch} rows a step"))
    return Plan(batch_rows=batch, steps=steps, derived=found)


def _total_rows(stage: TrainStage, row_length: int, rows: int) -> int:
    if stage.tokens is not None:
        return max(1, stage.tokens // row_length)
    return max(1, round((stage.epochs or 1.0) * rows))
