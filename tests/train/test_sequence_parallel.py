"""Sequence parallelism beyond the oracle's table: other families' attention, other loss rules, several rows at once.
Two ranks against plain transformers, eager attention, one document at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.train.oracle_worker import CLIP, OPTIMIZER, STEPS, rows_of
from tests.train.sequence_worker import CASES, Case, make, plan_of

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def found(tmp_path_factory, tokenizer_folder):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.train.sequence_worker", str(tokenizer_folder), str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2], capture_output=True,
        text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


def mean_of(per_row: list, rule: str) -> Any:
    """The step's loss of the targets' losses, by row and document."""
    import torch

    if rule == "token":
        return torch.cat([tokens for documents in per_row for tokens in documents]).mean()
    units = [t for documents in per_row for t in documents] if rule == "sequence" else [torch.cat(d) for d in per_row]
    return torch.stack([tokens.mean() for tokens in units if len(tokens)]).mean()


def plain(case: Case, steps: int = STEPS) -> list[tuple[float, float]]:
    """(loss, gradient norm) of each step."""
    import torch

    model = make(case, "eager").train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **OPTIMIZER, weight_decay=0.0)
    plan, rows, lines = plan_of(case), rows_of("isolated"), []
    for step in range(steps):
        per_row = []
        for index, _ in plan.rows(step):
            row, start, documents = rows[index], 0, []
            for n in row["doc_lens"]:
                here = slice(start, start + n)
                ids, mask = torch.tensor(row["input_ids"][here]), torch.tensor(row["loss_mask"][here]).bool()
                logits = model(input_ids=ids[None], use_cache=False).logits[0]
                each = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
                documents.append(each[mask[1:]])
                start += n
            per_row.append(documents)
        loss = mean_of(per_row, case.loss)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        lines.append((float(loss.detach()), float(norm)))
    return lines


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_plain_transformers(found, name):
    for (loss, norm), line in zip(plain(CASES[name]), found[name], strict=True):
        assert line["loss"] == pytest.approx(loss, rel=TOLERANCE, abs=TOLERANCE)
        assert line["grad_norm"] == pytest.approx(norm, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("window", {"sliding_window": 512}),
        ("softcap and window", {"attn_logit_softcapping": 50.0}),
        ("sinks and window", {"sliding_window": 512}),
    ],
)
def test_a_rule_that_is_lost_would_be_seen(name, without):
    case = CASES[name]
    lost = replace(case, config={**case.config, **without})
    assert abs(plain(case, 1)[0][0] - plain(lost, 1)[0][0]) > 100 * TOLERANCE


def test_the_loss_rules_differ_on_these_rows():
    token, sequence, pack = (plain(Case(loss=rule), 1)[0][0] for rule in ("token", "sequence", "pack"))
    assert min(abs(token - sequence), abs(token - pack), abs(sequence - pack)) > 100 * TOLERANCE
