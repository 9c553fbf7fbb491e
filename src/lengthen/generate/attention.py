"""Attention while text is being written: many short rows over one shared beginning, few queries over long caches.

Long prompts go to `lengthen.train.attention`, whose cores are made for them. Here are the two cases that it does not
have: a beginning whose keys are kept once for all rows, and padded rows of a sliding-window layer whose keys are all
kept.

Parts of the keys are attended to separately and merged by their log-sum-exp, which is exact:
o = sum_p exp(lse_p - lse) o_p with lse = log sum_p exp(lse_p) (as in FlashAttention's split, arXiv 2205.14135, 3.1).
Letters: B rows, H query heads, G key heads, R = H / G, Q queries, T keys, P keys of the shared beginning, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

NAME = "lengthen-generate"
Part = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Beginning:
    """Keys and values of a beginning that all rows share: for each layer (1, G, P, D)."""

    layers: Sequence[Part]
    length: int


@dataclass(frozen=True)
class Rule:
    """scale of the scores; window: keys that a query sees, itself included; softcap of Gemma 2 (arXiv 2408.00118)."""

    scale: float
    window: int | None = None
    softcap: float | None = None


def register() -> None:
    """Make the attention known to transformers under `NAME`, around the one called "lengthen".

    No mask function goes with it: transformers then makes no mask at all.
    """
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from lengthen.train.attention import register as register_core

    register_core()
    core = ALL_ATTENTION_FUNCTIONS["lengthen"]
    AttentionInterface.register(NAME, _function(core))


def _function(core: Callable[..., Any]) -> Callable[..., Any]:
    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, beginning=None, **extra):
        # The core takes a window with padding for a cache that dropped keys; ours never drops any.
        padded_window = extra.get("sliding_window") is not None and extra.get("pad_lens") is not None
        if beginning is None and not padded_window:
            return core(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **extra)
        rows, queries = query.shape[0], query.shape[2]
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        rule = Rule(scale, extra.get("sliding_window"), extra.get("softcap"))
        sinks = extra.get("s_aux")
        parts = None if beginning is None else beginning.layers[module.layer_idx]
        out_BHQD = attend_rows(query, key, value, rule, extra.get("pad_lens"), parts, sinks)
        return out_BHQD.transpose(1, 2).reshape(rows, queries, *out_BHQD.shape[1::2]), None

    return attention


def attend_rows(
    q_BHQD: torch.Tensor,
    k_BGTD: torch.Tensor,
    v_BGTD: torch.Tensor,
    rule: Rule,
    pad_lens_B: torch.Tensor | None = None,
    beginning: Part | None = None,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of each row's last Q positions to its keys, and to a beginning that all rows share.

    Args:
        pad_lens_B: keys at the left of a row that do not count.
        beginning: (1, G, P, D) keys and values before those of the rows. Not together with a window.

    Returns:
        (B, H, Q, D). Queries that stand in a row's padding get zeros or garbage that nothing reads.
    """
    B, H, Q, D = q_BHQD.shape
    G, T = k_BGTD.shape[1:3]
    # Queries of one group's heads side by side: (B, G, R * Q, D), the keys are used as they lie.
    q_BGXD = q_BHQD.reshape(B, G, H // G * Q, D)
    mask = _mask(B, Q, T, rule.window, pad_lens_B, q_BHQD.device)
    if mask is not None:
        mask = mask.repeat(1, 1, H // G, 1)
    out_BGXD, lse_BGX = partial(q_BGXD, k_BGTD, v_BGTD, rule, mask)
    if beginning is not None:
        if rule.window is not None:
            raise ValueError("a shared beginning cannot be combined with a sliding window")
        k_1GPD, v_1GPD = beginning
        q_1GYD = q_BGXD.transpose(0, 1).reshape(1, G, -1, D)
        more_1GYD, more_1GY = partial(q_1GYD, k_1GPD, v_1GPD, rule, None)
        more_BGXD = more_1GYD.view(G, B, -1, D).transpose(0, 1)
        out_BGXD, lse_BGX = merge(out_BGXD, lse_BGX, more_BGXD, more_1GY.view(G, B, -1).transpose(0, 1))
    if sinks_H is not None:
        # A sink is a key of score s and value zero: it only takes weight.
        sinks_GX = sinks_H.float().view(G, H // G, 1).expand(G, H // G, Q).reshape(G, -1)
        out_BGXD = out_BGXD * torch.sigmoid(lse_BGX - sinks_GX)[..., None].to(out_BGXD.dtype)
    return out_BGXD.reshape(B, H, Q, D).to(q_BHQD.dtype)


def partial(
    q_BGXD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor, rule: Rule, mask_B1XT: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, log-sum-exp of the scores in fp32) over these keys alone. True in the mask = seen."""
    if q_BGXD.device.type == "cpu" and rule.softcap is None:
        bias = None
        if mask_B1XT is not None:
            # Finite, so that a query whose keys are all hidden (padding) gives no NaN.
            low = torch.finfo(q_BGXD.dtype).min / 2
            bias = torch.zeros(mask_B1XT.shape, dtype=q_BGXD.dtype).masked_fill_(~mask_B1XT, low)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_BGXD, k_BGTD, v_BGTD, 0.0, False, attn_mask=bias, scale=rule.scale
        )
    return partial_plain(q_BGXD, k_BGTD, v_BGTD, rule, mask_B1XT)


def partial_plain(
    q_BGXD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor, rule: Rule, mask_B1XT: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """`partial` in plain fp32 products, on any device; queries go in slices so that the scores stay small."""
    outs, sums = [], []
    k_BGDT, v = k_BGTD.float().transpose(-1, -2), v_BGTD.float()
    step = max(1, (1 << 26) // max(1, k_BGTD.shape[0] * k_BGTD.shape[1] * k_BGTD.shape[2]))
    for begin in range(0, q_BGXD.shape[2], step):
        scores = (q_BGXD[:, :, begin : begin + step].float() * rule.scale) @ k_BGDT
        if rule.softcap is not None:
            scores = rule.softcap * torch.tanh(scores / rule.softcap)
        if mask_B1XT is not None:
            scores = scores.masked_fill(~mask_B1XT[:, :, begin : begin + step], -1e30)
        sums.append(torch.logsumexp(scores, -1))
        outs.append(torch.softmax(scores, -1) @ v)
    return torch.cat(outs, 2), torch.cat(sums, 2)


def merge(
    a_BGXD: torch.Tensor, lse_a_BGX: torch.Tensor, b_BGXD: torch.Tensor, lse_b_BGX: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the union of two sets of keys, from attention over each."""
    lse_BGX = torch.logaddexp(lse_a_BGX, lse_b_BGX)
    share_a = torch.exp(lse_a_BGX - lse_BGX)[..., None]
    share_b = torch.exp(lse_b_BGX - lse_BGX)[..., None]
    return a_BGXD.float() * share_a + b_BGXD.float() * share_b, lse_BGX


def _mask(
    rows: int, queries: int, keys: int, window: int | None, pad_lens_B: torch.Tensor | None, device: torch.device
) -> torch.Tensor | None:
    """(B or 1, 1, Q, T), True where a query sees a key; None when all is seen."""
    if queries == 1 and pad_lens_B is None and (window is None or keys <= window):
        return None
    key_T = torch.arange(keys, device=device)
    query_Q1 = torch.arange(keys - queries, keys, device=device)[:, None]
    seen = key_T <= query_Q1
    if window is not None and keys > window:
        seen = seen & (key_T > query_Q1 - window)
    if pad_lens_B is None:
        return seen[None, None]
    return seen[None, None] & (key_T >= pad_lens_B.view(rows, 1, 1, 1))
