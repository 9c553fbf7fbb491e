"""AdamW for weights kept in bf16: fp32 master copies, and gradients that are added up in fp32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lengthen.common.errors import LengthenError
from lengthen.train import fsdp

_STATE = ("master", "exp_avg", "exp_avg_sq")
_BUCKET = 64 * 2**20  # elements per call: bounds the fp32 copies of gradients to 256 MB


class MasterAdamW(torch.optim.Optimizer):
    """AdamW whose state lives in fp32 while the model's weights are bf16 (or fp16).

    A bf16 weight has 8 bits of mantissa: steps under 1/256 of a weight would be lost. So each such parameter has an
    fp32 master copy (in the optimizer's state, hence in checkpoints) that is stepped, then rounded into the model.
    fp32 parameters (LoRA adapters) are stepped directly.

    `add_gradients` moves the gradients of a micro-batch into fp32 sums; with one micro-batch a step it is not needed.
    `grad_scale` is set by clipping and used up by the next step, so that gradients are not rounded once more.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})
        self._sums: dict[Tensor, Tensor] = {}
        self.grad_scale = 1.0

    def parameters(self) -> Iterator[Tensor]:
        for group in self.param_groups:
            yield from group["params"]

    @torch.no_grad()
    def add_gradients(self) -> None:
        """Move `.grad` of all parameters into fp32 sums and clear it."""
        for p in self.parameters():
            if p.grad is not None:
                if p in self._sums:
                    self._sums[p].add_(p.grad)
                else:
                    self._sums[p] = p.grad.float()
                p.grad = None

    def gradient(self, p: Tensor) -> Tensor | None:
        """The step's gradient so far, fp32 where it was summed."""
        if p in self._sums:
            return self._sums[p] if p.grad is None else self._sums[p].add_(p.grad)
        return p.grad

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """Norm over all parameters, computed in fp32 (a norm in bf16 has three digits)."""
        self._collect()
        norms = [
            torch.linalg.vector_norm(g, dtype=torch.float32)
            for g in (self.gradient(p) for p in self.parameters())
            if g is not None
        ]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def _collect(self) -> None:
        if self._sums:
            self.add_gradients()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._collect()
        for group in self.param_groups:
            bucket: list[Tensor] = []
            for p in group["params"]:
                if self.gradient(p) is None:
                    continue
                bucket.append(p)
                if sum(q.numel() for q in bucket) >= _BUCKET:
                    self._step_bucket(group, bucket)
                    bucket = []
            if bucket:
                self._step_bucket(group, bucket)
        self._sums.clear()
        self.grad_scale = 1.0
        return loss

    def _step_bucket(self, group: dict[str, Any], bucket: list[Tensor]) -> None:
        masters, grads = [], []
        for p in bucket:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                if p.dtype != torch.float32:
                    state["master"] = p.detach().float()
                base = state.get("master", p)
                state["exp_avg"] = torch.zeros_like(base, dtype=torch.float32)
                state["exp_avg_sq"] = torch.zeros_like(base, dtype=torch.float32)
            gradient = self.gradient(p)
            assert gradient is not None
            # A copy even where it is fp32 already: scaling must not change what a caller still reads.
            grads.append(gradient.float() * self.grad_scale if self.grad_scale != 1.0 else gradient.float())
            masters.append(state.get("master", p))
        adamw(
            masters,
            grads,
            [self.state[p]["exp_avg"] for p in bucket],
            [self.state[p]["exp_avg_sq"] for p in bucket],
            [],
            [self.state[p]["step"] for p in bucket],
            foreach=None if bucket[0].device.type == "cpu" else True,
            fused=None,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for p, master in zip(bucket, masters, strict=True):
            if master is not p:
                p.copy_(master)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the state stays fp32: torch casts it to the parameter's dtype, which would round masters."""
        super().load_state_dict(state_dict)
        order = [p for group in self.param_groups for p in group["params"]]
        names = [n for group in state_dict["param_groups"] for n in group["params"]]
        for name, p in zip(names, order, strict=True):
            for key in _STATE:
                saved = state_dict["state"].get(name, {}).get(key)
                if saved is not None:
                    self.state[p][key] = fsdp.cut(saved, p).detach().to(device=p.device, dtype=torch.float32).clone()


def carry_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any], file: Path) -> None:
    """Take over another run's moments; learning rate and decay stay this run's."""
    check_shapes(optimizer, saved, file)
    # Master copies follow this run's start weights, which may have been merged or rounded since.
    state = {name: {k: v for k, v in one.items() if k != "master"} for name, one in saved["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    if isinstance(optimizer, MasterAdamW):
        for p in optimizer.parameters():
            if p in optimizer.state and p.dtype != torch.float32:
                optimizer.state[p]["master"] = p.detach().float()


def check_shapes(optimizer: torch.optim.Optimizer, saved: dict[str, Any], file: Path) -> None:
    """Refuse an optimizer state that belongs to other parameters."""
    here = [p for group in optimizer.param_groups for p in group["params"]]
    names = [n for group in saved["param_groups"] for n in group["params"]]
    fix = "use the checkpoint of a run with the same model, adapters and dtype, or drop optimizer_from"
    if len(names) != len(here):
        raise LengthenError(
            f"The optimizer state in {file} has {len(names)} parameters, this run has {len(here)}.", fix=fix
        )
    for name, p in zip(names, here, strict=True):
        state = saved["state"].get(name, {})
        if "exp_avg" in state and tuple(state["exp_avg"].shape) != tuple(p.shape):
            raise LengthenError(
                f"The optimizer state in {file} has a parameter of shape {tuple(state['exp_avg'].shape)} where this "
                f"run has {tuple(p.shape)}.",
                fix=fix,
            )
