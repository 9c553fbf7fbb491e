"""Which attention core computes a row on a CPU, and the autograd function around it. The CUDA core is in `cores_cuda`.

A row is a list of segments, each a document (or the visible part of a padded prompt) that attends within itself. Cores:

* `blockwise` (`lengthen.train.blockwise`): long segments, windows, soft caps, sinks.
* `sdpa`: torch's own CPU flash kernel, called per segment with grouped heads as they are; better for short segments.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from lengthen.common.errors import LengthenError, nearest
from lengthen.train import blockwise
from lengthen.train.blockwise import Rule, Workspace

Core = Literal["auto", "blockwise", "sdpa"]
SETTING = "LENGTHEN_ATTENTION"
# Below this many tokens torch's kernel wins: the tiles no longer fill the product (benchmarks: docs of the training guide).
SHORT_SEGMENT = 512
TILE_ELEMENTS_PER_THREAD = (
    1 << 20
)  # score tiles of all heads at work: half an L3 slice; measured flat from 2^19 to 2^21


@dataclass(frozen=True)
class Segment:
    """Queries [q_start, q_start+queries) of one batch row see keys [k_start, k_start+keys), aligned at their ends."""

    batch: int
    q_start: int
    queries: int
    k_start: int
    keys: int


def core_setting() -> Core:
    """The user's choice of CPU core (environment variable LENGTHEN_ATTENTION): auto, blockwise or sdpa."""
    value = os.environ.get(SETTING, "auto")
    if value == "auto" or value == "blockwise" or value == "sdpa":
        return value
    raise LengthenError(
        f"{SETTING}={value!r} is not an attention core.",
        fix=f"unset it, or choose one: {nearest(value, ['auto', 'blockwise', 'sdpa'])}",
    )


@lru_cache(maxsize=1)
def has_amx() -> bool:
    """Whether torch's own kernel runs on matrix tiles (AMX), where it is about four times as fast as elsewhere."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())


def choose_core(segment: Segment, rule: Rule, sinks: bool) -> Core:
    """The core for one segment: by rule, not by timing, so that the same run makes the same numbers.

    `sdpa` cannot do soft caps, sinks, a window shorter than the segment, or fewer queries than keys (its causal mask
    is aligned at the start). Otherwise: as LENGTHEN_ATTENTION says, else `sdpa` on AMX and for short segments.
    """
    windowed = rule.window is not None and rule.window < segment.keys
    if sinks or windowed or rule.softcap is not None or segment.queries != segment.keys:
        return "blockwise"
    setting = core_setting()
    if setting != "auto":
        return setting
    return "sdpa" if has_amx() or segment.queries < SHORT_SEGMENT else "blockwise"


def row_attention(
    q_BHQD: torch.Tensor, k_BGKD: torch.Tensor, v_BGKD: torch.Tensor, sinks_H: torch.Tensor | None,
    segments: tuple[Segment, ...], rule: Rule,
) -> torch.Tensor:  # fmt: skip
    """Attention of every segment; queries outside of all segments give zeros. Returns (B, H, Q, D) as a view of (B, Q, H, D)."""
    return _RowAttention.apply(q_BHQD, k_BGKD, v_BGKD, sinks_H, segments, rule)  # type: ignore[no-any-return]


def _grouped(x_HXD: torch.Tensor, groups: int) -> torch.Tensor:
    return x_HXD.unflatten(0, (groups, -1))


def _head_slices(q_HQD: torch.Tensor, groups: int, keys: int) -> list[slice]:
    """Key/value heads taken together: as many as keep the processor busy without leaving its cache."""
    rep = q_HQD.shape[0] // groups
    rows = min(blockwise.BLOCK_ROWS, rep * q_HQD.shape[1])
    tile = max(rows, 1) * min(blockwise.TILE_COLS, keys)
    together = max(1, min(groups, torch.get_num_threads() * TILE_ELEMENTS_PER_THREAD // tile))
    return [slice(g, min(g + together, groups)) for g in range(0, groups, together)]


def _views(segment: Segment, *tensors: torch.Tensor) -> list[torch.Tensor]:
    where = slice(segment.q_start, segment.q_start + segment.queries)
    return [x[segment.batch][:, where] for x in tensors]


def _key_views(segment: Segment, *tensors: torch.Tensor) -> list[torch.Tensor]:
    where = slice(segment.k_start, segment.k_start + segment.keys)
    return [x[segment.batch][:, where] for x in tensors]


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHQD, k_BGKD, v_BGKD, sinks_H, segments, rule):  # pyright: ignore[reportIncompatibleMethodOverride]
        batch, heads, queries, _ = q_BHQD.shape
        groups = k_BGKD.shape[1]
        # (B, Q, H, D) in memory: what the next layer reads, so the transpose after attention costs nothing.
        out = q_BHQD.new_zeros(batch, queries, heads, v_BGKD.shape[-1]).transpose(1, 2)
        wide = torch.float64 if q_BHQD.dtype == torch.float64 else torch.float32
        norm_BHQ = torch.ones(batch, heads, queries, dtype=wide)
        shift_BHQ = torch.zeros(batch, heads, queries, dtype=wide)
        work = Workspace()
        with blockwise.fast_products():
            for segment in segments:
                q_HQD, out_HQD, norm_HQ, shift_HQ = _views(segment, q_BHQD, out, norm_BHQ, shift_BHQ)
                k_GKD, v_GKD = _key_views(segment, k_BGKD, v_BGKD)
                if choose_core(segment, rule, sinks_H is not None) == "sdpa":
                    part, lse_BHQ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                        q_HQD[None], k_GKD[None], v_GKD[None], 0.0, True, attn_mask=None, scale=rule.scale
                    )
                    out_HQD.copy_(part[0])
                    norm_HQ.copy_(lse_BHQ[0])
                    continue
                q_GRQD, out_GRQD, norm_GRQ, shift_GRQ = (
                    _grouped(x, groups) for x in (q_HQD, out_HQD, norm_HQ, shift_HQ)
                )
                sinks_GR = None if sinks_H is None else _grouped(sinks_H, groups)
                for g in _head_slices(q_HQD, groups, segment.keys):
                    blockwise.forward(
                        q_GRQD[g], k_GKD[g], v_GKD[g], rule, work, out_GRQD[g], norm_GRQ[g], shift_GRQ[g],
                        None if sinks_GR is None else sinks_GR[g],
                    )  # fmt: skip
        ctx.save_for_backward(q_BHQD, k_BGKD, v_BGKD, sinks_H, out, norm_BHQ, shift_BHQ)
        ctx.segments, ctx.rule = segments, rule
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHQD):  # pyright: ignore[reportIncompatibleMethodOverride]
        q_BHQD, k_BGKD, v_BGKD, sinks_H, out, norm_BHQ, shift_BHQ = ctx.saved_tensors
        groups = k_BGKD.shape[1]
        dq, dk, dv = torch.zeros_like(q_BHQD), torch.zeros_like(k_BGKD), torch.zeros_like(v_BGKD)
        dsinks_H = None if sinks_H is None else torch.zeros_like(sinks_H, dtype=norm_BHQ.dtype)
        work = Workspace()
        with blockwise.fast_products():
            for segment in ctx.segments:
                q_HQD, out_HQD, grad_HQD, dq_HQD = _views(segment, q_BHQD, out, grad_BHQD, dq)
                norm_HQ, shift_HQ = _views(segment, norm_BHQ, shift_BHQ)
                k_GKD, v_GKD, dk_GKD, dv_GKD = _key_views(segment, k_BGKD, v_BGKD, dk, dv)
                if choose_core(segment, ctx.rule, sinks_H is not None) == "sdpa":
                    parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                        grad_HQD[None], q_HQD[None], k_GKD[None], v_GKD[None], out_HQD[None], norm_HQ[None],
                        0.0, True, attn_mask=None, scale=ctx.rule.scale,
                    )  # fmt: skip
                    for target, part in zip((dq_HQD, dk_GKD, dv_GKD), parts):
                        target.copy_(part[0])
                    continue
                delta_HQ = (grad_HQD.to(norm_BHQ.dtype) * out_HQD).sum(dim=-1)
                if dsinks_H is not None:
                    sink_HQ = torch.exp2(sinks_H[:, None].to(norm_HQ.dtype) * blockwise.LOG2E - shift_HQ) / norm_HQ
                    dsinks_H -= (sink_HQ * delta_HQ).sum(dim=-1)
                query_side = [_grouped(x, groups) for x in (grad_HQD, delta_HQ, norm_HQ, shift_HQ, dq_HQD)]
                q_GRQD = _grouped(q_HQD, groups)
                for g in _head_slices(q_HQD, groups, segment.keys):
                    blockwise.backward(
                        q_GRQD[g], k_GKD[g], v_GKD[g], ctx.rule, work, *(x[g] for x in query_side), dk_GKD[g], dv_GKD[g]
                    )
        return dq, dk, dv, None if dsinks_H is None else dsinks_H.to(sinks_H.dtype), None, None
