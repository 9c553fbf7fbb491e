"""What a trainer is told: numbers of the optimizer, and where and how often to keep things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lengthen.train.collate import Batch
from lengthen.train.fsdp import Sharding


@dataclass(frozen=True)
class Optimization:
    """Numbers of the optimizer, as in `TrainStage`."""

    steps: int
    lr: float
    schedule: Any = "cosine"
    lr_floor: float = 0.1
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 1.0


@dataclass(frozen=True)
class Housekeeping:
    """Where checkpoints and metrics go, and how often.

    identity: what decides the run; stored with each checkpoint and compared on resume.
    flops: (batch) -> floating-point operations of its forward and backward pass, for the share of the peak.
    """

    folder: Path
    save_every: int = 0
    keep: int = 2
    identity: dict[str, Any] = field(default_factory=dict)
    report_to: tuple[str, ...] = ()
    workers: int = 0
    seed: int = 0
    checkpointing: bool = False
    activation_offload: bool = False
    liger: bool = False
    sharding: Sharding = "ddp"
    flops: Callable[[Batch], float] | None = None
    peak: float | None = None

    @property
    def store(self) -> Path:
        return self.folder / "checkpoints"
