"""Position schedules: which position each token of a row gets.

Every schedule keeps positions strictly increasing inside a document and starts each document at 0. Attention is told
the documents' borders separately (`doc_lens`): transformers takes any jump in `position_ids` for a new document.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lengthen.recipe.stages.train import PositionSettings

Array = np.ndarray


def plain(lengths: Sequence[int]) -> Array:
    """0, 1, 2 ... from the start of each document; int64 of sum(lengths)."""
    return np.concatenate([np.arange(n, dtype=np.int64) for n in lengths]) if lengths else np.zeros(0, np.int64)


def continuous(lengths: Sequence[int]) -> Array:
    """0, 1, 2 ... over the whole row (ProLong; RoPE is relative, so isolated documents train the same)."""
    return np.arange(sum(lengths), dtype=np.int64)


def pose(n: int, target: int, rng: np.random.Generator, units: Sequence[int] | None = None) -> Array:
    """PoSE (arXiv 2309.10400): two chunks, the second shifted by a uniform 0..target-n; the chunk border is random,
    and lies between two units where a document has its own.

    A document as long as the target, or longer, is left as it is.
    """
    positions = np.arange(n, dtype=np.int64)
    if n < 2 or target <= n or (units is not None and len(units) < 2):
        return positions
    border = int(rng.integers(1, n)) if units is None else int(np.cumsum(units)[rng.integers(len(units) - 1)])
    positions[border:] += int(rng.integers(0, target - n + 1))
    return positions


def skip(units: Sequence[int], target: int, rng: np.random.Generator) -> Array:
    """LongRecipe's transform (arXiv 2409.00509, section 3.2): units stay whole and in order, with random gaps between
    them, so that n tokens reach up to `target` positions.

    There are target - n + N slots for N units; the first unit takes slot 0, the others distinct random slots in order.
    A unit in slot p starts at p + (tokens of earlier units) - (number of earlier units). The paper's rule that the
    first tokens are numbered from 0 can break a unit and is left out.

    Args:
        units: token count of each unit, none of them 0.
        target: positions are below it. With target <= sum(units) nothing is skipped.
    """
    n, count = sum(units), len(units)
    if target <= n or count < 2:
        return np.arange(n, dtype=np.int64)
    slots = 1 + np.sort(rng.choice(target - n + count - 1, size=count - 1, replace=False))
    return from_slots(units, [0, *slots.tolist()])


def from_slots(units: Sequence[int], slots: Sequence[int]) -> Array:
    """Positions of units that were put into `slots` (increasing, the first 0)."""
    sizes = np.asarray(units, dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    starts = np.asarray(slots, dtype=np.int64) + before - np.arange(len(sizes))
    return np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()), dtype=np.int64)


def random_units(n: int, shortest: int, longest: int, rng: np.random.Generator) -> list[int]:
    """Cut n tokens into units of shortest..longest tokens (uniform); the last one takes what is left."""
    units: list[int] = []
    left = n
    while left > 0:
        units.append(min(left, int(rng.integers(shortest, longest + 1))))
        left -= units[-1]
    return units


def units_within(lengths: Sequence[int], unit_lens: Sequence[int]) -> list[list[int]]:
    """A row's units, document by document; a unit that crosses a document's border is cut there."""
    found: list[list[int]] = []
    queue = [int(u) for u in reversed(unit_lens) if u > 0]
    for length in lengths:
        mine: list[int] = []
        left = int(length)
        while left > 0:
            unit = queue.pop()
            mine.append(min(unit, left))
            if unit > left:
                queue.append(unit - left)
            left -= mine[-1]
        found.append(mine)
    return found


def positions_of_row(
    lengths: Sequence[int],
    settings: PositionSettings,
    rng: np.random.Generator,
    unit_lens: Sequence[int] | None = None,
) -> Array:
    """Positions of one row, int64 of sum(lengths).

    Args:
        lengths: token counts of the documents that attend within themselves (one entry for a joined row).
        settings: `targets` must be filled for pose and skip.
        rng: draws targets, units and gaps; the same state gives the same positions.
        unit_lens: the row's own units: gaps lie between them only. Without them skip cuts random ones, and pose cuts
            anywhere.
    """
    if settings.type == "plain":
        return plain(lengths)
    if settings.type == "continuous":
        return continuous(lengths)
    units = units_within(lengths, unit_lens) if unit_lens is not None else None
    parts = []
    for index, n in enumerate(lengths):
        target = int(settings.targets[int(rng.integers(len(settings.targets)))])
        if settings.type == "pose":
            parts.append(pose(n, target, rng, units[index] if units else None))
        else:
            parts.append(skip(units[index] if units else random_units(n, *settings.unit, rng), target, rng))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
