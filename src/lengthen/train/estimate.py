"""What a training will cost before it runs: memory of each device by part, tokens per second, hours.

Operations per token (forward 1, backward 2, recomputing 1 more): 2 for each matrix weight, and for causal attention
2 x layers x width x s in a document of s tokens; attention's backward takes 2.5 forwards, since it recomputes scores
(arXiv 2307.08691, section 3.1). A row is priced as ONE document of the row's length: packed short documents cost less.
docs/plan.md compares the results with published and measured runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json
from lengthen.common.progress import clock
from lengthen.recipe.base import ModelFacts, size_text
from lengthen.recipe.schema import Recipe
from lengthen.recipe.stages.train import TrainStage, batch_and_steps, recomputes
from lengthen.train import heads
from lengthen.train.devices import GIB, Devices, parse_devices

__all__ = ["Estimate", "ModelSize", "estimate", "parse_devices", "render", "row_length_in"]

HEAD_TOKENS, HEAD_WORDS = 4096, 32768  # tile of the fused head (TRL): tokens x vocabulary entries
CPU_HEAD_TOKENS, CPU_HEAD_WORDS = 1024, 8192  # as lengthen.train.machine sets it on processors
PIECES = 1.05  # CPU: glibc keeps freed memory in pieces that do not all fit again (measured at 0.5K-4K rows)
STEP_BUCKET = 64 * 2**20  # elements whose fp32 gradients exist at once in an optimizer step


@dataclass(frozen=True)
class ModelSize:
    """Numbers of a decoder. layer: weights of one layer; active: those that one token passes through (fewer with
    experts); embedding: one vocabulary matrix; matrices: 1 when head and embedding are tied, else 2."""

    layers: int
    hidden: int
    inner: int
    query_width: int
    kv_width: int
    heads: int
    layer: int
    active: int
    embedding: int
    matrices: int

    @classmethod
    def of(cls, facts: ModelFacts) -> ModelSize:
        c: dict[str, Any] = facts.config
        hidden, layers = int(c["hidden_size"]), int(c["num_hidden_layers"])
        query, kv = facts.heads * facts.head_size, facts.kv_heads * facts.head_size
        attention = 2 * hidden * query + 2 * hidden * kv
        experts = int(c.get("num_local_experts") or c.get("num_experts") or 0)
        inner = int((experts and c.get("moe_intermediate_size")) or c["intermediate_size"])
        used = int(c.get("num_experts_per_tok") or 1) if experts else 1
        mlp = 3 * hidden * inner
        return cls(
            layers, hidden, inner * used, query, kv, facts.heads,
            layer=attention + mlp * max(experts, 1) + hidden * experts + 2 * hidden,
            active=attention + mlp * used + hidden * experts,
            embedding=int(c["vocab_size"]) * hidden,
            # transformers ties them when the config is silent.
            matrices=1 if c.get("tie_word_embeddings", True) else 2,
        )  # fmt: skip

    @property
    def kv_heads(self) -> int:
        return self.kv_width * self.heads // self.query_width

    @property
    def weights(self) -> int:
        return self.layers * self.layer + self.matrices * self.embedding + self.hidden


@dataclass(frozen=True)
class Estimate:
    """memory: GiB on each device by part. seconds: of one row; hours: None where neither steps nor tokens are given."""

    stage: str
    devices: Devices
    row_length: int
    sequence_parallel: int
    recompute: bool
    dtype: str
    memory: dict[str, float]
    flops_per_token: float
    tokens_per_second: float
    tokens: int | None
    hours: float | None
    advice: tuple[str, ...]

    @property
    def total_gib(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total_gib <= self.devices.type.memory_gib


def estimate(train: TrainStage, facts: ModelFacts, devices: Devices, row_length: int | None = None) -> Estimate:
    """Price a train stage.

    Args:
        facts: config of the start model.
        row_length: longest row in tokens; default: the stage's length, else the model's window. With skipped
            positions rows are shorter than the length they reach: give the prepare stage's `row_length`.

    `sequence_parallel` and `sharding` count as they are set: by default several GPUs share weights, gradients and
    optimizer (FSDP2), and each row lies on one device. Where that does not fit, the advice names what does.

    Raises:
        LengthenError: sequence_parallel does not divide the devices, or the model's heads.
    """
    size = ModelSize.of(facts)
    length = row_length or train.length or facts.window
    dtype, sp = _dtype(train, devices), train.sequence_parallel
    if devices.count % sp:
        raise LengthenError(
            f"sequence_parallel {sp} does not divide {devices.count} devices.",
            fix=f"set train.sequence_parallel to a divisor of {devices.count}, or name other --devices",
        )
    heads.check(size.heads, size.kv_heads, sp)
    memory = _memory(train, size, devices, length, sp, dtype)
    recompute = recomputes(train, length)
    work = _seconds_per_token(size, devices, length, recompute)
    speed = devices.count / work if not devices.is_cpu else 1 / work
    tokens = _tokens(train, length, devices.count // sp)
    hours = tokens / speed / devices.type.all_in / 3600 if tokens else None
    found = Estimate(
        train.name or "train", devices, length, sp, recompute, dtype, memory, flops_per_token(size, length, recompute),
        speed, tokens, hours, (),
    )  # fmt: skip
    advice = () if found.fits else tuple(_advice(found, train, size))
    return Estimate(**{**found.__dict__, "advice": advice})


def row_length_in(recipe: Recipe, train: TrainStage) -> int | None:
    """Longest row that a train stage will read: from its prepare stages' settings, or from finished row folders."""
    found: list[int] = []
    for name in train.rows:
        if name.startswith("@"):
            found.append(int(getattr(recipe.stage(name[1:].split("/", 1)[0]), "row_length", 0)))
            continue
        folder = Path(name).expanduser()
        file = next((f for f in (folder / "rows/dataset.json", folder / "dataset.json") if f.exists()), None)
        found.append(int(read_json(file).get("row_length", 0)) if file else 0)
    return max(found, default=0) or None


def flops_per_token(size: ModelSize, length: int, recompute: bool) -> float:
    """Operations of one trained token, recomputed ones included."""
    linear, attention = _work(size, length, recompute)
    return linear + attention


def _work(size: ModelSize, length: int, recompute: bool) -> tuple[float, float]:
    passes = 4 if recompute else 3
    # The fused head computes its product once more in the backward pass.
    linear = 2.0 * passes * size.layers * size.active + 2.0 * 4 * size.embedding
    attention = 2.0 * size.layers * size.query_width * length * (1 + 2.5 + (1 if recompute else 0))
    return linear, attention


def _seconds_per_token(size: ModelSize, devices: Devices, length: int, recompute: bool) -> float:
    linear, attention = _work(size, length, recompute)
    kind = devices.type
    return linear / (kind.peak * kind.linear) + attention / (kind.peak * kind.attention)


def _memory(
    train: TrainStage, size: ModelSize, devices: Devices, length: int, sp: int, dtype: str
) -> dict[str, float]:  # fmt: skip
    shards = devices.count if _shared(train, devices) else 1
    number = 2 if dtype == "bfloat16" else 4
    tokens = length * train.micro_batch // sp
    trained = _trained_weights(train, size)
    recompute = recomputes(train, length)
    # fp32 sums of gradients are needed only when a step adds up several micro-batches.
    gradient = 4 if _accumulates(train, length, devices.count // sp) else number
    state = 12 if number == 2 and train.lora is None else 8 if train.lora is None else 8 + 4 * (number == 2)
    whole_layers = 0 if shards == 1 else 2 * (size.layer + size.embedding / size.layers) * number
    step = 3 * 4.0 * min(STEP_BUCKET, trained / shards) if number == 2 else 0.0
    parts = {
        "weights": size.weights * number / shards + whole_layers,
        "gradients": trained * gradient / shards,
        "optimizer": trained * state / shards,
        "activations": _activations(size, tokens, number, recompute, train.activation_offload),
        "attention workspace": _attention_workspace(size, tokens, number, sp, devices.is_cpu),
        "loss": _loss(size, tokens, number, devices.is_cpu),
        "step workspace": step,
        "libraries": devices.type.overhead_gib * GIB,
    }
    if devices.is_cpu:
        parts["activations"] *= PIECES
        parts["loss"] *= PIECES
    # The optimizer's step uses the room of the backward pass again.
    parts["step workspace"] = max(0.0, step - parts["activations"] - parts["loss"])
    return {name: value / GIB for name, value in parts.items()}


def _shared(train: TrainStage, devices: Devices) -> bool:
    return train.sharding == "fsdp2" or (train.sharding == "auto" and not devices.is_cpu)


def _activations(size: ModelSize, tokens: int, number: int, recompute: bool, offload: bool) -> float:
    """Kept for the backward pass, per token and layer: input and output of both norms (fp32 copies inside), queries,
    keys, values before and after rotation, attention's output, gate, up, their product."""
    layer = tokens * (
        (4 * size.hidden + 3 * size.query_width + 4 * size.kv_width + 4 * size.inner) * number + 2 * 4 * size.hidden
    )
    if not recompute:
        return size.layers * layer + 2.0 * tokens * size.inner * number
    inputs = 0 if offload else size.layers * tokens * size.hidden * number
    # While a layer runs backward, gradients of its widest parts stand beside what it recomputed.
    return inputs + layer + 3.0 * tokens * size.inner * number


def _attention_workspace(size: ModelSize, tokens: int, number: int, sp: int, cpu: bool) -> float:
    """fp32 sums of dq, dk, dv and the softmax statistics; Ulysses adds send and receive buffers."""
    sums = 4.0 * tokens * (size.query_width + 2 * size.kv_width) + 4.0 * tokens * size.heads
    buffers = 2.0 * tokens * (2 * size.query_width + 2 * size.kv_width) * number if sp > 1 else 0.0
    return sums + buffers + (2**27 if cpu else 0)


def _loss(size: ModelSize, tokens: int, number: int, cpu: bool) -> float:
    """The fused head: one tile of logits (several fp32 copies where there is no Triton), fp32 gradients of the hidden
    states and of the vocabulary matrix."""
    most_tokens, most_words = (CPU_HEAD_TOKENS, CPU_HEAD_WORDS) if cpu else (HEAD_TOKENS, HEAD_WORDS)
    words = min(most_words, size.embedding // size.hidden)
    tile = min(tokens, most_tokens) * words * (number + (5 * 4 if cpu else 0))
    return tile + 4.0 * tokens * size.hidden + 4.0 * size.embedding


def _trained_weights(train: TrainStage, size: ModelSize) -> int:
    if train.lora is None:
        return size.weights
    widths = 4 * size.hidden + 2 * size.query_width + 2 * size.kv_width + 3 * (size.hidden + size.inner)
    adapters = size.layers * train.lora.rank * widths
    return adapters + (size.matrices * size.embedding if train.lora.train_embeddings else 0)


def _dtype(train: TrainStage, devices: Devices) -> str:
    if train.dtype != "auto":
        return train.dtype
    if devices.is_cpu:
        from lengthen.models import pick_dtype

        return pick_dtype("auto")[0]
    return "bfloat16"


def _accumulates(train: TrainStage, length: int, ranks: int) -> bool:
    return _batch_rows(train, length, ranks) > ranks * train.micro_batch


def _batch_rows(train: TrainStage, length: int, ranks: int) -> int:
    rows = train.tokens // length if train.tokens else 1
    return batch_and_steps(train, length, max(rows, 1), ranks * train.micro_batch).batch_rows


def _tokens(train: TrainStage, length: int, ranks: int) -> int | None:
    if train.tokens is not None:
        return train.tokens
    return train.steps * _batch_rows(train, length, ranks) * length if train.steps else None


def _advice(found: Estimate, train: TrainStage, size: ModelSize) -> list[str]:
    """What to change, the largest saving first."""
    memory, need = found.memory, found.total_gib - found.devices.type.memory_gib
    state = memory["weights"] + memory["gradients"] + memory["optimizer"]
    options: list[tuple[float, str]] = []
    if not found.recompute:
        options.append((memory["activations"] * 0.8, "checkpointing: true (recompute activations, a quarter slower)"))
    if train.micro_batch > 1:
        options.append((memory["activations"] * (1 - 1 / train.micro_batch), "micro_batch: 1"))
    if train.lora is None:
        options.append((memory["gradients"] + memory["optimizer"], "lora: {} (adapters instead of all weights)"))
    if not found.devices.is_cpu:
        ways = _more_parallel(found, train, size)
        options += ways or [(state / 2, f"{found.devices.count * 2} devices")]
        if not train.activation_offload and found.recompute:
            kept = size.layers * found.row_length * size.hidden * 2 / found.sequence_parallel / GIB
            options.append((kept, "activation_offload: true (layer inputs wait in main memory)"))
    half = found.row_length // 2
    saved = (memory["activations"] + memory["attention workspace"]) / 2
    options.append((saved, f"rows of {size_text(half)} (with positions.type: skip they still reach the same length)"))
    lines = [f"saves about {gib:.1f} GiB: {text}" for gib, text in sorted(options, reverse=True)]
    return [f"{need:.1f} GiB too much on each device.", *lines]


def _more_parallel(found: Estimate, train: TrainStage, size: ModelSize) -> list[tuple[float, str]]:
    """The smallest sequence parallelism that fits these devices, or the largest that there is."""
    ways = [
        (n, found.total_gib - sum(_memory(train, size, found.devices, found.row_length, n, found.dtype).values()))
        for n in range(found.sequence_parallel + 1, found.devices.count + 1)
        if found.devices.count % n == 0 and heads.fit(size.heads, size.kv_heads, n)
    ]
    need = found.total_gib - found.devices.type.memory_gib
    fitting = [way for way in ways if way[1] >= need] or ways[-1:]
    return [(saved, f"sequence_parallel: {n}") for n, saved in fitting[:1]]


def render(found: Estimate) -> str:
    """The estimate as text."""
    kind = found.devices.type
    title = f"{found.stage} on {found.devices.title}: rows of {size_text(found.row_length)}, {found.dtype}"
    if found.recompute:
        title += ", activations recomputed"
    if found.sequence_parallel > 1:
        title += f", sequence parallel over {found.sequence_parallel}"
    lines = [title]
    lines.append("  memory of each device" if not found.devices.is_cpu else "  memory")
    for name, gib in found.memory.items():
        lines.append(f"    {name:<20} {gib:8.2f} GiB")
    verdict = "fits" if found.fits else "does NOT fit"
    lines.append(f"    {'all':<20} {found.total_gib:8.2f} GiB, {verdict} in {kind.memory_gib:.0f} GiB")
    lines += [f"    -> {line}" for line in found.advice]
    each = f" ({found.tokens_per_second / found.devices.count:,.0f} each)" if found.devices.count > 1 else ""
    lines.append(f"  speed    {found.tokens_per_second:,.0f} tokens/s{each}, "
                 f"{found.flops_per_token / 1e9:,.1f} GFLOP a token at one document a row")  # fmt: skip
    if found.tokens is not None and found.hours is not None:
        device_hours = found.hours * found.devices.count
        lines.append(f"  work     {found.tokens:,} tokens in {clock(found.hours * 3600)}"
                     + (f", {device_hours:,.0f} device hours" if not found.devices.is_cpu else ""))  # fmt: skip
    else:
        billion = 1e9 / found.tokens_per_second / kind.all_in / 3600
        lines.append(f"  work     depends on the rows (epochs); 1 billion tokens take {billion:,.0f} hours")
    return "\n".join(lines)
