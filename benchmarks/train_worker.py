"""One measured training in a process of its own: `python -m benchmarks.train_worker SPEC.json OUT.json`.

SPEC: `side` (ours, trl), `model`, `rows` (a rows folder, or TRL's parquet file), `folder` (empty, for what is written),
`steps`, `length` (positions to extend to, or null), `dtype`, `packed`, `checkpointing`, `precision` (TRL: weights,
autocast). OUT: `seconds` of each step after the first, `losses` of all steps, `peak` bytes at the end of the last step.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

STEPS = "steps.jsonl"  # what TRL's side writes: one line for each step


def ours(spec: dict[str, Any]) -> dict[str, Any]:
    """The train stage, as `lengthen run` calls it."""
    from benchmarks.common import peak_memory
    from lengthen.common.files import read_json_lines
    from lengthen.common.manifest import StageContext
    from lengthen.recipe.stages.train import TrainStage
    from lengthen.train.run import train

    folder, steps = Path(spec["folder"]), spec["steps"]
    stage = TrainStage.model_validate(stage_settings(spec))
    peak = [0]

    def watch() -> None:
        # After its last step the stage writes the model, which is no part of a step.
        metrics = folder / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < steps:
            peak[0] = peak_memory()
            time.sleep(0.05)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    train(stage, StageContext(folder, seed=first_row_first(spec["rows"], stage)))
    watcher.join()
    lines = list(read_json_lines(folder / "metrics.jsonl"))
    return {
        "seconds": [line["seconds"] for line in lines[1:]],
        "losses": [line["loss"] for line in lines],
        "peak": peak[0],
    }


def stage_settings(spec: dict[str, Any]) -> dict[str, Any]:
    """Settings of our train stage; those of the peer below are the same where they have the same meaning."""
    return {
        "kind": "train", "model": spec["model"], "rows": [spec["rows"]], "length": spec["length"],
        "steps": spec["steps"], "batch_rows": spec.get("batch_rows", 1), "lr": 1e-5, "warmup": 0.0,
        "schedule": "constant", "dtype": spec["dtype"], "checkpointing": spec["checkpointing"],
        "save_every": 10**6, "betas": [0.9, 0.95], "weight_decay": 0.1, "grad_clip": 1.0,
    }  # fmt: skip


def first_row_first(rows: str, stage: Any) -> int:
    """A seed with which the run begins with the first row, a short one: it warms up what there is to warm up."""
    from lengthen.common.seeds import derive_seed
    from lengthen.train.rows import open_training_rows
    from lengthen.train.sampler import StepPlan

    found = open_training_rows([rows])
    for seed in range(10_000):
        order = derive_seed(seed, "order")
        plan = StepPlan(found.costs.tolist(), found.lengths.tolist(), batch_rows=stage.batch_rows, seed=order)
        if plan.rows(0)[0][0] == 0:
            return seed
    raise RuntimeError("no seed puts the first row first")


def trl(spec: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer on sdpa, at the fastest of its settings that train on whole documents."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from benchmarks.common import peak_memory

    folder, lines = Path(spec["folder"]), []
    folder.mkdir(parents=True, exist_ok=True)

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                lines.append({"at": time.monotonic(), "loss": logs["loss"], "peak": peak_memory()})
                with open(folder / STEPS, "a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")

    trainer = SFTTrainer(
        model=_peer_model(spec),
        args=SFTConfig(**_peer_arguments(spec)),
        train_dataset=Dataset.from_parquet(spec["rows"], cache_dir=str(folder / "cache")),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
        callbacks=[Clock()],
    )
    trainer.train()
    return {
        "seconds": [b["at"] - a["at"] for a, b in itertools.pairwise(lines)],
        "losses": [line["loss"] for line in lines],
        "peak": lines[-1]["peak"],
    }


def _peer_model(spec: dict[str, Any]) -> Any:
    """The same weights with the same positions, so that both sides compute the same loss."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(spec["model"])
    if spec["rope"] is not None:
        config.rope_parameters, config.max_position_embeddings = spec["rope"], spec["length"]
    half = spec["dtype"] == "bfloat16" and spec["precision"] == "weights"
    return AutoModelForCausalLM.from_pretrained(
        spec["model"],
        config=config,
        dtype=torch.bfloat16 if half else torch.float32,
        attn_implementation="sdpa",
    )


def _peer_arguments(spec: dict[str, Any]) -> dict[str, Any]:
    """bfd_split keeps every token and switches TRL's padding-free batches on; its fused head needs no setting."""
    import torch

    autocast = spec["dtype"] == "bfloat16" and spec["precision"] == "autocast"
    return {
        "output_dir": spec["folder"], "max_steps": spec["steps"], "per_device_train_batch_size": 1,
        "learning_rate": 1e-5, "lr_scheduler_type": "constant", "warmup_steps": 0, "adam_beta2": 0.95,
        "weight_decay": 0.1, "max_grad_norm": 1.0, "gradient_checkpointing": spec["checkpointing"],
        "bf16": autocast, "use_cpu": not torch.cuda.is_available(),
        "packing": spec["packed"], "packing_strategy": "bfd_split", "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True}, "train_sampling_strategy": "sequential",
        "logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    found = {"ours": ours, "trl": trl}[spec["side"]](spec)
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
