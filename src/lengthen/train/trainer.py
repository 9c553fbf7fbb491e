"""`LongTrainer`: TRL's SFTTrainer on packed long rows. The only file that touches what TRL and Trainer keep inside.

What is ours here: batches come as `Batch` (document borders, targets, weights); the loss is normalised by the step's
true count over ranks and accumulation; only positions with a target reach the head; checkpoints are whole or absent;
one line of metrics per optimizer step.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from lengthen.common.errors import LengthenError
from lengthen.common.files import append_json_line
from lengthen.train import fsdp
from lengthen.train.arguments import half_precision, training_arguments
from lengthen.train.checkpoints import PART, explain_failed_save, last_good, prune, seal_and_publish
from lengthen.train.collate import Batch, Collator
from lengthen.train.machine import shrink_head_tiles
from lengthen.train.optimizer import MasterAdamW, carry_state, check_shapes
from lengthen.train.options import Housekeeping, Optimization
from lengthen.train.rows import row_of
from lengthen.train.sampler import MicroBatches, Pick, Ranks, StepPlan
from lengthen.train.schedule import lr_share, warmup_steps


class PickedRows(torch.utils.data.Dataset):
    """Rows by (index, place in the run); the place goes along as `draw`, and seeds the position draws."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, pick: Pick) -> dict[str, Any]:
        return {**row_of(self.rows, pick[0]), "draw": pick[1]}


class LongTrainer(SFTTrainer):
    """Trains `model` on `rows` in the order of `plan`.

    Args:
        model: a causal language model with the attention `lengthen`.
        tokenizer: saved with the model.
        rows: columns as in the design's rows.
        ranks: this process's data- and sequence-parallel place.
        on_step: called with each step's metrics on the first rank.
        on_ready: called on every rank with the model as it will be trained, before the first step.
    """

    # `compute_loss` divides by the whole step's units, so Trainer must not divide by the accumulation steps again.
    loss_is_scaled_for_ga = True
    _tag_names: ClassVar[list[str]] = []

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        rows: Dataset,
        plan: StepPlan,
        collator: Collator,
        optimization: Optimization,
        keeping: Housekeeping,
        ranks: Ranks | None = None,
        on_step: Callable[[dict[str, Any]], None] | None = None,
        on_ready: Callable[[Any], object] | None = None,
    ) -> None:
        self.rows = rows
        self.plan, self.collator, self.optimization, self.keeping = plan, collator, optimization, keeping
        self.ranks, self.on_step, self.on_ready = ranks or Ranks(), on_step, on_ready
        self._keep: torch.Tensor | None = None
        self._step: dict[str, float] = {}
        self._balance = 0.0
        self._clock = time.monotonic()
        self._saving = False
        text = model.config.get_text_config()
        router_logits = getattr(text, "output_router_logits", None)
        super().__init__(
            model=model,
            args=training_arguments(optimization, keeping, plan, half_precision(model)),
            train_dataset=rows,
            data_collator=collator,
            processing_class=tokenizer,
        )
        if router_logits is not None:
            # TRL switches them on in the config, which is saved with the model; `compute_loss` asks for them itself.
            text.output_router_logits = router_logits
        # Each log line goes to metrics.jsonl and the progress bar, not to the screen.
        self.remove_callback(PrinterCallback)
        self._compact_head()

    # ---- rows ----
    def get_train_dataloader(self) -> DataLoader:
        """All steps as one pass: epochs are the plan's business, and a resumed run skips by counting, not reading."""
        return DataLoader(
            PickedRows(self.rows),
            batch_sampler=MicroBatches(self.plan, self.optimization.steps, self.ranks.dp_rank),  # type: ignore[arg-type]
            collate_fn=self.collator,
            num_workers=self.keeping.workers,
            prefetch_factor=2 if self.keeping.workers else None,
        )

    def _prepare_inputs(self, inputs: Any) -> Any:
        if not isinstance(inputs, Batch):
            return super()._prepare_inputs(inputs)
        moved = {
            f.name: value.to(self.args.device)
            for f in dataclasses.fields(inputs)
            if isinstance(value := getattr(inputs, f.name), torch.Tensor)
        }
        return dataclasses.replace(inputs, **moved)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> tuple[list, Any]:
        """The step's micro-batches, and its units summed over all of them and over all ranks."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        shared = 1 / self.ranks.sp_size  # every rank of a sequence-parallel group counts the same row
        flops = self.keeping.flops
        sums = torch.tensor(
            [sum(getattr(b, key) for b in batches) * shared for key in ("units", "content", "trained", "padding")]
            + [sum(flops(b) for b in batches) * shared if flops else 0.0],
            dtype=torch.float64,
        )
        if self.args.world_size > 1:
            total: Any = self.accelerator.reduce(sums.to(device), "sum")
            sums = total.cpu()
        units, tokens, trained, padding, work = sums.tolist()
        self._step = {"tokens": tokens, "trained_tokens": trained, "padding": padding, "flops": work}
        if self.ranks.sp_size > 1:
            batches = [b.chunk(self.ranks.sp_rank, self.ranks.sp_size) for b in batches]
        return batches, units

    # ---- loss ----
    def _compact_head(self) -> None:
        """Let only positions with a target reach the head.

        TRL's fused head skips other positions on GPUs with Triton but scores all of them elsewhere; a chat row has
        twenty targets in two thousand tokens. The hook narrows the backbone's output just before the head.
        """
        model: Any = self.model
        model = model.get_base_model() if hasattr(model, "peft_config") else model
        # TRL also asks for entropy and top-1 accuracy of each token, which we do not report: put the plain forward
        # back and patch it for log-probabilities alone.
        model.__dict__.pop("forward", None)
        if self.args.device.type == "cpu":  # not the model's: under FSDP2 it waits in main memory
            shrink_head_tiles()
        add_fused_lm_head(model)
        model.base_model.register_forward_hook(self._narrow)

    def _narrow(self, module: Any, args: Any, output: Any) -> Any:
        if self._keep is not None:
            output.last_hidden_state = output.last_hidden_state[:, self._keep]
        return output

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: float | None = None
    ) -> Any:
        """sum(weight x cross-entropy) / units of the step, times the ranks, because their gradients are averaged.

        Experts: plus router_aux_loss_coef x the balancing loss of this micro-batch (Switch Transformers, arXiv
        2101.03961, eq. 4), which weighs its share of the step's tokens."""
        keep, labels, weights = inputs.keep, inputs.labels, inputs.weights
        if not len(keep):
            # A batch without a target still runs, so that every rank takes part in every exchange: one position with
            # weight 0 gives loss 0 and gradients 0.
            keep = torch.zeros(1, dtype=torch.long, device=labels.device)
            labels, weights = labels.new_zeros(1, 1), weights.new_zeros(1, 1)
        self._keep = keep
        try:
            routed = {"output_router_logits": True} if self.aux_loss_enabled else {}
            outputs = model(**inputs.model_inputs(), shift_labels=labels, fused_lm_head=True, **routed)
        finally:
            self._keep = None
        ranks = self.args.world_size
        loss = -(outputs.log_probs.float() * weights).sum() * (ranks / max(num_items_in_batch or 0.0, 1e-12))
        if self.aux_loss_enabled:
            balance = outputs.aux_loss * (inputs.content / max(self._step["tokens"], 1.0) * ranks)
            self._balance += float(balance.detach())
            loss = loss + self.router_aux_loss_coef * balance
        if num_items_in_batch == 0:
            loss = loss * 0.0
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._masters is not None and self.plan.accumulation > 1:
            self._masters.add_gradients()
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    # ---- sharding ----
    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Shards at the last moment, when a checkpoint's weights are already in place."""
        self._shard()
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.on_ready is not None:
            self.on_ready(self.model)
        return prepared

    def _shard(self) -> None:
        if self.keeping.sharding == "fsdp2":
            fsdp.shard(self.model)
            self._mixed_mesh_grads = True  # Trainer's own way to clip sharded gradients by their whole norm

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not fsdp.is_sharded(self.model):
            return super().save_model(output_dir, _internal_call)
        self._save(output_dir, state_dict=fsdp.gather_weights(self.model))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not fsdp.is_sharded(self.model):
            return super()._save_optimizer_and_scheduler(output_dir)
        state = fsdp.gather_state(self._plain_optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    # ---- optimizer ----
    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            on: Any = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(on))
            named = [(n, p) for n, p in on.named_parameters() if p.requires_grad]
            o = self.optimization
            groups = [
                {"params": [p for n, p in named if n in decayed], "weight_decay": o.weight_decay},
                {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
            ]
            kind = MasterAdamW if half_precision(on) else torch.optim.AdamW
            self.optimizer = kind([g for g in groups if g["params"]], lr=o.lr, betas=o.betas, eps=o.eps)
            self.optimizer.register_load_state_dict_pre_hook(fsdp.scatter_state)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            o = self.optimization
            warm = warmup_steps(o.warmup, o.steps)
            self.lr_scheduler = LambdaLR(
                optimizer or self.optimizer, lambda step: lr_share(step, o.steps, warm, o.schedule, o.lr_floor)
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    @property
    def _plain_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def _masters(self) -> MasterAdamW | None:
        inner = self._plain_optimizer
        return inner if isinstance(inner, MasterAdamW) else None

    def _clip_grad_norm(self, model: Any) -> Any:
        masters = self._masters
        if masters is None:
            return super()._clip_grad_norm(model)
        norm = fsdp.whole(masters.gradient_norm())
        masters.grad_scale = float(min(1.0, self.optimization.grad_clip / (float(norm) + 1e-6)))
        return norm

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        if grad_norm is None and self._masters is not None:
            return fsdp.whole(self._masters.gradient_norm())
        return super()._get_grad_norm(model, grad_norm)

    def carry_optimizer(self, file: Path) -> None:
        """Start with the moments of another run's optimizer, and this run's own schedule."""
        self._shard()
        optimizer = self.create_optimizer()
        carry_state(optimizer, torch.load(file, map_location="cpu", weights_only=True), file)

    # ---- metrics ----
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One line per optimizer step into metrics.jsonl. Stops on a loss or gradient that is no number."""
        if "loss" in logs:
            step = self.state.global_step
            if not (math.isfinite(logs["loss"]) and math.isfinite(logs.get("grad_norm", 0.0))):
                raise LengthenError(
                    f"The loss of step {step} is {logs['loss']} (gradient norm {logs.get('grad_norm')}).",
                    why=last_good(self.keeping.store),
                    fix="lower lr or raise warmup; with dtype bfloat16 try float32. Then run again",
                )
            now, did = time.monotonic(), self._step
            seconds, self._clock = now - self._clock, now
            logs["epoch"] = self.plan.epoch(step)
            if self.aux_loss_enabled:
                logs["aux_loss"] = self._over_ranks(self._balance)
                self._balance = 0.0
            logs.update(
                tokens=did["tokens"],
                trained_tokens=did["trained_tokens"],
                padding=did["padding"],
                imbalance=round(self.plan.imbalance(step - 1), 4),
                seconds=round(seconds, 4),
                tokens_per_second=round(did["tokens"] / max(seconds, 1e-9), 2),
            )
            if self.keeping.peak:
                share = did["flops"] / max(seconds, 1e-9) / (self.keeping.peak * self.args.world_size)
                logs["share_of_peak"] = round(share, 4)
            if self.is_world_process_zero():
                append_json_line(self.keeping.folder / "metrics.jsonl", {"step": step, **logs})
                if self.on_step is not None:
                    self.on_step({"step": step, **logs})
        super().log(logs, start_time)

    def _over_ranks(self, value: float) -> float:
        """The mean of a number of each rank."""
        if self.args.world_size == 1:
            return value
        mean: Any = self.accelerator.reduce(torch.tensor(value, device=self.args.device), "mean")
        return float(mean)

    # ---- checkpoints ----
    def _get_output_dir(self, trial: Any) -> str:
        return str(self.keeping.store / PART if self._saving else self.keeping.store)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write into .part, seal, rename, drop the oldest."""
        name, store = f"checkpoint-{self.state.global_step}", self.keeping.store
        with explain_failed_save(store):
            if self.is_world_process_zero():
                shutil.rmtree(store / PART, ignore_errors=True)
                (store / PART).mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self._saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving = False
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                seal_and_publish(store / PART / name, store / name, self.keeping.identity)
                prune(store, self.keeping.keep)
            self.accelerator.wait_for_everyone()
        # Writing is not training: keep it out of the next step's tokens/s.
        self._clock = time.monotonic()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            file = Path(checkpoint) / "optimizer.pt"
            if file.exists():
                check_shapes(
                    self._plain_optimizer, torch.load(file, map_location="cpu", weights_only=True, mmap=True), file
                )
        super()._load_optimizer_and_scheduler(checkpoint)
        self._clock = time.monotonic()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The report stage writes the card, with measured figures."""

    def _send_telemetry(self) -> None:
        """Training says nothing to anybody."""
