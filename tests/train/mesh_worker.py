"""Ranks of test_mesh. `python -m tests.train.mesh_worker exchange 4` or `... train 2 JOB.json`."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from tests.train.ranks import fork_ranks


def exchange() -> None:
    """Everything that leaves the exchange equals slices of the whole tensor, forwards and backwards."""
    import torch

    from lengthen.common.dist import rank, world_size
    from lengthen.train.mesh import open_mesh

    size, me, batch, tokens, dim = world_size(), rank(), 2, 6, 5
    mesh = open_mesh(size)
    ulysses = mesh.exchange
    assert ulysses is not None and mesh.ranks.sp_rank == me and mesh.ranks.dp_size == 1
    for heads in (size, 2 * size, max(1, size // 2)):
        whole = torch.randn(batch, heads, size * tokens, dim, generator=torch.Generator().manual_seed(heads))
        mine = whole[:, :, me * tokens : (me + 1) * tokens]
        # As models hand it over: (B, S, H, D) in memory, seen as (B, H, S, D).
        strided = mine.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        assert not strided.is_contiguous() or heads == 1
        copies = max(1, size // heads)
        shared = whole.repeat_interleave(copies, dim=1)
        local = shared.shape[1] // size
        got = ulysses.scatter_heads(strided)
        assert got.is_contiguous() and torch.equal(got, shared[:, me * local : (me + 1) * local]), (heads, "scatter")
        # Loss = sum over all ranks of weight x output: the gradient of a token is its weight, summed over the copies.
        weight = torch.randn(shared.shape, generator=torch.Generator().manual_seed(99))
        (got * weight[:, me * local : (me + 1) * local]).sum().backward()
        expected = weight.unflatten(1, (heads, copies)).sum(2)[:, :, me * tokens : (me + 1) * tokens]
        assert strided.grad is not None and torch.allclose(strided.grad, expected, atol=1e-6), (heads, "gradient")
        back = ulysses.gather_heads(got.detach().transpose(1, 2).contiguous().transpose(1, 2))
        assert torch.equal(back, shared[:, :, me * tokens : (me + 1) * tokens]), (heads, "gather")
        half = ulysses.scatter_heads(mine.bfloat16())
        assert torch.equal(half, shared.bfloat16()[:, me * local : (me + 1) * local]), (heads, "bfloat16")


def train(jobs: list[tuple[dict, str]]) -> None:
    from lengthen.common.manifest import StageContext
    from lengthen.recipe.stages.train import TrainStage
    from lengthen.train.run import train as run

    for settings, out in jobs:
        run(TrainStage.model_validate(settings), StageContext(folder=Path(out)))


def main() -> None:
    what, world = sys.argv[1], int(sys.argv[2])
    if what == "exchange":
        import lengthen.train.mesh

        fork_ranks(world, exchange)
        return
    import peft  # noqa: F401

    import lengthen.train.run  # noqa: F401

    fork_ranks(world, partial(train, json.loads(Path(sys.argv[3]).read_text())))


if __name__ == "__main__":
    main()
