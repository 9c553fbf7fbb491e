"""FSDP2: weights, gradients and optimizer state shared out over all ranks of a launch.

torch's `fully_shard` is applied here, by us, and not through Accelerate's plugin, for two reasons. On processors
Accelerate ignores its plugin without a word and runs DDP, so that no test on processors could prove what GPUs run;
this way both run the same lines. And Accelerate puts the head into a unit of its own, while the fused head reads
`lm_head.weight` without calling the head: here embedding, last norm and head stay in the root's unit, whose weights
are whole from the model's first line to its last.

Checkpoints hold whole tensors in the format of an unsharded run: they may be resumed on any number of ranks, sharded or
not. The cost is one tensor at a time on every rank, and the whole model on the first rank's main memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from lengthen.common import dist as launch

Sharding = Literal["ddp", "fsdp2"]


def choose(sharding: str, world: int) -> tuple[Sharding, str]:
    """(how the model is spread, why)."""
    if world == 1:
        return "ddp", "one process"
    if sharding != "auto":
        return ("fsdp2" if sharding == "fsdp2" else "ddp"), "as set"
    if torch.cuda.is_available():
        return "fsdp2", f"{world} GPUs: each keeps 1/{world} of weights, gradients and optimizer"
    return "ddp", "processors share their memory, so that sharding would only add traffic"


def shard(model: Any) -> Any:
    """Shard a model in place: one unit for each decoder layer, one for the rest. Every rank holds the same weights
    before the call; gradients are averaged over all ranks. Returns the model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    if is_sharded(model):
        return model
    # bf16 gradients are added up over the ranks in fp32, as the optimizer's fp32 masters deserve.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    for module in list(model.modules()):
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    # Accelerate would wrap the model into DDP (on processors) or move it to one device: it is ready as it is.
    model._is_accelerate_prepared = True
    return model


def is_sharded(model: Any) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A plain tensor with all of its values, on every rank; every rank has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weights(model: Any) -> dict[str, torch.Tensor]:
    """The state dict with whole tensors in main memory on the first rank, an empty one elsewhere. Collective.

    Tied weights are gathered once and stay one tensor, so that `save_pretrained` recognises them.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    gathered: dict[int, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        key = id(parameters.get(name, value))
        if key not in gathered:
            full = whole(value.detach())
            gathered[key] = full.cpu() if launch.is_main() else full.new_empty(0)
        if launch.is_main():
            found[name] = gathered[key]
    return found


def gather_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state dict with whole tensors in main memory; only the first rank's is complete. Collective."""
    saved = optimizer.state_dict()
    state: dict[Any, dict[str, Any]] = {}
    for name, values in saved["state"].items():
        state[name] = {}
        for key, value in values.items():
            full = whole(value) if isinstance(value, torch.Tensor) else value
            if launch.is_main():
                state[name][key] = full.cpu() if isinstance(full, torch.Tensor) else full
    return {"state": state, "param_groups": saved["param_groups"]}


def scatter_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict of whole tensors (the same on every rank), cut as this optimizer's parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = [n for group in saved["param_groups"] for n in group["params"]]
    state: dict[Any, dict[str, Any]] = {}
    for name, p in zip(names, parameters, strict=True):
        values = saved["state"].get(name)
        if values is not None:
            state[name] = {key: cut(value, p) for key, value in values.items()}
    return {"state": state, "param_groups": saved["param_groups"]}


def cut(value: Any, like: torch.Tensor) -> Any:
    """A whole tensor of a parameter's shape, cut as the parameter is; anything else as it is."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor) or not isinstance(value, torch.Tensor):
        return value
    if value.shape != like.shape:
        return value
    # src_data_rank None: each rank read the same file, nothing needs to be sent.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_model(model: Any, rebuild: Callable[[], Any]) -> Any | None:
    """An unsharded copy in main memory, on the first rank only. Collective.

    Args:
        rebuild: makes an unsharded model of the same structure; its weights are replaced.
    """
    weights = gather_weights(model)
    if not launch.is_main():
        return None
    plain = rebuild()
    plain.load_state_dict(weights)
    return plain
