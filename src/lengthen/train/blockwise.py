"""Causal attention on a CPU by tiles, in plain eager torch: the fast core for long documents.

torch's own CPU attention multiplies its score tiles with kernels that reach a fifth of what the same processor does
in `torch.mm` (measured on a Zen 5: 0.165 against 0.78 TFLOP/s). This core keeps the arithmetic in a few `mm` calls:

* the query heads that share one key/value head form ONE tall matrix (grouped queries without copying keys);
* scores are float32 whatever the model's dtype, because bfloat16 scores (8 bits) would move softmax weights by several
  percent; probabilities are rounded to the model's dtype before they meet the values, as flash attention does;
* no running maximum and no rescaling. exp(s - m)/sum(exp(s - m)) is the same for every m, so m is taken from the bound
  |q||k| (Cauchy-Schwarz) and is zero for nearly every model; tiles then simply add up. Where the bound is so loose that
  a row's sum could underflow, that block is done again with its exact maximum;
* masks touch only the tiles on the diagonal and on the window's edge.

The functions work on ONE key/value head of ONE document; `lengthen.train.cores` spreads heads, documents and blocks
over threads. Shapes: R query heads share the key head, Q queries, K keys, D head size, M = R x rows of a query block, N
columns of a key tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch

STEP = 64  # tile edges are multiples of this: oneDNN compiles a kernel per shape (0.2-5 ms), so few shapes must occur
BLOCK_ROWS = 768  # M; measured: 512-1024 is flat, less starves the product, more leaves the cache
TILE_COLS = 512
SAFE_LOG2 = 80.0  # scores up to 2^80 leave room in float32 (2^127) for 2^14 keys times values of 2^10
LOG2E = math.log2(math.e)


@dataclass(frozen=True)
class Rule:
    """What a query sees and how scores are formed: softcap * tanh(scale * qk / softcap) over the last `window` keys."""

    scale: float
    window: int | None = None
    softcap: float | None = None


class Workspace:
    """One thread's scratch buffers: a fresh tile of megabytes per product would be page-faulted each time."""

    def __init__(self) -> None:
        self._flat: dict[str, torch.Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        count = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < count or flat.dtype != dtype:
            flat = self._flat[name] = torch.empty(count, dtype=dtype)
        return flat[:count].view(shape)


@lru_cache(maxsize=1)
def onednn_float32_is_exact() -> bool:
    """Whether oneDNN's float32 product in its "bf16 allowed" mode still computes in float32 here.

    torch sends float32 products to MKL, which takes its slow path on processors that are not Intel's (half the speed);
    the only switch that sends them to oneDNN also allows it to round the inputs to bfloat16, which it does where AMX
    makes that pay and nowhere else. So look at what it does: on inputs with full mantissas the two differ by 1e4.
    """
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(256, 96, generator=generator)
    b = torch.randn(96, 256, generator=generator)
    exact = a.double() @ b.double()
    with _float32_products(True):
        return bool(((a @ b) - exact).abs().max() < 1e-4)


@contextmanager
def _float32_products(use_onednn: bool) -> Iterator[None]:
    if not use_onednn or not torch.backends.mkldnn.is_available():
        yield
        return
    setting = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@contextmanager
def fast_products() -> Iterator[None]:
    """Inside, float32 products take the faster exact kernel. Process-wide, yet harmless to others: exact is exact."""
    with _float32_products(onednn_float32_is_exact()):
        yield


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of probability x value: bfloat16 where the processor multiplies it, else at least float32."""
    if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return dtype
    return torch.float64 if dtype == torch.float64 else torch.float32


def _up(n: int) -> int:
    return -(-n // STEP) * STEP


class Tiles:
    """One document's queries and keys for one key/value head, in query blocks and key tiles. Read-only once made."""

    def __init__(self, q_RQD: torch.Tensor, k_KD: torch.Tensor, rule: Rule) -> None:
        self.rep, self.queries, self.dim = q_RQD.shape
        self.keys = k_KD.shape[0]
        self.offset = self.keys - self.queries
        self.rule = rule
        self.wide = torch.float64 if q_RQD.dtype == torch.float64 else torch.float32
        self.narrow = product_dtype(q_RQD.dtype)
        self.rows = min(max(STEP, 1 << int(math.log2(max(1, BLOCK_ROWS // self.rep)))), _up(self.queries))
        self.cols = min(TILE_COLS, _up(self.keys))
        self.q_RQD = q_RQD
        self.keys_KD = self.padded(k_KD, self.wide)
        # Softmax in base two: exp2 is four times faster than exp in torch's float32 kernels.
        self.scale = rule.scale * LOG2E if rule.softcap is None else rule.scale / rule.softcap
        self.cap = None if rule.softcap is None else rule.softcap * LOG2E
        self.longest_key = float(self.keys_KD.norm(dim=-1).max())

    def padded(self, x_KD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(K, D) -> (K rounded up to STEP, D), contiguous; causality hides the added keys from every real query."""
        out = torch.zeros(_up(x_KD.shape[0]), x_KD.shape[1], dtype=dtype)
        out[: x_KD.shape[0]] = x_KD
        return out

    def blocks(self) -> list[tuple[int, int]]:
        return [(first, min(first + self.rows, self.queries)) for first in range(0, self.queries, self.rows)]

    def block(self, x_RQD: torch.Tensor, first: int, last: int, out_dtype: torch.dtype) -> torch.Tensor:
        """Queries first..last of every head, zero-padded to a multiple of STEP: (R x rows, D), contiguous."""
        out = torch.zeros(self.rep, _up(last - first), x_RQD.shape[-1], dtype=out_dtype)
        out[:, : last - first] = x_RQD[:, first:last]
        return out.flatten(0, 1)

    def scaled_block(self, first: int, last: int) -> torch.Tensor:
        """The block's queries with the softmax scale folded in: (M, D)."""
        return self.block(self.q_RQD, first, last, self.wide).mul_(self.scale)

    def rows_of(self, x_MX: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """(M, ...) -> (R, last - first, ...): the padding taken off again."""
        return x_MX.unflatten(0, (self.rep, -1))[:, : last - first]

    def spans(self, first: int, last: int) -> list[slice]:
        """The key tiles that queries first..last may see; edges are multiples of STEP."""
        low = 0
        if self.rule.window is not None:
            low = max(0, self.offset + first - self.rule.window + 1) // STEP * STEP
        high = _up(self.offset + last)
        edges = [low, *range((low // self.cols + 1) * self.cols, high, self.cols), high]
        return [slice(a, b) for a, b in pairwise(edges)]

    def scores(self, scaled_MD: torch.Tensor, span: slice, first: int, work: Workspace) -> torch.Tensor:
        """Masked scores in units of log 2 (before any shift) of one tile: (M, N), in the thread's buffer."""
        s_MN = work.get("scores", (scaled_MD.shape[0], span.stop - span.start), self.wide)
        torch.mm(scaled_MD, self.keys_KD[span].T, out=s_MN)
        if self.cap is not None:
            s_MN.tanh_().mul_(self.cap)
        self._mask(s_MN, span, first)
        return s_MN

    def _mask(self, s_MN: torch.Tensor, span: slice, first: int) -> None:
        s_RQN = s_MN.unflatten(0, (self.rep, -1))
        top, rows = self.offset + first, s_RQN.shape[1]  # position of the block's first query
        position_Q1 = torch.arange(top, top + rows)[:, None]
        future = max(span.start, top + 1)
        if future < span.stop:
            s_RQN[..., future - span.start :].masked_fill_(torch.arange(future, span.stop) > position_Q1, -math.inf)
        if self.rule.window is not None:
            past = min(span.stop, top + rows - self.rule.window)
            if span.start < past:
                hidden_QN = torch.arange(span.start, past) <= position_Q1 - self.rule.window
                s_RQN[..., : past - span.start].masked_fill_(hidden_QN, -math.inf)

    def bound(self, scaled_MD: torch.Tensor) -> torch.Tensor:
        """An upper bound of each row's scores (M, 1), without forming them."""
        bound_M1 = scaled_MD.norm(dim=-1, keepdim=True) * self.longest_key
        return bound_M1 if self.cap is None else bound_M1.fill_(self.cap)


def _accumulate(acc_XD: torch.Tensor, a: torch.Tensor, b: torch.Tensor, work: Workspace) -> None:
    """acc += a @ b. Narrow products give narrow results, so those are summed in the wide accumulator."""
    if a.dtype == acc_XD.dtype:
        torch.addmm(acc_XD, a, b, out=acc_XD)
        return
    part_XD = work.get("part", tuple(acc_XD.shape), a.dtype)
    acc_XD.add_(torch.mm(a, b, out=part_XD))


def _narrowed(x_MN: torch.Tensor, dtype: torch.dtype, work: Workspace, name: str) -> torch.Tensor:
    return x_MN if x_MN.dtype == dtype else work.get(name, tuple(x_MN.shape), dtype).copy_(x_MN)


def _sum_block(
    tiles: Tiles, values_KD: torch.Tensor, scaled_MD: torch.Tensor, first: int, last: int,
    shift_M1: torch.Tensor | None, work: Workspace,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Sums of 2^(score - shift) x value and of 2^(score - shift): (M, D), (M, 1)."""
    out_MD = torch.zeros(scaled_MD.shape[0], values_KD.shape[-1], dtype=tiles.wide)
    sum_M1 = torch.zeros(scaled_MD.shape[0], 1, dtype=tiles.wide)
    for span in tiles.spans(first, last):
        s_MN = tiles.scores(scaled_MD, span, first, work)
        if shift_M1 is not None:
            s_MN.sub_(shift_M1)
        torch.exp2(s_MN, out=s_MN)
        sum_M1.add_(s_MN.sum(dim=-1, keepdim=True))
        _accumulate(out_MD, _narrowed(s_MN, tiles.narrow, work, "probs"), values_KD[span], work)
    return out_MD, sum_M1


def _exact_maximum(tiles: Tiles, scaled_MD: torch.Tensor, first: int, last: int, work: Workspace) -> torch.Tensor:
    best_M1 = torch.full((scaled_MD.shape[0], 1), -math.inf, dtype=tiles.wide)
    for span in tiles.spans(first, last):
        best_M1 = torch.maximum(best_M1, tiles.scores(scaled_MD, span, first, work).amax(dim=-1, keepdim=True))
    return best_M1


def forward_block(
    tiles: Tiles, values_KD: torch.Tensor, sinks_R: torch.Tensor | None, first: int, last: int, work: Workspace,
    out_RQD: torch.Tensor, norm_RQ: torch.Tensor, shift_RQ: torch.Tensor,
) -> None:  # fmt: skip
    """Attention of queries first..last; writes their output, and the sum and shift that backward_blocks() needs.

    A probability is 2^(score - shift) / norm. `values_KD` is `tiles.padded(v, tiles.narrow)`.
    """
    scaled_MD = tiles.scaled_block(first, last)
    bound_M1 = tiles.bound(scaled_MD)
    sink_M1 = None
    if sinks_R is not None:
        rows = scaled_MD.shape[0] // tiles.rep
        sink_M1 = (sinks_R.to(tiles.wide) * LOG2E).repeat_interleave(rows)[:, None]
        bound_M1 = torch.maximum(bound_M1, sink_M1)
    shift_M1 = None
    if float(bound_M1.max()) > SAFE_LOG2:
        shift_M1 = (bound_M1 - SAFE_LOG2).clamp_(min=0)
    out_MD, sum_M1 = _sum_block(tiles, values_KD, scaled_MD, first, last, shift_M1, work)
    if shift_M1 is not None and float(tiles.rows_of(sum_M1, first, last).min()) < 2.0**-SAFE_LOG2:
        shift_M1 = _exact_maximum(tiles, scaled_MD, first, last, work)
        if sink_M1 is not None:
            shift_M1 = torch.maximum(shift_M1, sink_M1)
        out_MD, sum_M1 = _sum_block(tiles, values_KD, scaled_MD, first, last, shift_M1, work)
    if sink_M1 is not None:
        sum_M1 = sum_M1 + torch.exp2(sink_M1 if shift_M1 is None else sink_M1 - shift_M1)
    out_RQD[:, first:last] = tiles.rows_of(out_MD.div_(sum_M1), first, last)
    norm_RQ[:, first:last] = tiles.rows_of(sum_M1, first, last)[..., 0]
    if shift_M1 is not None:
        shift_RQ[:, first:last] = tiles.rows_of(shift_M1, first, last)[..., 0]


@dataclass(frozen=True)
class Saved:
    """What backward needs of one head of one document, beside its tiles. `delta` is the row sum of grad x output."""

    values_KE: torch.Tensor  # padded values and a column of ones, wide
    narrow_keys_KD: torch.Tensor
    grad_RQD: torch.Tensor
    delta_RQ: torch.Tensor
    norm_RQ: torch.Tensor
    shift_RQ: torch.Tensor


def save(
    tiles: Tiles, v_KD: torch.Tensor, grad_RQD: torch.Tensor, out_RQD: torch.Tensor, norm_RQ: torch.Tensor,
    shift_RQ: torch.Tensor,
) -> Saved:  # fmt: skip
    delta_RQ = (grad_RQD.to(tiles.wide) * out_RQD).sum(dim=-1)
    values_KE = tiles.padded(torch.nn.functional.pad(v_KD.to(tiles.wide), (0, 1), value=1.0), tiles.wide)
    return Saved(values_KE, tiles.keys_KD.to(tiles.narrow), grad_RQD, delta_RQ, norm_RQ, shift_RQ)


def backward_blocks(
    tiles: Tiles, saved: Saved, blocks: list[tuple[int, int]], dq_RQD: torch.Tensor, work: Workspace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes dq of the given query blocks; returns their parts of dk and dv, (K padded, D) each, wide.

    Tiles of scores are computed again. A row's 1/norm goes into its incoming gradient instead of into each tile, and
    delta rides along as one more column of the product with the values (against the ones): no pass over a tile.
    """
    dk_KD = torch.zeros_like(tiles.keys_KD)
    dv_KD = torch.zeros(dk_KD.shape[0], saved.values_KE.shape[1] - 1, dtype=tiles.wide)
    shifted = bool(saved.shift_RQ.any())
    for first, last in blocks:
        where = slice(first, last)
        scaled_MD = tiles.scaled_block(first, last)
        grad_RQE = torch.cat([saved.grad_RQD[:, where].to(tiles.wide), -saved.delta_RQ[:, where, None]], dim=-1)
        grad_ME = tiles.block(grad_RQE.div_(saved.norm_RQ[:, where, None]), 0, last - first, tiles.wide)
        narrow_grad_MD = grad_ME[:, :-1].to(tiles.narrow)
        narrow_q_MD = tiles.block(tiles.q_RQD, first, last, tiles.narrow)
        shift_M1 = tiles.block(saved.shift_RQ[..., None], first, last, tiles.wide) if shifted else None
        dq_MD = torch.zeros_like(scaled_MD)
        for span in tiles.spans(first, last):
            p_MN = tiles.scores(scaled_MD, span, first, work)
            slope_MN = None
            if tiles.cap is not None:  # d tanh = 1 - tanh^2; hidden scores are -inf, their p is zero anyway
                slope_MN = 1 - (p_MN / tiles.cap).clamp_(-1, 1).square_()
            if shift_M1 is not None:
                p_MN.sub_(shift_M1)
            torch.exp2(p_MN, out=p_MN)
            _accumulate(dv_KD[span], _narrowed(p_MN, tiles.narrow, work, "probs").T, narrow_grad_MD, work)
            ds_MN = work.get("dscores", tuple(p_MN.shape), tiles.wide)
            torch.mm(grad_ME, saved.values_KE[span].T, out=ds_MN)
            ds_MN.mul_(p_MN)
            if slope_MN is not None:
                ds_MN.mul_(slope_MN)
            narrow_ds_MN = _narrowed(ds_MN, tiles.narrow, work, "narrow dscores")
            _accumulate(dq_MD, narrow_ds_MN, saved.narrow_keys_KD[span], work)
            _accumulate(dk_KD[span], narrow_ds_MN.T, narrow_q_MD, work)
        dq_RQD[:, where] = tiles.rows_of(dq_MD.mul_(tiles.rule.scale), first, last)
    return dk_KD.mul_(tiles.rule.scale), dv_KD
