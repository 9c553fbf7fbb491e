"""Ranks of test_sequence_parallel. `python -m tests.train.sequence_worker TOKENIZER FOLDER`: every case on two ranks
that share each row's tokens."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.train.oracle_worker import CLIP, OPTIMIZER, STEPS, VOCABULARY, rows_of
from tests.train.ranks import fork_ranks

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
    "initializer_range": 0.2, "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model family with its own settings, and how its rows are weighed and put together."""

    family: str = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    loss: Any = "token"
    micro_rows: int = 1


CASES = {
    "sequence": Case(loss="sequence"),
    "pack": Case(loss="pack"),
    "two rows at once": Case(micro_rows=2),
    "two rows at once, sequence": Case(micro_rows=2, loss="sequence"),
    "window": Case("mistral", {"sliding_window": 16}),
    "softcap and window": Case(
        "gemma2", {"sliding_window": 16, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}
    ),
    "sinks and window": Case(
        "gpt_oss",
        {"sliding_window": 16, "num_local_experts": 2, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.0},
    ),
}


def make(case: Case, attention: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lengthen.train.attention import register

    register()
    config = AutoConfig.for_model(case.family, **SIZES, **case.config)
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)


def plan_of(case: Case) -> Any:
    from lengthen.train.collate import row_cost
    from lengthen.train.sampler import StepPlan

    rows = rows_of("isolated")
    lengths = [len(row["input_ids"]) for row in rows]
    return StepPlan([row_cost(row) for row in rows], lengths, batch_rows=4, micro_rows=case.micro_rows, seed=5)


def rank_main(tokenizer: str, folder: Path) -> None:
    import torch.distributed as dist
    from datasets import Dataset
    from transformers import AutoTokenizer

    from lengthen.train.attention import set_exchange
    from lengthen.train.collate import Collator
    from lengthen.train.mesh import check_sequence_parallel, open_mesh
    from lengthen.train.options import Housekeeping, Optimization
    from lengthen.train.trainer import LongTrainer

    mesh, found = open_mesh(2), {}
    rows, ready = Dataset.from_list(rows_of("isolated")), AutoTokenizer.from_pretrained(tokenizer)
    how = Optimization(steps=STEPS, schedule="constant", warmup=0, weight_decay=0.0, grad_clip=CLIP, **OPTIMIZER)
    for name, case in CASES.items():
        model, found[name] = make(case, "lengthen"), []
        check_sequence_parallel(model.config, 2)
        trainer = LongTrainer(
            model, ready, rows, plan_of(case), Collator(rule=case.loss, pad_to=2), how,
            Housekeeping(folder=folder / name), mesh.ranks, on_step=found[name].append,
        )  # fmt: skip
        set_exchange(mesh.exchange)
        try:
            trainer.train()
        finally:
            set_exchange(None)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))


def main() -> None:
    import lengthen.train.trainer  # noqa: F401

    fork_ranks(2, partial(rank_main, sys.argv[1], Path(sys.argv[2])))


if __name__ == "__main__":
    main()
