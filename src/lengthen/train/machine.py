"""What this machine gives to training: allocator thresholds, measured peak, and the work of a batch."""

from __future__ import annotations

import ctypes
import importlib
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from lengthen.train.collate import Batch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 2**31 - 2**20  # the argument of mallopt is a C int
CPU_HEAD_TOKENS, CPU_HEAD_WORDS = 1024, 8192  # tile of the fused head on processors


def raise_malloc_thresholds() -> bool:
    """Make glibc keep freed memory instead of giving it back to the kernel after every large tensor.

    On CPUs this is worth about a third of the training speed (227 tokens/s at 4K against 334 with raised thresholds,
    SmolLM2-135M, two cores): each activation is otherwise mapped and zeroed anew. Costs memory that stays with the
    process. False where the C library has no mallopt (musl, macOS, Windows).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        done = libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES), libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
    except (OSError, AttributeError):
        return False
    return all(done)


def shrink_head_tiles() -> None:
    """Let TRL's fused head work in smaller tiles, for processors.

    Its own, 4,096 tokens x 32,768 words, suit a GPU's kernels. Without Triton each tile passes through a dozen
    element-wise steps, with several copies of 512 MiB alive at once; ours has 32 MiB (docs/benchmarks.md, packed-16k,
    before and after). The result is the same but for the order of the sums. The sizes are constants of TRL's modules,
    so this holds for the whole process.
    """
    for place, name, size in (
        ("trl.kernels.chunked_logprob", "TOKEN_CHUNK_SIZE", CPU_HEAD_TOKENS),
        ("trl.trainer.utils", "_CHUNKED_LOGPROB_CHUNK_SIZE", CPU_HEAD_WORDS),
    ):
        try:
            module = importlib.import_module(place)
            getattr(module, name)
        except (ImportError, AttributeError):
            logging.getLogger(__name__).warning(
                "This version of TRL has no %s in %s: the head keeps TRL's own tiles and needs more memory.",
                name,
                place,
            )
            continue
        setattr(module, name, size)


def measured_peak(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations per second of a large matrix product here, the best of a few."""
    n = 8192 if device == "cuda" else 1536
    a = torch.ones(n, n, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, a)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def training_flops(config: Any, parameters: int) -> Callable[[Batch], float]:
    """Operations of one batch, forward and backward: 6 per matrix weight and token, the head only where there is a
    target, causal attention 6 x layers x width x (sum of squared document lengths).

    Recomputed activations do not count: the share of the peak is of useful work.

    Args:
        config: text config of the model.
        parameters: weights of the layers, without embeddings and head.
    """
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = 6.0 * config.num_hidden_layers * width
    head = 6.0 * config.vocab_size * config.hidden_size
    return lambda batch: 6.0 * parameters * batch.tokens + head * batch.trained + attention * batch.cost


def layer_parameters(model: Any) -> int:
    """Weights outside the embeddings and the head, which a tied model has once."""
    outside = {id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in outside)
