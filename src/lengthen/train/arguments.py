"""Our settings as TRL's and Trainer's."""

from __future__ import annotations

from typing import Any

import torch
from trl.trainer.sft_config import SFTConfig

from lengthen.train.options import Housekeeping, Optimization
from lengthen.train.sampler import StepPlan


def half_precision(model: Any) -> bool:
    """Whether any trained weight has fewer bits than fp32."""
    return any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())


class _StayInMemory(SFTConfig):
    """The model waits in main memory until it is sharded: whole, it may not fit one GPU."""

    place_model_on_device = False  # type: ignore[assignment]


def training_arguments(o: Optimization, keeping: Housekeeping, plan: StepPlan, half: bool) -> SFTConfig:
    """half: whether gradients are in fewer bits than fp32."""
    gpu = torch.cuda.is_available()
    kind = _StayInMemory if gpu and keeping.sharding == "fsdp2" else SFTConfig
    arguments = kind(
        output_dir=str(keeping.store),
        max_steps=o.steps,
        per_device_train_batch_size=plan.micro_rows,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=o.lr,
        max_grad_norm=o.grad_clip,
        activation_checkpointing=keeping.checkpointing,
        gradient_checkpointing=keeping.checkpointing,
        activation_offloading=keeping.activation_offload,
        use_liger_kernel=keeping.liger,
        # The model's own dtype decides (bf16 weights have fp32 masters); autocast would cast every weight each time.
        bf16=False,
        fp16=False,
        use_cpu=not gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if keeping.save_every else "no",
        save_steps=keeping.save_every or 1,
        report_to=list(keeping.report_to) or "none",
        disable_tqdm=True,
        seed=keeping.seed % 2**32,
        remove_unused_columns=False,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        ddp_find_unused_parameters=False,
        # Gradients of bf16 weights are added up in fp32 by the optimizer after each micro-batch; so each has to be
        # averaged over the ranks before.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}} if half else None,
    )
    if arguments.n_gpu > 1:
        # One process that sees several GPUs: Trainer would wrap the model into DataParallel, which cuts `doc_lens` up
        # as if they were rows. One process trains on one GPU; `torchrun` uses the others.
        arguments._n_gpu = 1
    return arguments
