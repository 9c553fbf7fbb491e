"""Ranks as the launcher (torchrun, accelerate, Slurm's srun) tells them, without importing torch."""

from __future__ import annotations

import os


def rank() -> int:
    """Global rank of this process; 0 when nothing launched us."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0") if _srun() else "0"))


def world_size() -> int:
    """Number of processes of this launch; 1 when nothing launched us."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1") if _srun() else "1"))


def local_rank() -> int:
    """Rank on this machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0") if _srun() else "0"))


def is_main() -> bool:
    """True on the one process that prints and writes."""
    return rank() == 0


def _srun() -> bool:
    # An interactive `salloc` shell also carries SLURM_NTASKS; only a step started by srun has SLURM_STEP_ID.
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ


def export_launcher_variables() -> None:
    """Give torch.distributed the variables that it reads (`env://`) when `srun` alone launched us."""
    if world_size() > 1 and "RANK" not in os.environ:
        os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank()), str(world_size())
        os.environ["LOCAL_RANK"] = str(local_rank())
        os.environ.setdefault("MASTER_ADDR", os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        os.environ.setdefault("MASTER_PORT", "29500")
