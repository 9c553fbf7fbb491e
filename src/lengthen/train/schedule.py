"""Learning rate by step."""

from __future__ import annotations

import math
from typing import Literal


def warmup_steps(warmup: float, steps: int) -> int:
    """Steps of warm-up: a share of `steps` below 1 (never all of the run: a run of one step has none), else the number
    itself, which the stage has checked against `steps`."""
    return min(steps - 1, math.ceil(warmup * steps) if warmup < 1 else int(warmup))


def lr_share(
    step: int, steps: int, warm: int, schedule: Literal["cosine", "linear", "constant"], floor: float
) -> float:
    """Share of the peak learning rate at `step` (0-based): linear warm-up from 1/warm, then down to `floor`.

    The floor holds only after the warm-up, as in ProLong's `training/trainer.py`.
    """
    if step < warm:
        return (step + 1) / warm
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warm) / max(1, steps - warm))
    falling = 0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done
    return floor + (1 - floor) * falling
