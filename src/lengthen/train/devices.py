"""Device types that a training can be priced on, and the few constants that a price rests on."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lengthen.common.errors import LengthenError, nearest

GIB = 2**30


@dataclass(frozen=True)
class DeviceType:
    """One kind of device.

    memory_gib: of one device. peak: dense bf16 operations per second by the maker's data sheet (CPU: measured here).
    linear, attention: share of the peak that training reaches in matrix products with weights (communication and
        element-wise work between them included) and in the attention core.
    all_in: share of the wall time that is training steps; the rest is start, checkpoints, restarts.
    overhead_gib: held by libraries, the driver's context and the allocator before the first tensor.
    """

    name: str
    memory_gib: float
    peak: float
    linear: float
    attention: float
    all_in: float
    overhead_gib: float


# Linear 0.45: large bf16 products reach 60-70% of the peak alone; norms, rotary embedding, activation functions and the
# part of FSDP's exchange that is not hidden take the rest. Attention: FlashAttention-2, forward and backward, reaches
# 0.35-0.40 of an H100's peak and 0.6-0.7 of an A100's (arXiv 2307.08691 and 2407.08608, their figures).
# All in 0.9: ProLong's own two figures, 2,780 tokens/s in steps (Table 15) and 2,525 from its GPU hours (Table 9).
# One set for all sizes and lengths, chosen inside these ranges with the runs of docs/plan.md in view.
_HOPPER = {"linear": 0.45, "attention": 0.38, "all_in": 0.9, "overhead_gib": 2.0}
_AMPERE = {"linear": 0.5, "attention": 0.6, "all_in": 0.9, "overhead_gib": 2.0}
TYPES = {
    one.name: one
    for one in (
        DeviceType("H100-80GB", 80, 989e12, **_HOPPER),
        DeviceType("H200-141GB", 141, 989e12, **_HOPPER),
        DeviceType("B200-180GB", 180, 2250e12, **_HOPPER),
        DeviceType("A100-80GB", 80, 312e12, **_AMPERE),
        DeviceType("A100-40GB", 40, 312e12, **_AMPERE),
        DeviceType("A800-80GB", 80, 312e12, **_AMPERE),
        DeviceType("L40S-48GB", 48, 362e12, **_AMPERE),
        DeviceType("RTX4090-24GB", 24, 165e12, **_AMPERE),
    )
}
# Two cores with AMX, SmolLM2-135M: 370 tokens/s at 4K rows and 515 at 1K, where a large product reaches 2.3 TFLOP/s
# (measured); attention by the blockwise core. Without bf16 instructions products take longer and what lies between them
# does not: an EPYC core of 0.057 TFLOP/s in fp32 trained 41 tokens/s at 1K rows and 39 at 2K, 0.72 of its peak.
# The peak is measured anew on each machine.
_CPU_SHARE = {"bfloat16": 0.2, "float32": 0.65}


@dataclass(frozen=True)
class Devices:
    """`count` devices of a type. here: the machine that lengthen runs on."""

    count: int
    type: DeviceType
    here: bool = False

    @property
    def is_cpu(self) -> bool:
        return self.type.name == "cpu"

    @property
    def title(self) -> str:
        if self.is_cpu:
            return f"this processor ({self.type.peak / 1e12:.2f} TFLOP/s measured now)"
        return f"{self.count} x {self.type.name}"


def parse_devices(text: str | None) -> Devices:
    """`8xH100-80GB`, `A100-40GB`, `cpu`; None is this machine."""
    if text is None:
        return _this_machine()
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x*]\s*)?([A-Za-z][\w-]*)\s*", text)
    if not match:
        raise LengthenError(f"--devices {text}: write count and type, such as 8xH100-80GB, or cpu.")
    count, name = int(match[1] or 1), match[2]
    if name.lower() == "cpu":
        return Devices(max(count, 1), cpu_type())
    by_name = {known.lower(): one for known, one in TYPES.items()}
    by_name |= {known.lower().split("-")[0]: one for known, one in reversed(TYPES.items())}
    if name.lower() not in by_name:
        raise LengthenError(f"--devices {text}: no figures are known for '{name}'.", fix=nearest(name, [*TYPES, "cpu"]))
    if count < 1:
        raise LengthenError(f"--devices {text}: at least one device is needed.")
    return Devices(count, by_name[name.lower()])


def cpu_type() -> DeviceType:
    """This machine's processor: memory as installed, the peak measured by a matrix product (about 0.1 s)."""
    import psutil
    import torch

    from lengthen.models import pick_dtype
    from lengthen.train.machine import measured_peak

    dtype = pick_dtype("auto")[0]
    peak, share = measured_peak(getattr(torch, dtype), "cpu"), _CPU_SHARE[dtype]
    return DeviceType("cpu", psutil.virtual_memory().total / GIB, peak, share, share, all_in=0.95, overhead_gib=0.5)


def _this_machine() -> Devices:
    import torch

    if not torch.cuda.is_available():
        return Devices(1, cpu_type(), here=True)
    count, found = torch.cuda.device_count(), torch.cuda.get_device_properties(0)
    known = next((one for name, one in TYPES.items() if name.split("-")[0] in found.name.replace(" ", "")), None)
    if known is None:
        raise LengthenError(
            f"No figures are known for this machine's GPU ({found.name}).",
            fix=f"name a similar one: --devices {count}x{next(iter(TYPES))}; known: {', '.join(TYPES)}",
        )
    return Devices(count, replace(known, memory_gib=found.total_memory / GIB), here=True)
