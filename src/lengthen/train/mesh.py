"""Data parallel x sequence parallel: which rank reads which row, and Ulysses' exchange of heads for tokens.

Rank = dp_rank x sequence_parallel + sp_rank: the ranks of one sequence-parallel group are neighbours, so that their
exchange stays inside a machine. They read the same rows, each holds an equal share of the tokens, and around the
attention they trade (Ulysses, arXiv 2309.14509): every rank then sees ALL tokens for ITS share of the heads, so whole
documents, and document borders stay exact whatever the place at which a row is cut.

Gradients are averaged over all ranks and the loss is scaled to match (`trainer.LongTrainer.compute_loss`), so the same
code serves every DP x SP. What the tests (`test_oracle`, `test_sequence_parallel`) do not prove equal to one process
is refused here, before any compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lengthen.common import dist as launch
from lengthen.common.errors import LengthenError
from lengthen.train import heads as share
from lengthen.train.sampler import Ranks

_WHOLE_ROW_ROPE = ("dynamic", "longrope")  # transformers picks their frequencies by the largest position it is given
_ATTENTION_LAYERS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Mesh:
    """This process's place. `exchange` goes to `attention.set_exchange`; None without sequence parallelism."""

    ranks: Ranks
    exchange: Ulysses | None = None

    @property
    def world(self) -> int:
        return self.ranks.dp_size * self.ranks.sp_size


def ranks_of(sequence_parallel: int, rank: int, world: int) -> Ranks:
    """A rank's place in DP x SP.

    Raises:
        LengthenError: the number of processes is no multiple of `sequence_parallel`.
    """
    if world % sequence_parallel:
        more = -(-world // sequence_parallel) * sequence_parallel
        raise LengthenError(
            f"sequence_parallel is {sequence_parallel}, but the number of processes is {world}.",
            why="processes = data parallel x sequence parallel.",
            fix=f"start a multiple of {sequence_parallel}: torchrun --nproc-per-node {more} -m lengthen run ..., "
            "or lower sequence_parallel",
        )
    return Ranks(
        dp_rank=rank // sequence_parallel,
        dp_size=world // sequence_parallel,
        sp_rank=rank % sequence_parallel,
        sp_size=sequence_parallel,
    )


def open_mesh(sequence_parallel: int = 1) -> Mesh:
    """Join the process group of this launch, if there is one, and make the exchange of this rank's group.

    Every rank of the launch has to call this, with the same value.
    """
    rank, world = launch.rank(), launch.world_size()
    ranks = ranks_of(sequence_parallel, rank, world)
    if world == 1:
        return Mesh(ranks)
    if not dist.is_initialized():
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(launch.local_rank())
        dist.init_process_group("nccl" if gpu else "gloo")
    if sequence_parallel == 1:
        return Mesh(ranks)
    mine = None
    for first in range(0, world, sequence_parallel):  # all ranks make all groups, in one order: new_group demands it
        group = dist.new_group(list(range(first, first + sequence_parallel)))
        if first <= rank < first + sequence_parallel:
            mine = group
    # torch answers with a number on ranks outside of a group; this rank is inside of its own.
    assert isinstance(mine, dist.ProcessGroup)
    return Mesh(ranks, Ulysses(mine, sequence_parallel))


class Ulysses:
    """The exchange that `attention.set_exchange` takes. Both directions are differentiable.

    Fewer key/value heads than ranks: each is copied to the ranks whose query heads use it, and autograd adds their
    gradients up again. More travel as they are, never expanded to the query heads.
    """

    def __init__(self, group: dist.ProcessGroup, size: int) -> None:
        self.group, self.size = group, size

    def scatter_heads(self, x_BHSD: torch.Tensor) -> torch.Tensor:
        """(B, all heads, local tokens, D) -> (B, local heads, all tokens, D)."""
        heads, size = x_BHSD.shape[1], self.size
        if heads % size:
            if size % heads:
                raise LengthenError(
                    f"{heads} heads cannot be shared out to sequence_parallel {size}.", fix=share.sizes(heads, heads)
                )
            x_BHSD = x_BHSD.repeat_interleave(size // heads, dim=1)
        batch, heads, tokens, dim = x_BHSD.shape
        parts_PBhSD = x_BHSD.reshape(batch, size, heads // size, tokens, dim).transpose(0, 1)
        traded_PBhSD = _trade(parts_PBhSD, self.group)  # P now counts the ranks that the tokens came from
        return traded_PBhSD.permute(1, 2, 0, 3, 4).reshape(batch, heads // size, size * tokens, dim)

    def gather_heads(self, x_BhSD: torch.Tensor) -> torch.Tensor:
        """(B, local heads, all tokens, D) -> (B, all heads, local tokens, D)."""
        batch, heads, tokens, dim = x_BhSD.shape
        parts_PBhSD = x_BhSD.reshape(batch, heads, self.size, tokens // self.size, dim).permute(2, 0, 1, 3, 4)
        traded_PBhSD = _trade(parts_PBhSD, self.group)  # P now counts the ranks that the heads came from
        return traded_PBhSD.transpose(0, 1).reshape(batch, self.size * heads, tokens // self.size, dim)

    def join_tokens(self, x_BSV: torch.Tensor) -> torch.Tensor:
        """(B, local tokens, V) -> (B, all tokens, V) on every rank of the group, without gradient."""
        parts = [torch.empty_like(x_BSV, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, x_BSV.detach().contiguous(), group=self.group)
        return torch.cat(parts, dim=1)


class _Trade(torch.autograd.Function):
    """Part p of dimension 0 goes to rank p of the group. Its own inverse and its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        # The collective copies memory and knows nothing of strides. `empty_like` of a permuted tensor keeps the
        # permuted strides, and the numbers would land in the wrong places without any error.
        x = x.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _trade(grads[0], ctx.group), None


def _trade(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    out = _Trade.apply(x, group)
    assert isinstance(out, torch.Tensor)
    return out


# ---------------------------------------------------------------------------------------------- refusals


def check_sequence_parallel(
    config: Any, sequence_parallel: int, *, length: int | None = None, dropout: float = 0.0
) -> None:
    """Refuse what sequence parallelism is not proven for. `config`: the model's; `length`: the stage's, in tokens;
    `dropout`: of the adapters.

    Raises:
        LengthenError: with what to use instead.
    """
    size = sequence_parallel
    if size == 1:
        return
    text = config.get_text_config()
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    share.check(heads, kv_heads, size)
    if length is not None and length % size:
        raise LengthenError(
            f"length {length:,} cannot be cut into {size} equal parts (sequence_parallel).",
            fix=f"set length to {length // size * size or size:,} or {-(-length // size) * size:,}",
        )
    _refuse_rope(text, size)
    kinds = set(getattr(text, "layer_types", None) or ()) - set(_ATTENTION_LAYERS)
    if kinds:
        raise LengthenError(
            f"sequence_parallel {size} with {', '.join(sorted(kinds))} layers.",
            why="only attention trades heads for tokens; other layers would see a part of the row.",
            fix="use sequence_parallel: 1 with sharding: fsdp2 and checkpointing: true",
        )
    if hasattr(text, "output_router_logits") and getattr(text, "router_aux_loss_coef", 0.0):
        raise LengthenError(
            f"sequence_parallel {size} with a balancing loss of experts (router_aux_loss_coef "
            f"{text.router_aux_loss_coef}).",
            why="it is a mean over the tokens of a whole row, of which a rank sees a part.",
            fix="use sequence_parallel: 1, or set router_aux_loss_coef to 0 in the model's config.json",
        )
    rates = {k: v for k, v in text.to_dict().items() if ("dropout" in k or k.endswith("_pdrop")) and _positive(v)}
    if dropout:
        rates["lora.dropout"] = dropout
    if rates:
        shown = ", ".join(f"{key} {value}" for key, value in sorted(rates.items()))
        raise LengthenError(
            f"sequence_parallel {size} with dropout ({shown}).",
            why="parts of one row would drop by unrelated draws, and no test could prove the result.",
            fix="set it to 0, or use sequence_parallel: 1",
        )


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _refuse_rope(text: Any, size: int) -> None:
    rope = getattr(text, "rope_parameters", None) or {}
    nested = [part for part in rope.values() if isinstance(part, dict)]
    for part in nested or [rope]:
        kind = part.get("rope_type", "default")
        if kind in _WHOLE_ROW_ROPE:
            raise LengthenError(
                f"sequence_parallel {size} with the RoPE type {kind!r}.",
                why="its frequencies depend on the row's largest position, and a rank sees only its part of the row.",
                fix="extend with rope.type yarn, ntk or base, or use sequence_parallel: 1",
            )
