"""The oracle: whatever is packed, joined, skipped, recomputed, sharded or spread over ranks, the loss, the gradient
norm and the step equal those of plain transformers, one process, one document at a time.

The default suite runs a pairwise selection (every value of a column meets every value of every other column), `make
oracle` the whole table.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from tests.train.oracle_worker import CLIP, DATA, OPTIMIZER, STEPS, Cell, make, plan_and_collator, rows_of

TOLERANCE = 1e-5
TABLE = [
    Cell(data, checkpointing, dp, sp, sharding, lora)
    for data, checkpointing, dp, sp, sharding, lora in itertools.product(
        DATA, (False, True), (1, 2), (1, 2, 4), ("ddp", "fsdp2"), (False, True)
    )
]


def pairwise(cells: list[Cell]) -> list[Cell]:
    """Greedy: the cell that covers most pairs of values that were not seen together, until none is left."""

    def pairs(cell: Cell) -> set:
        values = [cell.data, cell.checkpointing, (cell.dp, cell.sp), cell.sharding, cell.lora]
        return set(itertools.combinations(enumerate(values), 2))

    open_pairs = set().union(*(pairs(cell) for cell in cells))
    chosen = []
    while open_pairs:
        best = max(cells, key=lambda cell: len(pairs(cell) & open_pairs))
        chosen.append(best)
        open_pairs -= pairs(best)
    return chosen


@lru_cache
def plain(data: str, lora: bool) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step: eager attention, full logits, one document at a time."""
    import torch

    model = make("eager", lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **OPTIMIZER, weight_decay=0.0)
    plan, collator = plan_and_collator(data, 1, 1)
    rows, found = rows_of(data), []
    for step in range(STEPS):
        losses = []
        for index, place in plan.rows(step):
            row = rows[index]
            positions = collator([{**row, "draw": place}]).position_ids[0]
            start = 0
            for n in [len(row["input_ids"])] if data == "joined" else row["doc_lens"]:
                here = slice(start, start + n)
                ids, mask = torch.tensor(row["input_ids"][here]), torch.tensor(row["loss_mask"][here]).bool()
                # The mask of ones keeps transformers from cutting the document where its positions jump.
                ones = torch.ones(1, n, dtype=torch.long)
                logits = model(input_ids=ids[None], position_ids=positions[None, here], attention_mask=ones).logits[0]
                each = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
                losses.append(each[mask[1:]])
                start += n
        loss = torch.cat(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        found.append((float(loss.detach()), float(norm)))
    return found


def run(cells: list[Cell], folder: Path, tokenizer: Path) -> None:
    job = {"cells": [vars(cell) for cell in cells], "tokenizer": str(tokenizer), "out": str(folder)}
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.oracle_worker", str(folder / "job.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=3000,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = [json.loads(line) for line in (folder / "found.jsonl").read_text().splitlines()]
    assert {Cell(**one["cell"]) for one in found} == set(cells)
    wrong = [line for one in found for line in differences(Cell(**one["cell"]), one)]
    assert not wrong, "\n".join(wrong)


def differences(cell: Cell, found: dict) -> list[str]:
    wrong = []
    expected = plain(cell.data, cell.lora)
    for step, ((loss, norm), line) in enumerate(zip(expected, found["steps"], strict=True)):
        if abs(line["loss"] - loss) > TOLERANCE * max(1, loss) or abs(line["grad_norm"] - norm) > TOLERANCE * max(
            1, norm
        ):
            wrong.append(
                f"{cell.name} step {step}: loss {line['loss']} for {loss}, norm {line['grad_norm']} for {norm}"
            )
        content = sum(len(row["input_ids"]) for row in rows_of(cell.data))
        if round(line["tokens"]) != content:
            wrong.append(f"{cell.name} step {step}: counted {line['tokens']} tokens of {content}")
    if cell.sharding == "fsdp2" and not (found["all_sharded"] and found["share"] < 1.2 / cell.world):
        wrong.append(f"{cell.name}: not sharded ({found['share']:.2f} of the weights on the first rank)")
    if cell.sharding == "ddp" and found["any_sharded"]:
        wrong.append(f"{cell.name}: sharded, though ddp was asked for")
    return wrong


def test_the_oracle_would_see_a_leak():
    """Mixed documents and lost positions change the plain numbers far beyond the tolerance."""
    for lora in (False, True):
        values = [plain(data, lora)[0][0] for data in ("isolated", "joined", "skipped")]
        assert min(abs(a - b) for a, b in itertools.combinations(values, 2)) > 100 * TOLERANCE


def test_pairwise_selection(tmp_path, tokenizer_folder):
    cells = pairwise([cell for cell in TABLE if 2 <= cell.world <= 4])
    assert len(cells) < 24
    run(cells, tmp_path, tokenizer_folder)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_whole_table(tmp_path, tokenizer_folder, world):
    run([cell for cell in TABLE if cell.world == world], tmp_path, tokenizer_folder)
