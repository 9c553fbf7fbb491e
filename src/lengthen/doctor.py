"""What this machine can run, and what to install for the rest."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from lengthen.common.errors import LengthenError
from lengthen.common.files import cache_folder
from lengthen.common.manifest import gpus

State = Literal["good", "note", "absent", "bad"]
_MARKS = {"good": "ok  ", "note": "note", "absent": "--  ", "bad": "BAD "}
_DEMO_MEMORY_GIB = 8
_DEMO_DISK_GIB = 4


@dataclass(frozen=True)
class Check:
    """One line of the list. state: `bad` stops lengthen from working; `note` is worth knowing; `absent` is an option
    that is not installed. advice: what to do, where there is something to do."""

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Extra:
    """An optional feature. modules: what must be importable. programs: what must be on the PATH."""

    name: str
    about: str
    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    advice: str = ""

    def missing(self) -> list[str]:
        """Modules and programs that are not there. One of `programs` is enough."""
        gone = [module for module in self.modules if importlib.util.find_spec(module) is None]
        if self.programs and not any(shutil.which(program) for program in self.programs):
            gone.append(" or ".join(self.programs))
        return gone


EXTRAS = (
    Extra("gpu", "fast kernels for NVIDIA GPUs", ("kernels", "liger_kernel")),
    Extra("lm-eval", "short tasks through lm-evaluation-harness", ("lm_eval",)),
    Extra("languages", "the language filter of data preparation", ("py3langid",)),
    Extra("ray", "data preparation on a Ray cluster", ("ray",)),
    Extra("vllm", "fast generation on GPUs", ("vllm",)),
    Extra("docs", "building the documentation", ("mkdocs", "material")),
    Extra("dev", "the tests", ("pytest", "hypothesis", "ruff", "pyright", "importlinter", "xdist", "pytest_timeout")),
)
PROGRAMS = (
    Extra("Slurm", "data preparation and training on a cluster", programs=("sbatch",),
          advice="use a machine of the cluster that has sbatch"),
    Extra("browser", "tests of the report's layout (make test-all)", programs=("chromium", "chromium-browser",
          "google-chrome"), advice="apt-get install chromium"),
)  # fmt: skip


def examine() -> list[Check]:
    """All checks, in the order of a setup: Python, torch, machine, GPU, storage, options. Takes about two seconds."""
    checks = [_python(), _torch()]
    checks += [_library(name) for name in ("transformers", "trl", "datasets", "datatrove")]
    checks += [_cores(), _memory(), _gpu()]
    if checks[1].state != "bad":
        checks.append(_bf16())
    checks += [_cache(), _disk(), _default_model()]
    return checks + [_extra(one, f"pip install 'lengthen[{one.name}]'") for one in EXTRAS] + [
        _extra(one, one.advice) for one in PROGRAMS
    ]  # fmt: skip


def render(checks: list[Check]) -> str:
    """The list as text, advice under its line, and a last line that sums up."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{_MARKS[check.state]}  {check.name:<{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':{width + 8}}-> {check.advice}")
    bad = [check.name for check in checks if check.state == "bad"]
    if bad:
        lines.append(f"\nNot ready: {', '.join(bad)}. Do what the arrows say, then run `lengthen doctor` again.")
    else:
        lines.append("\nReady. Start with: lengthen run quickstart")
    return "\n".join(lines)


def _python() -> Check:
    # An older Python cannot be here: pip refuses to install the package for it.
    return Check("Python", "good", f"{platform.python_version()}, {platform.system()} {platform.machine()}")


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "bad", f"cannot be imported: {error}", "pip install torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    if torch.version.hip:
        build = f"ROCm {torch.version.hip}"
    return Check("torch", "good", f"{torch.__version__}, {build}")


def _library(name: str) -> Check:
    """Installed, and inside the range that this version of lengthen asks for."""
    from packaging.requirements import Requirement

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "bad", "not installed", f"pip install {name}")
    for text in metadata.requires("lengthen") or []:
        wanted = Requirement(text)
        if wanted.name == name and not wanted.specifier.contains(version, prereleases=True):
            return Check(name, "bad", f"{version}, needs {wanted.specifier}", f"pip install '{name}{wanted.specifier}'")
    return Check(name, "good", version)


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    from lengthen.common.manifest import machine

    found = f"{cores} cores, {machine()['processor']}"
    limit = os.environ.get("OMP_NUM_THREADS")
    if limit and limit.isdigit() and int(limit) < cores:
        return Check("processor", "note", f"{found}; OMP_NUM_THREADS={limit}", "unset it to use all cores")
    return Check("processor", "good", found)


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / 2**30, memory.total / 2**30
    found = f"{free:.1f} of {total:.1f} GiB free"
    if free < _DEMO_MEMORY_GIB:
        advice = (
            f"the quickstart needs about {_DEMO_MEMORY_GIB} GiB; see the cost of a recipe with lengthen plan RECIPE"
        )
        return Check("memory", "note", found, advice)
    return Check("memory", "good", found)


def _gpu() -> Check:
    names = gpus()
    try:
        import torch
    except (ImportError, OSError):
        return Check("GPU", "absent", "unknown without torch")
    if torch.cuda.is_available():
        return Check("GPU", "good", _gpu_text())
    if names:
        advice = "install a CUDA build of torch: https://pytorch.org/get-started/locally"
        return Check("GPU", "bad", f"{len(names)} x {names[0]}, but torch cannot use it", advice)
    return Check("GPU", "absent", "none; laptop recipes run on the processor")


def _gpu_text() -> str:
    import torch

    count, first = torch.cuda.device_count(), torch.cuda.get_device_properties(0)
    return f"{count} x {first.name}, {first.total_memory / 2**30:.0f} GiB each"


def _bf16() -> Check:
    from lengthen.models import bf16_speedup, pick_dtype

    dtype, reason = pick_dtype("auto")
    import torch

    if torch.cuda.is_available():
        return Check("bf16", "good", f"dtype auto takes {dtype}: {reason}")
    from lengthen.train.machine import measured_peak

    speed = measured_peak(getattr(torch, dtype), "cpu") / 1e12
    state: State = "good" if bf16_speedup() >= 1.5 else "note"
    return Check("bf16", state, f"dtype auto takes {dtype}: {reason}; {speed:.2f} TFLOP/s")


def _cache() -> Check:
    try:
        folder = cache_folder()
    except LengthenError as error:
        return Check("cache", "bad", error.what, error.fix or "")
    if not os.access(folder, os.W_OK):
        return Check("cache", "bad", f"{folder} is read-only", "set LENGTHEN_CACHE to a folder that you can write to")
    return Check("cache", "good", str(folder))


def _disk() -> Check:
    here = Path.cwd()
    places = {"here": here}
    with contextlib.suppress(LengthenError):  # The check before this one says so.
        places["in the cache"] = cache_folder()
    free = {name: shutil.disk_usage(place).free / 2**30 for name, place in places.items()}
    found = ", ".join(f"{size:.0f} GiB free {name}" for name, size in free.items())
    if min(free.values()) < 1:
        return Check("disk", "bad", found, "free some space")
    if min(free.values()) < _DEMO_DISK_GIB:
        return Check("disk", "note", found, f"the quickstart needs about {_DEMO_DISK_GIB} GiB")
    return Check("disk", "good", found)


def _default_model() -> Check:
    try:
        folder = cache_folder("models") / "smollm2-135m-instruct"
    except LengthenError:
        return Check("default model", "absent", "no cache folder")
    if (folder / "model.safetensors").exists():
        return Check("default model", "good", "SmolLM2-135M-Instruct is in the cache")
    return Check("default model", "absent", "not downloaded yet; the first run fetches it (93 MB)")


def _extra(extra: Extra, advice: str, missing: Callable[[Extra], list[str]] = Extra.missing) -> Check:
    gone = missing(extra)
    if not gone:
        return Check(extra.name, "good", extra.about)
    return Check(extra.name, "absent", f"{extra.about}: needs {', '.join(gone)}", advice)
