"""Attention that is told where documents end, plugged into transformers under the name "lengthen".

transformers infers documents from jumps in `position_ids`, which cuts a row whose positions are skipped on purpose
(PoSE, LongRecipe) and mixes documents as soon as an attention mask comes along. Here the boundaries arrive as the
keyword `doc_lens`, which transformers passes from `model(...)` down to this function untouched. Without it the row is
ONE document.

    from lengthen.train.attention import register
    register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="lengthen")
    model(input_ids=row_1S, position_ids=positions_1S, doc_lens=torch.tensor([700, 300, 24]))

Sequence parallelism hooks in through `set_exchange`: around the core, every rank then holds whole documents for its
share of the heads (Ulysses, arXiv 2309.14509), so `doc_lens` always describes the whole row.

Environment: LENGTHEN_ATTENTION = auto | blockwise | sdpa chooses the core on a CPU (see `lengthen.train.cores`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from lengthen.common.errors import LengthenError
from lengthen.train.blockwise import Rule
from lengthen.train.cores import Segment, row_attention

NAME = "lengthen"
FEW_QUERIES = 32  # decoding: below this the work is reading the keys once, which torch's kernel does best


class Exchange(Protocol):
    """Sequence parallelism around the core. Both directions must be differentiable and return contiguous tensors."""

    def scatter_heads(self, x_BHSD: torch.Tensor) -> torch.Tensor:
        """(B, all heads, local tokens, D) -> (B, local heads, all tokens, D)."""
        ...

    def gather_heads(self, x_BhSD: torch.Tensor) -> torch.Tensor:
        """(B, local heads, all tokens, D) -> (B, all heads, local tokens, D)."""
        ...


_exchange: Exchange | None = None


def set_exchange(exchange: Exchange | None) -> Exchange | None:
    """Put an exchange around every later attention call of this process; None takes it away. Returns the one before."""
    global _exchange
    before, _exchange = _exchange, exchange
    return before


def attend(
    q_BHQD: torch.Tensor,
    k_BGKD: torch.Tensor,
    v_BGKD: torch.Tensor,
    *,
    doc_lens: Sequence[int] | torch.Tensor | None,
    scale: float | None = None,
    window: int | None = None,
    sinks_H: torch.Tensor | None = None,
    softcap: float | None = None,
    pad_lens: Sequence[int] | torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of each document with itself; cost is the sum of the squared document lengths.

    Args:
        q_BHQD, k_BGKD, v_BGKD: queries, keys, values; each of the G key/value heads serves H/G query heads in turn.
            Q < K means that the queries are the last Q positions of one document (decoding, chunked prefill).
        doc_lens: lengths of the row's documents, adding up to Q; needs B = 1. None: one document per batch row.
        scale: factor of the scores, 1/sqrt(D) when None.
        window: a query sees itself and the window-1 keys before it (transformers' `sliding_window`).
        sinks_H: one learned score per head that takes part in the softmax and carries no value (gpt-oss).
        softcap: scores become softcap * tanh(score / softcap) (Gemma 2).
        pad_lens: tokens of left padding per batch row; their keys are seen by nobody, their outputs are zero.

    Returns: (B, H, Q, D), in memory (B, Q, H, D).

    Raises: LengthenError for shapes and lengths that do not fit together.
    """
    _check_shapes(q_BHQD, k_BGKD, v_BGKD, sinks_H)
    rule = Rule(q_BHQD.shape[-1] ** -0.5 if scale is None else float(scale), window, softcap)
    if window is not None and window < 1:
        raise LengthenError(
            f"window={window} leaves a token nothing to see.", fix="use a window of 1 or more, or none."
        )
    lens, pads = _as_ints(doc_lens), _as_ints(pad_lens)
    segments = _segments(q_BHQD.shape[0], q_BHQD.shape[2], k_BGKD.shape[2], lens, pads)
    if q_BHQD.is_cuda:
        from lengthen.train import cores_cuda

        return cores_cuda.row_attention(q_BHQD, k_BGKD, v_BGKD, sinks_H, segments, rule)
    if q_BHQD.shape[2] < min(FEW_QUERIES, k_BGKD.shape[2]) and sinks_H is None and softcap is None:
        return _few_queries(q_BHQD, k_BGKD, v_BGKD, pads, rule)
    return row_attention(q_BHQD, k_BGKD, v_BGKD, sinks_H, segments, rule)


def _as_ints(lens: Sequence[int] | torch.Tensor | None) -> tuple[int, ...] | None:
    if lens is None:
        return None
    return tuple(int(n) for n in torch.as_tensor(lens).flatten().tolist())


def _check_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None) -> None:
    if q.shape[0] != k.shape[0] or k.shape[:3] != v.shape[:3] or q.shape[-1] != k.shape[-1]:
        raise LengthenError(
            f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit together.",
            fix="pass (batch, heads, tokens, head size), with equal batch and head size, and equal keys and values.",
        )
    if q.shape[1] % k.shape[1]:
        raise LengthenError(
            f"{q.shape[1]} query heads cannot share {k.shape[1]} key/value heads evenly.",
            fix="the number of query heads must be a multiple of the number of key/value heads.",
        )
    if sinks is not None and sinks.shape != (q.shape[1],):
        raise LengthenError(
            f"sinks {tuple(sinks.shape)} for {q.shape[1]} heads.", fix="pass one sink score per query head."
        )


def _segments(
    batch: int, queries: int, keys: int, lens: tuple[int, ...] | None, pads: tuple[int, ...] | None
) -> tuple[Segment, ...]:
    if queries > keys:
        raise LengthenError(f"{queries} queries for {keys} keys.", why="every query is also a key in causal attention.")
    if lens is None:
        if pads is None:
            return tuple(Segment(b, 0, queries, 0, keys) for b in range(batch))
        return _padded_segments(batch, queries, keys, pads)
    if pads is not None and any(pads):
        raise LengthenError(
            "doc_lens together with padding.", fix="rows with doc_lens are never padded: concatenate them."
        )
    if batch != 1:
        raise LengthenError(
            f"doc_lens with a batch of {batch} rows.",
            why="the lengths describe one row.",
            fix="concatenate the rows into one of batch size 1 and join their doc_lens.",
        )
    if any(n < 1 for n in lens) or sum(lens) != queries:
        shown = f"{list(lens[:8])}{'...' if len(lens) > 8 else ''}"
        raise LengthenError(
            f"doc_lens {shown} add up to {sum(lens)}, the row has {queries} tokens.",
            fix="give the length (1 or more) of every document in the row, in order.",
        )
    if queries != keys and len(lens) > 1:
        raise LengthenError(
            f"{len(lens)} documents in {queries} tokens that follow {keys - queries} cached ones.",
            why="the cache does not say which document its tokens belong to.",
            fix="run packed rows without a cache (use_cache=False), or continue one document.",
        )
    segments, start = [], 0
    for n in lens:
        whole = len(lens) == 1
        segments.append(Segment(0, start, n, start, keys if whole else n))
        start += n
    return tuple(segments)


def _padded_segments(batch: int, queries: int, keys: int, pads: tuple[int, ...]) -> tuple[Segment, ...]:
    if len(pads) != batch or any(not 0 <= n <= keys for n in pads):
        raise LengthenError(
            f"pad_lens {list(pads[:8])} for {batch} rows of {keys} keys.",
            fix="give one number of padding tokens per row.",
        )
    segments = []
    for b, pad in enumerate(pads):
        hidden = max(0, pad - (keys - queries))  # padding among the queries themselves: only while prefilling
        if hidden < queries:
            segments.append(Segment(b, hidden, queries - hidden, pad, keys - pad))
    return tuple(segments)


def _few_queries(
    q_BHQD: torch.Tensor, k_BGKD: torch.Tensor, v_BGKD: torch.Tensor, pads: tuple[int, ...] | None, rule: Rule
) -> torch.Tensor:
    """Decoding. The heads of a group become queries of one head, so that no key is copied or read twice."""
    batch, heads, queries, dim = q_BHQD.shape
    groups, keys = k_BGKD.shape[1:3]
    folded_BGMD = q_BHQD.reshape(batch, groups, heads // groups * queries, dim)
    seen_BQK = None
    windowed = rule.window is not None and rule.window < keys
    if queries > 1 or windowed or (pads is not None and any(pads)):
        position_Q1 = torch.arange(keys - queries, keys)[:, None]
        column_K = torch.arange(keys)
        seen_BQK = (column_K <= position_Q1)[None]
        if windowed:
            assert rule.window is not None
            seen_BQK = seen_BQK & (column_K > position_Q1 - rule.window)
        if pads is not None:
            seen_BQK = seen_BQK & (column_K >= torch.tensor(pads)[:, None, None])
    blind_BQ = None
    mask = None
    if seen_BQK is not None:
        blind_BQ = ~seen_BQK.any(dim=-1)
        seen_BQK = seen_BQK | blind_BQ[..., None]  # a padded query would divide by zero; its output is cleared below
        mask = seen_BQK.repeat(1, heads // groups, 1)[:, None]
    out = torch.nn.functional.scaled_dot_product_attention(
        folded_BGMD, k_BGKD, v_BGKD, attn_mask=mask, scale=rule.scale
    ).reshape(batch, heads, queries, v_BGKD.shape[-1])
    if blind_BQ is not None and bool(blind_BQ.any()):
        out = out.masked_fill(blind_BQ[:, None, :, None], 0.0)
    return out


# ---------------------------------------------------------------------------------------------- transformers


def register() -> None:
    """Make `attn_implementation="lengthen"` known to transformers. May be called any number of times."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, transformers_attention)
    AttentionMaskInterface.register(NAME, transformers_mask)


def transformers_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    doc_lens: torch.Tensor | Sequence[int] | None = None,
    pad_lens: torch.Tensor | Sequence[int] | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every layer: query (B, H, Q, D) -> (B, Q, H, D), no weights.

    Extra keywords of transformers (position_ids, cache positions, flash-attention boundaries ...) carry nothing that
    changes causal attention, except those that `_refuse_unknown_rules` names.
    """
    _refuse_unknown_rules(module, dropout, is_causal, sliding_window, kwargs)
    pads = _padding(attention_mask, pad_lens, doc_lens, query, key, sliding_window)
    exchange = _exchange
    if exchange is not None:
        if pads is not None and any(pads):
            raise LengthenError(
                "left padding under sequence parallelism.",
                fix="pass doc_lens, or generate without sequence parallelism.",
            )
        if s_aux is not None:  # shared out exactly as the heads are, so its gradient flows back as theirs
            sinks_BHS1 = s_aux[None, :, None, None].expand(query.shape[0], -1, query.shape[2], 1)
            s_aux = exchange.scatter_heads(sinks_BHS1)[0, :, 0, 0]
        query, key, value = (exchange.scatter_heads(x) for x in (query, key, value))
    out = attend(
        query, key, value, doc_lens=doc_lens, scale=scaling, window=sliding_window, sinks_H=s_aux, softcap=softcap,
        pad_lens=pads,
    )  # fmt: skip
    if exchange is not None:
        out = exchange.gather_heads(out)
    return out.transpose(1, 2).contiguous(), None


_OTHER_RULES = {
    "position_bias": "a position bias added to the scores",
    "head_mask": "a mask over heads",
    "block_sequence_ids": "blocks that see themselves in both directions",
    "cu_seq_lens_q": "document boundaries in flash-attention form",
    "cache": "a paged cache",
}


def _refuse_unknown_rules(
    module: torch.nn.Module, dropout: float, is_causal: bool | None, window: int | None, kwargs: dict[str, Any]
) -> None:  # fmt: skip
    use_other = 'load the model with attn_implementation="sdpa" or "eager" instead.'
    if is_causal is False or (is_causal is None and getattr(module, "is_causal", True) is False):
        raise LengthenError(
            f"{type(module).__name__} attends in both directions.", why="lengthen's is causal.", fix=use_other
        )
    if dropout:
        raise LengthenError(
            f"attention_dropout={dropout} in training.",
            why="the fast cores have no dropout, and long-context training uses none.",
            fix="set model.config.attention_dropout = 0.0.",
        )
    for name, meaning in _OTHER_RULES.items():
        if kwargs.get(name) is not None:
            fix = "pass doc_lens." if name == "cu_seq_lens_q" else use_other
            raise LengthenError(
                f"the model passes {name!r}, {meaning}.", why="lengthen's attention has no such rule.", fix=fix
            )
    kinds = getattr(getattr(module, "config", None), "layer_types", None)
    index = getattr(module, "layer_idx", None)
    kind = kinds[index] if kinds and index is not None and index < len(kinds) else "full_attention"
    if kind == "chunked_attention" or (kind == "sliding_attention" and window is None):
        raise LengthenError(
            f"layer {index} of {type(module).__name__} is a {kind!r} layer, but gives its attention no window.",
            why="it relies on a mask, which lengthen's attention does not read.",
            fix=use_other,
        )


def _padding(
    attention_mask: torch.Tensor | None, pad_lens: torch.Tensor | Sequence[int] | None,
    doc_lens: torch.Tensor | Sequence[int] | None, query: torch.Tensor, key: torch.Tensor, window: int | None,
) -> tuple[int, ...] | None:  # fmt: skip
    """Left padding per row, from the keyword or from the two-dimensional mask; any other mask is refused."""
    pads = _as_ints(pad_lens)
    if attention_mask is None:
        if pads and any(pads) and window is not None and key.shape[2] >= window > query.shape[2]:
            raise LengthenError(
                "pad_lens with a sliding-window cache.",
                why="the cache drops old keys, so the padding can no longer be placed.",
                fix="pass the usual attention_mask (batch, tokens) instead of pad_lens.",
            )
        return pads
    if attention_mask.ndim != 2 or attention_mask.shape != (key.shape[0], key.shape[2]):
        raise LengthenError(
            f"an attention mask of shape {tuple(attention_mask.shape)} reached lengthen's attention.",
            why="masks are not read here: a mask that mixes or hides documents would be ignored in silence.",
            fix="leave attention_mask away and pass doc_lens, or use attn_implementation='sdpa'.",
        )
    seen_BK = attention_mask.bool()
    found_B = key.shape[2] - seen_BK.sum(dim=1)
    if not torch.equal(torch.arange(key.shape[2], device=seen_BK.device) >= found_B[:, None], seen_BK):
        raise LengthenError(
            "the attention mask hides tokens other than a row's left padding.",
            fix="pad on the left (tokenizer.padding_side = 'left'), or pass doc_lens for packed rows.",
        )
    found = _as_ints(found_B) or ()
    if not any(found):
        return pads
    if doc_lens is not None:
        raise LengthenError("doc_lens together with a padding mask.", fix="rows with doc_lens are never padded.")
    if pads is not None and pads != found:
        raise LengthenError(f"pad_lens {list(pads)} contradict the attention mask, which shows {list(found)}.")
    return found


_KNOWN_MASKS = (
    "causal_mask_function",
    "sliding_window_overlay",
    "and_masks",
    "packed_sequence_mask_function",
    "remap_positions_for_packed_sequence",
)


def transformers_mask(
    batch_size: int, q_length: int, kv_length: int, q_offset: int = 0, kv_offset: int = 0,
    mask_function: Callable | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any,
) -> torch.Tensor | None:  # fmt: skip
    """No mask, ever, for plain and sliding causal attention: windows and documents reach the attention as keywords.

    Boundaries that transformers guesses from `position_ids` are dropped on purpose. Real padding comes back as the
    two-dimensional mask (batch, keys of this layer), from which the attention reads each row's left padding. Other
    mask rules (chunked, bidirectional, images) and caches longer than their content are refused.
    """
    names = sorted(_names(mask_function) - set(_KNOWN_MASKS)) if mask_function is not None else []
    if names:
        raise LengthenError(
            f"the model asks for the mask rule {', '.join(names)}.",
            why="lengthen's attention knows causal attention with documents and sliding windows only.",
            fix='load the model with attn_implementation="sdpa" or "eager".',
        )
    if int(q_offset) + q_length != kv_offset + kv_length:
        raise LengthenError(
            f"a cache of {kv_length} places for {int(q_offset) + q_length - kv_offset} tokens (a static cache).",
            why="the empty places would be attended.",
            fix='use the default cache: cache_implementation="dynamic".',
        )
    if attention_mask is None:
        return None
    seen_BK = attention_mask[:, kv_offset : kv_offset + kv_length].bool()
    return None if bool(seen_BK.all()) else seen_BK


def _names(function: Callable) -> set[str]:
    """Names of the makers of a mask function and of those it is composed of (transformers composes by closures)."""
    found = {function.__qualname__.split(".")[0]}
    for cell in getattr(function, "__closure__", None) or ():
        inner = cell.cell_contents
        for part in inner if isinstance(inner, tuple | list) else (inner,):
            if callable(part) and hasattr(part, "__qualname__"):
                found |= _names(part)
    return found
