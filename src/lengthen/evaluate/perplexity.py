"""Loss by position on long held-out documents, and the loss of the tokens for which the far context matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lengthen.evaluate.statistics import FEW, LEVEL, RESAMPLES

LossByToken = Callable[[Sequence[int]], "np.ndarray"]
"""ids -> loss of each token but the first, in nats: len(ids) - 1 numbers; entry t is the loss of ids[t + 1]."""

NEAR = 1024
GAIN = 2.0
KNOWN = 2.0


@dataclass(frozen=True)
class DocumentLoss:
    """Losses of one document. far, near: per token, with the whole context and with the last `near` tokens of it at
    least; `near` is NaN where there is no far context yet."""

    far: np.ndarray
    near: np.ndarray


def edges(length: int, first: int = 512) -> list[int]:
    """Bucket borders in positions: 0, 512, 1024, 2048, ... and the length."""
    found, edge = [0], first
    while edge < length:
        found.append(edge)
        edge *= 2
    return [*found, length]


def loss_by_position(losses: Sequence[np.ndarray], length: int) -> list[tuple[int, int, float, int]]:
    """(begin, end, mean loss, tokens) of each bucket of positions, over all documents."""
    rows = []
    borders = edges(length)
    for begin, end in pairwise(borders):
        joined = np.concatenate(bucket(losses, begin, end))
        if len(joined):
            rows.append((begin, end, float(joined.mean()), len(joined)))
    return rows


def bucket(losses: Sequence[np.ndarray], begin: int, end: int) -> list[np.ndarray]:
    """Of each document, the losses of the positions begin to end. (Entry t holds the loss of position t + 1.)"""
    return [loss[max(0, begin - 1) : end - 1] for loss in losses]


def over_documents(parts: Sequence[np.ndarray], seed: int = 0) -> dict[str, float]:
    """`low` and `high` of a mean over all tokens: 95%, bootstrapped over documents, since tokens of one document fall
    together. Empty below `FEW` documents, over which a bootstrap is too narrow (losses have no bounds to fall back on).
    """
    parts = [part for part in parts if len(part)]
    if len(parts) < FEW:
        return {}
    sums_D, tokens_D = np.array([part.sum() for part in parts]), np.array([len(part) for part in parts])
    draws_RD = np.random.default_rng(seed).integers(0, len(parts), (RESAMPLES, len(parts)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(sums_D[draws_RD].sum(1) / tokens_D[draws_RD].sum(1), [tail, 100 - tail])
    return {"low": round(float(low), 5), "high": round(float(high), 5)}


def near_losses(loss_by_token: LossByToken, ids: Sequence[int], near: int = NEAR) -> np.ndarray:
    """Loss of each token when the model sees between `near` and 2 x `near` tokens before it, and nothing farther.

    Windows of 2 x `near` tokens that move on by `near`; of each, the second half counts. Tokens before position
    2 x `near` have no far context to lose: NaN.
    """
    found = np.full(len(ids) - 1, np.nan)
    for begin in range(near, len(ids) - near, near):
        window = ids[begin : begin + 2 * near]
        loss = np.asarray(loss_by_token(window), dtype=np.float64)
        # loss[j] belongs to position begin + j + 1; positions from begin + near on count.
        first = max(begin + near, 2 * near)
        last = min(begin + 2 * near, len(ids))
        found[first - 1 : last - 1] = loss[first - begin - 1 : last - begin - 1]
    return found


def document_loss(loss_by_token: LossByToken, ids: Sequence[int], near: int = NEAR) -> DocumentLoss:
    """Both losses of a document; costs one pass over it and one over its windows."""
    far = np.asarray(loss_by_token(ids), dtype=np.float64)
    return DocumentLoss(far, near_losses(loss_by_token, ids, near))


def long_dependent(document: DocumentLoss, gain: float = GAIN, known: float = KNOWN) -> np.ndarray:
    """Tokens that need the far context: their loss falls by more than `gain` nats with it, to less than `known`
    (LongPPL's two conditions and thresholds, arXiv 2410.23771, section 3.2)."""
    with np.errstate(invalid="ignore"):
        return (document.near - document.far > gain) & (document.far < known)


@dataclass(frozen=True)
class FarContext:
    """What far context is worth, over all tokens that have some.

    loss, near_loss: mean loss with and without it. gain: near_loss - loss. tokens: how many.
    dependent: how many need it (by `long_dependent`). dependent_loss: their mean loss with it (NaN if there is none).
    """

    loss: float
    near_loss: float
    gain: float
    tokens: int
    dependent: int
    dependent_loss: float


def far_context(documents: Sequence[DocumentLoss], chosen: Sequence[np.ndarray] | None = None) -> FarContext:
    """Summary over documents.

    Args:
        chosen: masks of the long-dependent tokens, for instance those of a stronger model; by default the model's own.
            Models are compared on the same tokens, or on `gain`, which chooses none.
    """
    masks = list(chosen) if chosen is not None else [long_dependent(d) for d in documents]
    far = np.concatenate([d.far[~np.isnan(d.near)] for d in documents])
    near = np.concatenate([d.near[~np.isnan(d.near)] for d in documents])
    picked = np.concatenate([d.far[m] for d, m in zip(documents, masks)])
    if not len(far):
        return FarContext(float("nan"), float("nan"), float("nan"), 0, 0, float("nan"))
    return FarContext(
        loss=float(far.mean()),
        near_loss=float(near.mean()),
        gain=float((near - far).mean()),
        tokens=len(far),
        dependent=len(picked),
        dependent_loss=float(picked.mean()) if len(picked) else float("nan"),
    )
