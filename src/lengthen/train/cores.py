"""Which attention core computes a row on a CPU, and the autograd function around it. The CUDA core is in `cores_cuda`.

A row is a list of segments, each a document (or the visible part of a padded prompt) that attends within itself. Cores:

* `blockwise` (`lengthen.train.blockwise`): long segments, windows, soft caps, sinks.
* `sdpa`: torch's own CPU flash kernel, called per segment with grouped heads as they are; better for short segments.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from lengthen.common.errors import LengthenError, nearest
from lengthen.train import blockwise, threads
from lengthen.train.blockwise import Rule, Tiles, Workspace

Core = Literal["auto", "blockwise", "sdpa"]
SETTING = "LENGTHEN_ATTENTION"
# Below this many tokens torch's kernel wins: the tiles no longer fill the product.
SHORT_SEGMENT = 256
KEYS_AT_ONCE = 1 << 25  # elements of keys prepared (in float32) before their blocks run: bounds the extra memory


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
    """Attention of every segment, (B, H, Q, D) as a view of (B, Q, H, D); queries outside segments give zeros."""
    return _RowAttention.apply(q_BHQD, k_BGKD, v_BGKD, sinks_H, segments, rule)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Part:
    """One key/value head of one segment: where it lies in tensors of (B, G, R, Q, ...) and (B, G, K, D)."""

    segment: Segment
    group: int

    def queries_of(self, x_BGRQX: torch.Tensor) -> torch.Tensor:
        s = self.segment
        return x_BGRQX[s.batch, self.group, :, s.q_start : s.q_start + s.queries]

    def keys_of(self, x_BGKD: torch.Tensor) -> torch.Tensor:
        s = self.segment
        return x_BGKD[s.batch, self.group, s.k_start : s.k_start + s.keys]


def _batches(parts: list[_Part], dim: int) -> Iterator[list[_Part]]:
    batch: list[_Part] = []
    elements = 0
    for part in parts:
        size = part.segment.keys * dim
        # At least as many heads as workers together, or a single head's few blocks would have to feed them all.
        if len(batch) >= threads.worker_count() and elements + size > KEYS_AT_ONCE:
            yield batch
            batch, elements = [], 0
        batch.append(part)
        elements += size
    if batch:
        yield batch


def _split(segments: tuple[Segment, ...], rule: Rule, sinks: bool, groups: int) -> tuple[list[Segment], list[_Part]]:
    whole, parts = [], []
    for segment in segments:
        if choose_core(segment, rule, sinks) == "sdpa":
            whole.append(segment)
        else:
            parts += [_Part(segment, g) for g in range(groups)]
    return whole, parts


def _views(s: Segment, queries: tuple[torch.Tensor, ...], keys: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The segment's slices with a batch dimension of one."""
    at = slice(s.batch, s.batch + 1)
    return [x[at, :, s.q_start : s.q_start + s.queries] for x in queries] + [
        x[at, :, s.k_start : s.k_start + s.keys] for x in keys
    ]


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHQD, k_BGKD, v_BGKD, sinks_H, segments, rule):  # pyright: ignore
        batch, heads, queries, _ = q_BHQD.shape
        # (B, Q, H, D) in memory: what the next layer reads, so the transpose after attention costs nothing.
        out = q_BHQD.new_zeros(batch, queries, heads, v_BGKD.shape[-1]).transpose(1, 2)
        wide = torch.float64 if q_BHQD.dtype == torch.float64 else torch.float32
        norm_BHQ = torch.ones(batch, heads, queries, dtype=wide)
        shift_BHQ = torch.zeros(batch, heads, queries, dtype=wide)
        _forward(q_BHQD, k_BGKD, v_BGKD, sinks_H, segments, rule, out, norm_BHQ, shift_BHQ)
        ctx.save_for_backward(q_BHQD, k_BGKD, v_BGKD, sinks_H, out, norm_BHQ, shift_BHQ)
        ctx.segments, ctx.rule = segments, rule
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHQD):  # pyright: ignore
        q_BHQD, k_BGKD, v_BGKD, sinks_H, out, norm_BHQ, shift_BHQ = ctx.saved_tensors
        dq, dk, dv = torch.zeros_like(q_BHQD), torch.zeros_like(k_BGKD), torch.zeros_like(v_BGKD)
        _backward(
            q_BHQD, k_BGKD, v_BGKD, sinks_H is not None, ctx.segments, ctx.rule, out, norm_BHQ, shift_BHQ, grad_BHQD,
            dq, dk, dv,
        )  # fmt: skip
        dsinks_H = None
        if sinks_H is not None:
            delta_BHQ = (grad_BHQD.to(norm_BHQ.dtype) * out).sum(dim=-1)
            sink_BHQ = torch.exp2(sinks_H[:, None].to(norm_BHQ.dtype) * blockwise.LOG2E - shift_BHQ) / norm_BHQ
            dsinks_H = -(sink_BHQ * delta_BHQ).sum(dim=(0, 2)).to(sinks_H.dtype)
        return dq, dk, dv, dsinks_H, None, None


def _forward(
    q_BHQD: torch.Tensor, k_BGKD: torch.Tensor, v_BGKD: torch.Tensor, sinks_H: torch.Tensor | None,
    segments: tuple[Segment, ...], rule: Rule, out_BHQD: torch.Tensor, norm_BHQ: torch.Tensor, shift_BHQ: torch.Tensor,
) -> None:  # fmt: skip
    groups = k_BGKD.shape[1]
    whole, parts = _split(segments, rule, sinks_H is not None, groups)

    def flash(segment: Segment) -> None:
        q, out, norm, k, v = _views(segment, (q_BHQD, out_BHQD, norm_BHQ), (k_BGKD, v_BGKD))
        result, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, True, attn_mask=None, scale=rule.scale
        )
        out.copy_(result)
        norm.copy_(lse)  # this kernel keeps the logarithm of the sum where ours keeps the sum

    q, out, norm, shift = (x.unflatten(1, (groups, -1)) for x in (q_BHQD, out_BHQD, norm_BHQ, shift_BHQ))
    sinks_GR = None if sinks_H is None else sinks_H.unflatten(0, (groups, -1))
    scratch = threading.local()

    def block(job: tuple[_Part, Tiles, torch.Tensor, tuple[int, int]]) -> None:
        part, tiles, values_KD, (first, last) = job
        scratch.work = getattr(scratch, "work", None) or Workspace()
        blockwise.forward_block(
            tiles, values_KD, None if sinks_GR is None else sinks_GR[part.group], first, last, scratch.work,
            part.queries_of(out), part.queries_of(norm), part.queries_of(shift),
        )  # fmt: skip

    with blockwise.fast_products():
        threads.run(flash, whole)
        for batch in _batches(parts, q_BHQD.shape[-1]):
            jobs = []
            for part in batch:
                tiles = Tiles(part.queries_of(q), part.keys_of(k_BGKD), rule)
                values_KD = tiles.padded(part.keys_of(v_BGKD), tiles.narrow)
                jobs += [(part, tiles, values_KD, edges) for edges in tiles.blocks()]
            jobs.sort(key=lambda job: -job[3][1])  # the costliest blocks first, so that workers end together
            threads.run(block, jobs)


def _backward(
    q_BHQD: torch.Tensor, k_BGKD: torch.Tensor, v_BGKD: torch.Tensor, sinks: bool,
    segments: tuple[Segment, ...], rule: Rule, out_BHQD: torch.Tensor, norm_BHQ: torch.Tensor, shift_BHQ: torch.Tensor,
    grad_BHQD: torch.Tensor, dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor,
) -> None:  # fmt: skip
    groups = k_BGKD.shape[1]
    whole, parts = _split(segments, rule, sinks, groups)

    def flash(segment: Segment) -> None:
        query_side = (grad_BHQD, q_BHQD, out_BHQD, norm_BHQ, dq)
        grad, q, out, lse, dq_part, k, v, dk_part, dv_part = _views(segment, query_side, (k_BGKD, v_BGKD, dk, dv))
        results = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, True, attn_mask=None, scale=rule.scale
        )
        for target, result in zip((dq_part, dk_part, dv_part), results):
            target.copy_(result)

    query_side = (q_BHQD, grad_BHQD, out_BHQD, norm_BHQ, shift_BHQ, dq)
    q, grad, out, norm, shift, dq_BGRQD = (x.unflatten(1, (groups, -1)) for x in query_side)
    scratch = threading.local()

    def blocks(job: tuple[_Part, Tiles, blockwise.Saved, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        part, tiles, saved, turn, shares = job
        scratch.work = getattr(scratch, "work", None) or Workspace()
        return blockwise.backward_blocks(
            tiles, saved, tiles.blocks()[turn::shares], part.queries_of(dq_BGRQD), scratch.work
        )

    with blockwise.fast_products():
        threads.run(flash, whole)
        for batch in _batches(parts, q_BHQD.shape[-1]):
            jobs = []
            for part in batch:
                tiles = Tiles(part.queries_of(q), part.keys_of(k_BGKD), rule)
                state = (part.queries_of(x) for x in (grad, out, norm, shift))
                saved = blockwise.save(tiles, part.keys_of(v_BGKD), *state)
                # Each share sums its own dk and dv and the shares are added in order: same bytes every time, whichever
                # thread was faster. Every shares-th block, so that the shares cost the same.
                shares = min(threads.worker_count(), len(tiles.blocks()))
                jobs += [(part, tiles, saved, turn, shares) for turn in range(shares)]
            sums: dict[_Part, tuple[torch.Tensor, torch.Tensor]] = {}
            for job, (dk_KD, dv_KD) in zip(jobs, threads.run(blocks, jobs)):
                if job[0] in sums:
                    sums[job[0]][0].add_(dk_KD)
                    sums[job[0]][1].add_(dv_KD)
                else:
                    sums[job[0]] = (dk_KD, dv_KD)
            for part, (dk_KD, dv_KD) in sums.items():
                part.keys_of(dk).copy_(dk_KD[: part.segment.keys])
                part.keys_of(dv).copy_(dv_KD[: part.segment.keys])
