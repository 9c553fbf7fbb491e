"""Peak memory of this process, which a runner can start anew for each stage."""

from __future__ import annotations

import contextlib
from pathlib import Path


def reset_peak_memory() -> None:
    """Let the peak count from now on (Linux; elsewhere the peak stays that of the whole process)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib() -> float:
    """Highest resident memory since the last reset, in GiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 2**20, 2)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**30 if sys.platform == "darwin" else 2**20), 2)
