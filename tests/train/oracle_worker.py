"""The ranks of the oracle. `python -m tests.train.oracle_worker JOB.json` starts real processes that meet over gloo.

Libraries are imported once and the ranks are forked: importing them is most of a small cell's time. Each world size is
one launch with all of its cells inside; a cell is one LongTrainer of two steps.
"""

from __future__ import annotations

import json
import os
import random
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.train.ranks import fork_ranks

VOCABULARY = 128
STEPS = 2
# eps is large so that a step is smooth in the gradient: Adam would blow up the rounding of gradients near zero.
OPTIMIZER = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 0.1}
CLIP = 0.5
DATA = ("one", "isolated", "joined", "skipped")
# 60,50,50,40 is cut inside a document by two ranks; 50,50,60,40 at documents' ends by four; 97 and 101 need padding.
LENGTHS = {
    "one": [[200], [97], [64], [130]],
    "packed": [[60, 50, 50, 40], [50, 50, 60, 40], [33, 31, 33], [10, 1, 90]],
}


@dataclass(frozen=True)
class Cell:
    data: str
    checkpointing: bool
    dp: int
    sp: int
    sharding: str
    lora: bool

    @property
    def world(self) -> int:
        return self.dp * self.sp

    @property
    def name(self) -> str:
        recompute = "checkpointing" if self.checkpointing else "plain"
        weights = "lora" if self.lora else "full"
        return f"{self.data}-{recompute}-dp{self.dp}-sp{self.sp}-{self.sharding}-{weights}"


def rows_of(data: str) -> list[dict[str, Any]]:
    """Four rows of random tokens: all trained, two thirds trained, only a beginning trained, nothing trained."""
    rng = random.Random(7)
    rows = []
    for index, lens in enumerate(LENGTHS["one" if data == "one" else "packed"]):
        n = sum(lens)
        mask = [[1] * n, [int(rng.random() < 0.66) for _ in range(n)], [1] * 20 + [0] * (n - 20), [0] * n][index]
        rows.append(
            {
                "input_ids": [rng.randrange(VOCABULARY) for _ in range(n)],
                "doc_lens": lens,
                "attend": "joined" if data == "joined" else "isolated",
                "sources": ["test"] * len(lens),
                "loss_mask": mask,
            }
        )
    return rows


def make(attention: str, lora: bool) -> Any:
    """The same small Llama everywhere: 4 query heads on 2 key/value heads, tied embeddings, adapters that do much."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lengthen.recipe.stages.train import LoraSettings
    from lengthen.train.attention import register
    from lengthen.train.lora import add_adapters

    register()
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(3)
    model: Any = LlamaForCausalLM(config)
    if lora:
        model = add_adapters(model, LoraSettings(rank=4))
        with torch.no_grad():  # the second matrix starts as zeros, which would hide the first one's gradient
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.02)
    return model


def plan_and_collator(data: str, dp: int, sp: int) -> tuple[Any, Any]:
    from lengthen.recipe.stages.train import PositionSettings
    from lengthen.train.collate import Collator, row_cost
    from lengthen.train.sampler import StepPlan

    rows = rows_of(data)
    positions = PositionSettings(type="skip", targets=[700], unit=(4, 12)) if data == "skipped" else PositionSettings()
    lengths = [len(row["input_ids"]) for row in rows]
    plan = StepPlan([row_cost(row) for row in rows], lengths, batch_rows=4, dp_size=dp, seed=5)
    return plan, Collator(positions, seed=9, pad_to=sp)


def run_cell(cell: Cell, mesh: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:
    from datasets import Dataset

    from lengthen.train.attention import set_exchange
    from lengthen.train.options import Housekeeping, Optimization
    from lengthen.train.trainer import LongTrainer

    plan, collator = plan_and_collator(cell.data, cell.dp, cell.sp)
    how = Optimization(steps=STEPS, schedule="constant", warmup=0, weight_decay=0.0, grad_clip=CLIP, **OPTIMIZER)
    keeping = Housekeeping(folder=folder, checkpointing=cell.checkpointing, sharding=cell.sharding)  # type: ignore[arg-type]
    found: dict[str, Any] = {"cell": asdict(cell), "steps": []}
    model = make("lengthen", cell.lora)
    trainer = LongTrainer(
        model, tokenizer, Dataset.from_list(rows_of(cell.data)), plan, collator, how, keeping, mesh.ranks,
        on_step=lambda line: found["steps"].append(line),
        on_ready=lambda ready: found.update(describe(ready)),
    )  # fmt: skip
    set_exchange(mesh.exchange)
    try:
        trainer.train()
    finally:
        set_exchange(None)
    return found


def describe(model: Any) -> dict[str, Any]:
    """Whether every parameter is a DTensor, and the share of the numbers that this rank holds."""
    from torch.distributed.tensor import DTensor

    parts = list(model.parameters())
    mine = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parts)
    sharded = [isinstance(p, DTensor) for p in parts]
    return {"all_sharded": all(sharded), "any_sharded": any(sharded), "share": mine / sum(p.numel() for p in parts)}


def rank_main(cells: list[Cell], tokenizer: str, out: Path) -> None:
    import torch.distributed as dist
    from transformers import AutoTokenizer

    from lengthen.train.mesh import open_mesh

    dist.init_process_group("gloo")  # also for a world of one, so that it can shard
    ready, meshes = AutoTokenizer.from_pretrained(tokenizer), {}
    for cell in cells:
        if cell.sp not in meshes:
            meshes[cell.sp] = open_mesh(cell.sp)
        found = run_cell(cell, meshes[cell.sp], ready, out / cell.name)
        if dist.get_rank() == 0:
            with open(out / "found.jsonl", "a") as file:
                file.write(json.dumps(found) + "\n")


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ["OMP_NUM_THREADS"] = "1"
    import peft  # noqa: F401

    import lengthen.train.trainer  # noqa: F401

    cells = [Cell(**cell) for cell in job["cells"]]
    for world in sorted({cell.world for cell in cells}):
        mine = [cell for cell in cells if cell.world == world]
        fork_ranks(world, partial(rank_main, mine, job["tokenizer"], Path(job["out"])))


if __name__ == "__main__":
    main()
