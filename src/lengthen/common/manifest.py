"""What a stage gets, what it gives back, and the record that it leaves beside its files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lengthen.common.files import explain_disk, sha256_file, write_json
from lengthen.common.progress import Bar, progress
from lengthen.common.seeds import derive_seed

MANIFEST = "manifest.json"
LIBRARIES = (
    "lengthen",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "datatrove",
    "tokenizers",
    "peft",
)
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass
class Drops:
    """Items that did not go on, by rule. Nothing is dropped, cut or rejected without a line here."""

    by_rule: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, rule: str, items: int = 1, tokens: int = 0) -> None:
        """Count `items` (and their `tokens`, where known) under a rule such as `too_short`."""
        row = self.by_rule.setdefault(rule, {"items": 0, "tokens": 0})
        row["items"] += items
        row["tokens"] += tokens

    def merge(self, other: Mapping[str, Mapping[str, int]]) -> None:
        for rule, row in other.items():
            self.add(rule, row.get("items", 0), row.get("tokens", 0))


@dataclass(frozen=True)
class StageContext:
    """Where and how one stage runs.

    folder: the stage's own folder; every output lies inside. When it already holds files, they come from an
        interrupted attempt with the same settings and inputs, and the stage goes on from them.
    seed: already derived from the recipe's seed and the stage's name.
    recipe: the recipe's name, for titles and cards.
    """

    folder: Path
    seed: int = 0
    recipe: str = ""
    stage: str = ""

    def __post_init__(self) -> None:
        with explain_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def progress(self, label: str, total: float, unit: str, done: float = 0) -> AbstractContextManager[Bar]:
        return progress(f"[{self.stage}] {label}" if self.stage else label, total, unit, done, self.stage)

    def seed_for(self, *names: object) -> int:
        return derive_seed(self.seed, *names)


@dataclass
class StageResult:
    """What the manifest records of a finished stage.

    counts: plain numbers (documents, rows, tokens, samples ...).
    drops: rule -> {"items", "tokens"}.
    figures: results worth a line at the end of the run.
    derived: values that the stage chose itself: name -> {"value", "reason"}.
    """

    counts: Mapping[str, float] = field(default_factory=dict)
    drops: dict[str, dict[str, int]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    derived: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def outputs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative path -> {"bytes", "sha256"} of every file of a stage folder. Hidden files and folders, checkpoints and
    the manifest itself are left out: they are state, not output."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_file() or parts[0] in (MANIFEST, "checkpoints") or any(p.startswith(".") for p in parts):
            continue
        found["/".join(parts)] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide results."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of this machine (no torch import: GPUs by the driver's own tool).

    instructions: the vector and matrix instructions that decide how fast it computes; virtual machines often share
    one processor name between generations that differ tenfold in bf16.
    """
    import psutil

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "instructions": _instructions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """Names of NVIDIA GPUs, or an empty list."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in listing.stdout.splitlines() if line.strip()] if listing.returncode == 0 else []


def commit() -> str | None:
    """Git commit of the source tree that runs, with `+changes` when files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", str(here.parent)],
            cwd=here, capture_output=True, text=True,
        )  # fmt: skip
    except OSError:
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or "unknown"


def _instructions() -> list[str]:
    """Those of INSTRUCTIONS that this processor has; empty where the system does not list them."""
    flags = _cpuinfo("flags").split()
    return [name for name in INSTRUCTIONS if name in flags]


def _cpuinfo(field: str) -> str:
    """The first value of a field of /proc/cpuinfo, or nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(field)), "")


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_json(folder / MANIFEST, dict(manifest))
