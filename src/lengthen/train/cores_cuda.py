"""Attention cores on a GPU: variable-length flash attention, else torch's own kernel document by document.

Written to the documented interfaces of `flash_attn.flash_attn_varlen_func` (through transformers' loader, which also
finds the Hub's `kernels` build) and `torch.nn.attention.varlen.varlen_attn`. UNTESTED on a GPU by this project's own
test suite, which has none and calls a stand-in for the kernel; `lengthen doctor --model M` runs the leak probe on the
machine at hand, and a training run does so before its first step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch

from lengthen.common.errors import LengthenError
from lengthen.train.blockwise import Rule
from lengthen.train.cores import Segment


def row_attention(
    q_BHQD: torch.Tensor, k_BGKD: torch.Tensor, v_BGKD: torch.Tensor, sinks_H: torch.Tensor | None,
    segments: tuple[Segment, ...], rule: Rule,
) -> torch.Tensor:  # fmt: skip
    """Same contract as `lengthen.train.cores.row_attention`, for CUDA tensors."""
    half = q_BHQD.dtype in (torch.float16, torch.bfloat16)
    flash = flash_varlen() if half else None
    if flash is not None and not _lacking(flash, sinks_H, rule):
        return _packed(q_BHQD, k_BGKD, v_BGKD, segments, rule, flash, sinks_H)
    if sinks_H is not None or rule.softcap is not None:
        raise LengthenError(
            "this model's attention uses " + ("sinks." if sinks_H is not None else f"softcap={rule.softcap}."),
            why="no installed GPU kernel supports it.",
            fix="install flash-attn (or `kernels`) in a version that does, or use attn_implementation='eager'.",
        )
    if half and torch_varlen() is not None:
        return _packed(q_BHQD, k_BGKD, v_BGKD, segments, rule, None, None)
    return _by_segment(q_BHQD, k_BGKD, v_BGKD, segments, rule)


@lru_cache(maxsize=1)
def flash_varlen() -> Callable[..., Any] | None:
    """flash-attention's variable-length function: an installed flash_attn (3, then 2), else None."""
    try:
        from flash_attn_interface import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

        return flash_attn_varlen_func
    except ImportError:
        pass
    try:
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]

        return flash_attn_varlen_func
    except ImportError:
        pass
    try:
        from kernels import get_kernel  # pyright: ignore[reportMissingImports]

        return getattr(get_kernel("kernels-community/flash-attn2"), "flash_attn_varlen_func", None)
    except (ImportError, OSError, RuntimeError, ValueError):  # not installed, no network, no build for this machine
        return None


@lru_cache(maxsize=1)
def torch_varlen() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _lacking(flash: Callable[..., Any], sinks_H: torch.Tensor | None, rule: Rule) -> bool:
    parameters = inspect.signature(flash).parameters
    return (sinks_H is not None and "s_aux" not in parameters) or (
        rule.softcap is not None and "softcap" not in parameters
    )


def _offsets(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _packed(
    q_BHQD: torch.Tensor, k_BGKD: torch.Tensor, v_BGKD: torch.Tensor, segments: tuple[Segment, ...], rule: Rule,
    flash: Callable[..., Any] | None, sinks_H: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """All segments in one launch: (tokens, heads, D) with offsets. Both kernels align causality at the end."""
    q_THD = _tokens(q_BHQD, [(s.batch, s.q_start, s.queries) for s in segments])
    k_TGD, v_TGD = (_tokens(x, [(s.batch, s.k_start, s.keys) for s in segments]) for x in (k_BGKD, v_BGKD))
    q_lens, k_lens = [s.queries for s in segments], [s.keys for s in segments]
    cu_q, cu_k = _offsets(q_lens, q_BHQD.device), _offsets(k_lens, q_BHQD.device)
    left = -1 if rule.window is None else rule.window - 1
    if flash is not None:
        extra: dict[str, Any] = {} if rule.softcap is None else {"softcap": rule.softcap}
        if sinks_H is not None:
            extra["s_aux"] = sinks_H
        out = flash(
            q_THD, k_TGD, v_TGD, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k,
            max_seqlen_q=max(q_lens), max_seqlen_k=max(k_lens),
            softmax_scale=rule.scale, causal=True, window_size=(left, 0 if left >= 0 else -1), **extra,
        )  # fmt: skip
        out = out[0] if isinstance(out, tuple) else out
    else:
        varlen = torch_varlen()
        assert varlen is not None
        out = varlen(
            q_THD, k_TGD, v_TGD, cu_q, cu_k, max(q_lens), max(k_lens), scale=rule.scale, window_size=(left, 0),
            enable_gqa=q_THD.shape[1] != k_TGD.shape[1],
        )  # fmt: skip
    return _back(out, q_BHQD, segments)


def _tokens(x_BHSD: torch.Tensor, spans: list[tuple[int, int, int]]) -> torch.Tensor:
    x_BSHD = x_BHSD.transpose(1, 2)
    if len(spans) > 1 and x_BSHD.shape[0] == 1 and sum(n for _, _, n in spans) == x_BSHD.shape[1]:
        return x_BSHD[0]  # a packed row without padding: already in order, nothing to copy
    parts = [x_BSHD[b, start : start + n] for b, start, n in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _back(out_THD: torch.Tensor, q_BHQD: torch.Tensor, segments: tuple[Segment, ...]) -> torch.Tensor:
    batch, heads, queries, _ = q_BHQD.shape
    if out_THD.shape[0] == batch * queries:
        return out_THD.view(batch, queries, heads, -1).transpose(1, 2)
    rows = []
    parts = dict(zip((s.batch for s in segments), out_THD.split([s.queries for s in segments])))
    for b in range(batch):  # only padded prompts leave places empty, and then each row is one segment at its end
        part = parts.get(b, out_THD[:0])
        rows.append(torch.nn.functional.pad(part, (0, 0, 0, 0, queries - part.shape[0], 0)))
    return torch.stack(rows).transpose(1, 2)


def _by_segment(
    q_BHQD: torch.Tensor, k_BGKD: torch.Tensor, v_BGKD: torch.Tensor, segments: tuple[Segment, ...], rule: Rule
) -> torch.Tensor:
    grouped = q_BHQD.shape[1] != k_BGKD.shape[1]
    parts = []
    for s in segments:
        q = q_BHQD[s.batch, :, s.q_start : s.q_start + s.queries][None]
        k, v = (x[s.batch, :, s.k_start : s.k_start + s.keys][None] for x in (k_BGKD, v_BGKD))
        windowed = rule.window is not None and rule.window < s.keys
        mask = None
        if windowed or s.queries != s.keys:
            position_Q1 = torch.arange(s.keys - s.queries, s.keys, device=q.device)[:, None]
            column_K = torch.arange(s.keys, device=q.device)
            mask = column_K <= position_Q1
            if rule.window is not None:
                mask = mask & (column_K > position_Q1 - rule.window)
        part = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=rule.scale, enable_gqa=grouped
        )
        parts.append(part[0].transpose(0, 1))
    out = torch.cat(parts) if parts else q_BHQD.new_zeros(0, q_BHQD.shape[1], v_BGKD.shape[-1])
    return _back(out, q_BHQD, segments)
