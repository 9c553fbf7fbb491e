"""Causal attention on a CPU by tiles, in plain eager torch: the fast core for long documents.

torch's own CPU attention multiplies its score tiles with kernels that reach a fifth of what the same processor does in
`torch.bmm` (measured on a Zen 5: 0.165 against 0.78 TFLOP/s). This core keeps the arithmetic in a few large `bmm` calls:

* the query heads that share one key/value head form ONE tall matrix (grouped queries without copying keys);
* scores are float32 whatever the model's dtype, because bfloat16 scores (8 bits) would move every softmax weight by up
  to several percent; probabilities are rounded to the model's dtype before they meet the values, as flash attention does;
* no running maximum and no rescaling. exp(s - m)/sum(exp(s - m)) is the same for every m, so m is taken from the bound
  |q||k| (Cauchy-Schwarz) and is zero for nearly every model; tiles then simply add up. Where the bound is so loose that
  a row's sum could underflow, that block is done again with its exact maximum;
* masks touch only the tiles on the diagonal and on the window's edge.

Shapes: H query heads, G key/value heads, R = H/G queries heads per key head, Q queries, K keys, D head size, M = R x rows
of one query block, N columns of one key tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

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
    """Scratch buffers kept for one call: a fresh 5 MB tile per product would be mapped and page-faulted each time."""

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
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


@contextmanager
def fast_products() -> Iterator[None]:
    """Inside, float32 products take the faster exact kernel. Process-wide, and harmless to other threads: exact is exact."""
    with _float32_products(onednn_float32_is_exact()):
        yield


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which probabilities meet values: bfloat16 where the processor multiplies it, else float32 or wider."""
    if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return dtype
    return torch.float64 if dtype == torch.float64 else torch.float32


def _up(n: int) -> int:
    return -(-n // STEP) * STEP


class Tiles:
    """One document's keys, values and query blocks, cut into tiles for a group of key/value heads."""

    def __init__(self, q_GRQD: torch.Tensor, k_GKD: torch.Tensor, rule: Rule, work: Workspace) -> None:
        self.groups, self.rep, self.queries, self.dim = q_GRQD.shape
        self.keys = k_GKD.shape[1]
        self.rule, self.work = rule, work
        self.wide = torch.float64 if q_GRQD.dtype == torch.float64 else torch.float32
        self.narrow = product_dtype(q_GRQD.dtype)
        self.rows = min(max(STEP, 1 << int(math.log2(BLOCK_ROWS / self.rep))), _up(self.queries))
        self.cols = min(TILE_COLS, _up(self.keys))
        self.offset = self.keys - self.queries
        self.q_GRQD = q_GRQD
        self.keys_CGND = self.by_chunk(k_GKD, self.wide)
        # Softmax in base two: exp2 is four times faster than exp in torch's float32 kernels.
        self.factor = LOG2E * (rule.scale if rule.softcap is None else rule.softcap)
        self.longest_G1 = self._bound_of_keys(k_GKD)

    def _bound_of_keys(self, k_GKD: torch.Tensor) -> torch.Tensor:
        return k_GKD.to(self.wide).norm(dim=-1).amax(dim=-1, keepdim=True)

    def by_chunk(self, x_GKD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(G, K, D) -> (chunks, G, cols, D), zero-padded: every chunk contiguous, or `bmm` would copy it each time."""
        groups, length, dim = x_GKD.shape
        chunks = -(-length // self.cols)
        out = torch.zeros(chunks, groups, self.cols, dim, dtype=dtype)
        for c in range(chunks):
            part = x_GKD[:, c * self.cols : (c + 1) * self.cols]
            out[c, :, : part.shape[1]] = part
        return out

    def blocks(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self.queries, self.rows):
            yield first, min(first + self.rows, self.queries)

    def padded_rows(self, first: int, last: int) -> int:
        return _up(last - first)

    def block(self, x_GRQD: torch.Tensor, first: int, last: int, dtype: torch.dtype, name: str) -> torch.Tensor:
        """Rows first..last of every head, zero-padded to a multiple of STEP: (G, R, rows, D), contiguous."""
        rows = self.padded_rows(first, last)
        out = self.work.get(name, (self.groups, self.rep, rows, x_GRQD.shape[-1]), dtype)
        out[:, :, : last - first] = x_GRQD[:, :, first:last]
        if rows > last - first:
            out[:, :, last - first :] = 0
        return out

    def spans(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """(chunk, start, end) of the key columns that queries first..last may see, start and end multiples of STEP."""
        low = 0
        if self.rule.window is not None:
            low = max(0, self.offset + first - self.rule.window + 1) // STEP * STEP
        high = _up(self.offset + last)
        for chunk in range(low // self.cols, -(-high // self.cols)):
            yield chunk, max(low, chunk * self.cols), min(high, (chunk + 1) * self.cols)

    def pick(self, x_CGND: torch.Tensor, span: tuple[int, int, int]) -> torch.Tensor:
        chunk, start, end = span
        return x_CGND[chunk][:, start - chunk * self.cols : end - chunk * self.cols]

    def scores(self, scaled_GMD: torch.Tensor, span: tuple[int, int, int], first: int) -> torch.Tensor:
        """Masked scores in units of log 2 (before any shift) of one tile: (G, M, N), in a shared buffer."""
        _, start, end = span
        s_GMN = self.work.get("scores", (self.groups, scaled_GMD.shape[1], end - start), self.wide)
        torch.bmm(scaled_GMD, self.pick(self.keys_CGND, span).mT, out=s_GMN)
        if self.rule.softcap is not None:
            s_GMN.tanh_().mul_(self.factor)
        self._mask(s_GMN, start, end, first)
        return s_GMN

    def _mask(self, s_GMN: torch.Tensor, start: int, end: int, first: int) -> None:
        rows = s_GMN.shape[1] // self.rep
        top = self.offset + first  # position of the block's first query
        s_GRQN = s_GMN.view(self.groups, self.rep, rows, end - start)
        position_Q1 = torch.arange(top, top + rows)[:, None]
        future = max(start, top + 1)
        if future < end:
            s_GRQN[..., future - start :].masked_fill_(torch.arange(future, end) > position_Q1, -math.inf)
        if self.rule.window is not None:
            past = min(end, top + rows - self.rule.window)
            if start < past:
                hidden_QN = torch.arange(start, past) <= position_Q1 - self.rule.window
                s_GRQN[..., : past - start].masked_fill_(hidden_QN, -math.inf)

    def scaled_block(self, first: int, last: int) -> torch.Tensor:
        """The block's queries with the softmax scale folded in: (G, M, D)."""
        scale = self.rule.scale * LOG2E if self.rule.softcap is None else self.rule.scale / self.rule.softcap
        block = self.block(self.q_GRQD, first, last, self.wide, "queries").mul_(scale)
        return block.view(self.groups, -1, self.dim)

    def bound(self, scaled_GMD: torch.Tensor) -> torch.Tensor:
        """An upper bound of each row's scores (G, M), without forming them."""
        if self.rule.softcap is not None:
            return torch.full(scaled_GMD.shape[:2], self.factor, dtype=self.wide)
        return scaled_GMD.norm(dim=-1) * self.longest_G1


def accumulate(acc_GXD: torch.Tensor, a: torch.Tensor, b: torch.Tensor, work: Workspace) -> None:
    """acc += a @ b. Narrow products give narrow results, so those are summed in the wide accumulator."""
    if a.dtype == acc_GXD.dtype:
        torch.baddbmm(acc_GXD, a, b, out=acc_GXD)
        return
    part = work.get(f"part{acc_GXD.shape[1]}", tuple(acc_GXD.shape), a.dtype)
    acc_GXD.add_(torch.bmm(a, b, out=part))


def narrowed(x_GMN: torch.Tensor, tiles: Tiles, name: str) -> torch.Tensor:
    if x_GMN.dtype == tiles.narrow:
        return x_GMN
    return tiles.work.get(name, tuple(x_GMN.shape), tiles.narrow).copy_(x_GMN)


def _forward_block(
    tiles: Tiles,
    values_CGND: torch.Tensor,
    scaled_GMD: torch.Tensor,
    first: int,
    last: int,
    shift_GM1: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    groups, count, _ = scaled_GMD.shape
    out_GMD = torch.zeros(groups, count, values_CGND.shape[-1], dtype=tiles.wide)
    norm_GM = torch.zeros(groups, count, dtype=tiles.wide)
    for span in tiles.spans(first, last):
        s_GMN = tiles.scores(scaled_GMD, span, first)
        if shift_GM1 is not None:
            s_GMN.sub_(shift_GM1)
        torch.exp2(s_GMN, out=s_GMN)
        norm_GM.add_(s_GMN.sum(dim=-1))
        accumulate(out_GMD, narrowed(s_GMN, tiles, "probs"), tiles.pick(values_CGND, span), tiles.work)
    return out_GMD, norm_GM


def _exact_maximum(tiles: Tiles, scaled_GMD: torch.Tensor, first: int, last: int) -> torch.Tensor:
    best_GM = torch.full(scaled_GMD.shape[:2], -math.inf, dtype=tiles.wide)
    for span in tiles.spans(first, last):
        best_GM = torch.maximum(best_GM, tiles.scores(scaled_GMD, span, first).amax(dim=-1))
    return best_GM


def _with_sinks(norm_GM: torch.Tensor, sinks_GR: torch.Tensor | None, shift_GM1: torch.Tensor | None) -> torch.Tensor:
    if sinks_GR is None:
        return norm_GM
    sink_GR1 = sinks_GR.to(norm_GM.dtype)[..., None] * LOG2E
    rows_GRQ = norm_GM.view(*sinks_GR.shape, -1)
    shift_GRQ = torch.zeros_like(rows_GRQ) if shift_GM1 is None else shift_GM1.view_as(rows_GRQ)
    return (rows_GRQ + torch.exp2(sink_GR1 - shift_GRQ)).view_as(norm_GM)


def forward(
    q_GRQD: torch.Tensor, k_GKD: torch.Tensor, v_GKD: torch.Tensor, rule: Rule, work: Workspace,
    out_GRQD: torch.Tensor, norm_GRQ: torch.Tensor, shift_GRQ: torch.Tensor, sinks_GR: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """One document (or its last Q queries) for a group of heads; writes the output, the sum and the shift of each row.

    `norm` and `shift` are what backward() needs: p = 2^(score - shift) / norm.
    """
    tiles = Tiles(q_GRQD, k_GKD, rule, work)
    values_CGND = tiles.by_chunk(v_GKD, tiles.narrow)
    for first, last in tiles.blocks():
        scaled_GMD = tiles.scaled_block(first, last)
        bound_GM = tiles.bound(scaled_GMD)
        if sinks_GR is not None:
            sink_GR1 = sinks_GR.to(tiles.wide)[..., None] * LOG2E
            bound_GM = torch.maximum(bound_GM.view(*sinks_GR.shape, -1), sink_GR1).view_as(bound_GM)
        shift_GM1 = None
        if float(bound_GM.max()) > SAFE_LOG2:
            shift_GM1 = (bound_GM - SAFE_LOG2).clamp_(min=0)[..., None]
        part_GMD, sum_GM = _forward_block(tiles, values_CGND, scaled_GMD, first, last, shift_GM1)
        if shift_GM1 is not None and float(sum_GM.min()) < 2.0**-SAFE_LOG2:
            shift_GM1 = _exact_maximum(tiles, scaled_GMD, first, last)[..., None]
            if sinks_GR is not None:
                shift_GRQ1 = shift_GM1.view(*sinks_GR.shape, -1, 1)
                shift_GM1 = torch.maximum(shift_GRQ1, sink_GR1[..., None]).view_as(shift_GM1)
            part_GMD, sum_GM = _forward_block(tiles, values_CGND, scaled_GMD, first, last, shift_GM1)
        sum_GM = _with_sinks(sum_GM, sinks_GR, shift_GM1)
        part_GMD.div_(sum_GM[..., None])
        head = (tiles.groups, tiles.rep, tiles.padded_rows(first, last))
        width = last - first
        out_GRQD[:, :, first:last] = part_GMD.view(*head, -1)[:, :, :width]
        norm_GRQ[:, :, first:last] = sum_GM.view(head)[..., :width]
        shift_GRQ[:, :, first:last] = 0 if shift_GM1 is None else shift_GM1.view(head)[..., :width]


def backward(
    q_GRQD: torch.Tensor, k_GKD: torch.Tensor, v_GKD: torch.Tensor, rule: Rule, work: Workspace,
    grad_GRQD: torch.Tensor, delta_GRQ: torch.Tensor, norm_GRQ: torch.Tensor, shift_GRQ: torch.Tensor,
    dq_GRQD: torch.Tensor, dk_GKD: torch.Tensor, dv_GKD: torch.Tensor,
) -> None:  # fmt: skip
    """Gradients of forward(); `delta` is the row sum of grad x output. Tiles of scores are computed again.

    The row's 1/norm goes into the incoming gradient instead of into each tile, and delta rides along as one more column
    of the product with the values (against a column of ones): no pass over a tile for either.
    """
    tiles = Tiles(q_GRQD, k_GKD, rule, work)
    ones_GK1 = torch.ones(*v_GKD.shape[:2], 1, dtype=tiles.wide)
    values_CGNE = tiles.by_chunk(torch.cat([v_GKD.to(tiles.wide), ones_GK1], dim=-1), tiles.wide)
    narrow_keys_CGND = tiles.keys_CGND.to(tiles.narrow)
    dkeys_CGND = torch.zeros_like(tiles.keys_CGND)
    dvalues_CGND = torch.zeros(*values_CGNE.shape[:3], v_GKD.shape[-1], dtype=tiles.wide)
    shifted = bool(shift_GRQ.any())
    for first, last in tiles.blocks():
        scaled_GMD = tiles.scaled_block(first, last)
        flat = (tiles.groups, scaled_GMD.shape[1], -1)
        inverse_GRQ1 = norm_GRQ[:, :, first:last, None].reciprocal()
        weighted = torch.cat([grad_GRQD[:, :, first:last].to(tiles.wide), -delta_GRQ[:, :, first:last, None]], dim=-1)
        grad_GME = tiles.block(weighted.mul_(inverse_GRQ1), 0, last - first, tiles.wide, "grads").view(flat)
        narrow_grad_GMD = grad_GME[..., :-1].to(tiles.narrow)
        narrow_q_GMD = tiles.block(q_GRQD, first, last, tiles.narrow, "narrow queries").view(flat)
        shift_GM1 = tiles.block(shift_GRQ[..., None], first, last, tiles.wide, "shift").view(flat) if shifted else None
        dq_GMD = torch.zeros_like(scaled_GMD)
        for span in tiles.spans(first, last):
            p_GMN = tiles.scores(scaled_GMD, span, first)
            slope_GMN = None
            if rule.softcap is not None:  # d tanh = 1 - tanh^2; hidden scores are -inf, their p is zero anyway
                slope_GMN = 1 - (p_GMN / tiles.factor).clamp_(-1, 1).square_()
            if shift_GM1 is not None:
                p_GMN.sub_(shift_GM1)
            torch.exp2(p_GMN, out=p_GMN)
            narrow_p = narrowed(p_GMN, tiles, "probs")
            accumulate(tiles.pick(dvalues_CGND, span), narrow_p.mT, narrow_grad_GMD, work)
            ds_GMN = work.get("dscores", tuple(p_GMN.shape), tiles.wide)
            torch.bmm(grad_GME, tiles.pick(values_CGNE, span).mT, out=ds_GMN)
            ds_GMN.mul_(p_GMN)
            if slope_GMN is not None:
                ds_GMN.mul_(slope_GMN)
            narrow_ds = narrowed(ds_GMN, tiles, "narrow dscores")
            accumulate(dq_GMD, narrow_ds, tiles.pick(narrow_keys_CGND, span), work)
            accumulate(tiles.pick(dkeys_CGND, span), narrow_ds.mT, narrow_q_GMD, work)
        head = (tiles.groups, tiles.rep, tiles.padded_rows(first, last), -1)
        dq_GRQD[:, :, first:last] = dq_GMD.mul_(rule.scale).view(head)[:, :, : last - first]
    for chunk in range(dkeys_CGND.shape[0]):
        where = slice(chunk * tiles.cols, min((chunk + 1) * tiles.cols, tiles.keys))
        size = where.stop - where.start
        dk_GKD[:, where] = dkeys_CGND[chunk, :, :size].mul_(rule.scale)
        dv_GKD[:, where] = dvalues_CGND[chunk, :, :size]
