"""What each trained token weighs. One rule for all: loss = sum of weight x cross-entropy / units of the whole step.

M sequences, L_i the summed loss and N_i the number of targets of sequence i (LongAlign, arXiv 2401.18058, section 3.2):

    token      weight 1,               unit = one trained token     (sum L_i) / (sum N_i)
    sequence   weight 1 / N_i,         unit = one sequence          (1/M) sum L_i / N_i                       eq. 2
    pack       weight 1 / N of the row, unit = one row              (1/K) sum_k [sum_k L_i / sum_k N_i]       eq. 3

Units are counted over all ranks and accumulation steps of an optimizer step, so that `token` and `sequence` do not
change with packing, ranks or accumulation. Sequences and rows without a target count for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

Rule = Literal["token", "sequence", "pack"]


def target_weights(raw: np.ndarray, lengths: Sequence[int], rule: Rule) -> tuple[np.ndarray, float]:
    """Weights of one row's tokens as targets, and the row's units.

    Args:
        raw: (T,) float; 0 where a token is no target, else 1 or the row's own loss weight.
        lengths: token counts of the row's sequences; they sum to T.
        rule: see above. Own weights scale a token's share inside its unit.

    Returns:
        (T,) float64 weights, and the units that they stand for.
    """
    raw = raw.astype(np.float64)
    if rule == "token":
        return raw, float(raw.sum())
    if rule == "pack":
        total = float(raw.sum())
        return (raw / total, 1.0) if total > 0 else (raw, 0.0)
    weights, units, start = np.zeros_like(raw), 0.0, 0
    for length in lengths:
        part = raw[start : start + length]
        total = float(part.sum())
        if total > 0:
            weights[start : start + length] = part / total
            units += 1
        start += length
    return weights, units
