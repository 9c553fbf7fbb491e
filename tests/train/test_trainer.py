"""LongTrainer against plain computations: the loss, its gradient, accumulation, ranks, masters, adapters."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.train import Gate, TrainStage
from lengthen.train import gates
from lengthen.train.run import train
from tests.train.rows import make_row, ordinary_rows, write_rows


def settings_for(model: Path, rows: Path, **changes) -> TrainStage:
    plain = {"name": "train", "model": str(model), "rows": [str(rows)], "steps": 3, "batch_rows": 4, "lr": 2e-3,
             "save_every": 100, "dtype": "float32", "warmup": 0}  # fmt: skip
    return TrainStage.model_validate({**plain, **changes})


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def plain_loss(model_folder: Path, rows: list[dict], rule: str) -> tuple[float, float]:
    """Loss and gradient norm, document by document, with full logits in plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager")
    parts: list[list[torch.Tensor]] = []
    for row in rows:
        parts.append([])
        start = 0
        for n in row["doc_lens"]:
            ids = torch.tensor(row["input_ids"][start : start + n])
            mask = torch.tensor(row["loss_mask"][start : start + n]).bool()
            mask[0] = False
            logits = model(ids[None]).logits[0]
            losses = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
            parts[-1].append(losses[mask[1:]])
            start += n
    flat = [p for row in parts for p in row]
    if rule == "token":
        loss = torch.cat(flat).mean()
    elif rule == "sequence":
        loss = torch.stack([p.mean() for p in flat if len(p)]).mean()
    else:
        loss = torch.stack([torch.cat(row).mean() for row in parts if sum(map(len, row))]).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return float(loss.detach()), float(norm)


@pytest.fixture(scope="module")
def four_rows():
    rng = random.Random(4)
    lens = [[30, 20, 46], [96], [10, 40], [25, 25, 25, 21]]
    return [make_row(rng, n, 300, masked=masked) for n, masked in zip(lens, (0.2, 0.9, 0.5, 0.0), strict=True)]


@pytest.mark.parametrize("rule", ["token", "sequence", "pack"])
@pytest.mark.parametrize(("micro", "checkpointing"), [(1, False), (2, True), (4, False)])
def test_loss_and_gradient_equal_the_plain_ones(tmp_path, model_folder, four_rows, rule, micro, checkpointing):
    rows = write_rows(tmp_path / "rows", four_rows)
    wanted, norm = plain_loss(model_folder, four_rows, rule)
    changes = {"loss": rule, "micro_batch": micro, "checkpointing": checkpointing, "steps": 1}
    train(settings_for(model_folder, rows, **changes), StageContext(folder=tmp_path / "out"))
    line = metrics(tmp_path / "out")[0]
    assert line["loss"] == pytest.approx(wanted, abs=1e-5)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert line["trained_tokens"] == sum(
        sum(row["loss_mask"][t] for t in range(len(row["input_ids"])) if t not in starts(row)) for row in four_rows
    )


def starts(row: dict) -> set[int]:
    found, at = set(), 0
    for n in row["doc_lens"]:
        found.add(at)
        at += n
    return found


CHILD = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.run import train
for settings, out in json.loads(sys.argv[1]):
    train(TrainStage.model_validate(settings), StageContext(folder=Path(out)))
"""


def train_on_two_ranks(jobs: list[tuple[dict, str]]) -> None:
    """Each job is a stage's settings and its folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(jobs)],
                         env={**os.environ, **launch, "RANK": str(r), "LOCAL_RANK": str(r)}, stderr=subprocess.PIPE)
        for r in range(2)
    ]  # fmt: skip
    told = [child.communicate(timeout=300)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], told[0][-3000:]


def test_two_ranks_equal_one_process(tmp_path, model_folder, four_rows):
    """A rank whose rows have no target, bf16 masters with accumulation, and the rules' units over both ranks."""
    silent = {**four_rows[1], "loss_mask": [0] * 96}
    rows = write_rows(tmp_path / "rows", [*four_rows[:1], silent, *four_rows[2:], four_rows[0], silent])
    cases = [("token", "float32", 2), ("sequence", "float32", 4), ("token", "bfloat16", 4)]
    jobs = []
    for rule, dtype, batch in cases:
        settings = settings_for(model_folder, rows, loss=rule, dtype=dtype, batch_rows=batch)
        train(settings, StageContext(folder=tmp_path / f"one-{rule}-{dtype}"))
        jobs.append((settings.model_dump(mode="json"), str(tmp_path / f"two-{rule}-{dtype}")))
    train_on_two_ranks(jobs)
    for rule, dtype, _ in cases:
        one, two = metrics(tmp_path / f"one-{rule}-{dtype}"), metrics(tmp_path / f"two-{rule}-{dtype}")
        tolerance = 1e-5 if dtype == "float32" else 2e-2
        for a, b in zip(one, two, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=tolerance)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=10 * tolerance)
            assert a["tokens"] == b["tokens"] and a["trained_tokens"] == b["trained_tokens"]


def test_master_weights_keep_small_steps():
    """Steps of 1e-5 on weights of 1 vanish in bf16; with masters their sum arrives, as in fp32."""
    import torch

    from lengthen.train.optimizer import MasterAdamW

    half = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    whole = torch.nn.Parameter(torch.ones(8))
    a = MasterAdamW([half], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    b = torch.optim.AdamW([whole], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        # Three micro-batches, summed in fp32, and a clipping factor.
        parts = [torch.rand(8, generator=generator).bfloat16() for _ in range(3)]
        for part in parts:
            half.grad = part.clone()
            a.add_gradients()
        assert a.gradient_norm() == pytest.approx(float(sum(p.float() for p in parts).norm()), rel=1e-5)
        a.grad_scale = 0.5
        whole.grad = sum(p.float() for p in parts) * 0.5
        a.step()
        b.step()
    assert torch.allclose(a.state[half]["master"], whole, atol=1e-6)
    assert half.equal(whole.bfloat16()) and float(half[0]) < 0.99
    saved = a.state_dict()
    again = MasterAdamW([torch.nn.Parameter(half.detach().clone())], lr=1e-4)
    again.load_state_dict(saved)
    state = again.state[next(again.parameters())]
    assert state["master"].dtype == torch.float32 and state["master"].equal(a.state[half]["master"])


def test_learning_rate_schedule(tmp_path, model_folder):
    rows = ordinary_rows(tmp_path / "rows")
    changes = {"steps": 20, "warmup": 4, "schedule": "cosine", "lr_floor": 0.1, "lr": 1e-3}
    train(settings_for(model_folder, rows, **changes), StageContext(folder=tmp_path / "out"))
    rates = [line["learning_rate"] for line in metrics(tmp_path / "out")]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4] == pytest.approx(1e-3) and rates[4:] == sorted(rates[4:], reverse=True)
    assert 1e-4 <= rates[-1] < 1.2e-4


@pytest.mark.parametrize("embeddings", [False, True])
def test_adapters_are_merged_into_a_plain_model(tmp_path, model_folder, embeddings):
    import torch
    from transformers import AutoModelForCausalLM

    rows = ordinary_rows(tmp_path / "rows")
    lora = {"rank": 4, "train_embeddings": embeddings}
    settings = settings_for(model_folder, rows, steps=15, lora=lora, lr=1e-2)
    train(settings, StageContext(folder=tmp_path / "out"))
    lines = metrics(tmp_path / "out")
    assert lines[-1]["loss"] < lines[0]["loss"]
    before = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").state_dict()
    assert set(before) == set(after)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any("q_proj" in name for name in changed)
    assert ("model.embed_tokens.weight" in changed) == embeddings
    assert any("norm" in name for name in changed) == embeddings


def test_gates(tmp_path, model_folder):
    from lengthen.common.errors import LengthenError

    rows = ordinary_rows(tmp_path / "rows")
    scores = [
        {"arm": "a", "suite": "needle", "task": "single", "length": 16384, "score": 0.96},
        {"arm": "a", "suite": "needle", "task": "multi", "length": 16384, "score": 0.92},
        {"arm": "a", "suite": "short", "task": "short", "length": 2048, "score": 0.5},
    ]
    for name, factor in (("check", 1.0), ("start", 1.02)):
        (tmp_path / name).mkdir()
        found = [{**row, "score": row["score"] * factor} for row in scores]
        (tmp_path / name / "scores.json").write_text(json.dumps({"rows": found}))
    check = str(tmp_path / "check")
    needle = {"scores": check, "task": "needle", "length": "16k"}
    assert gates.check(Gate(**needle, at_least=0.94)) == (True, "needle at 16,384: 0.940 >= 0.940")
    short = Gate(scores=check, task="short", at_least=0.98, compared_to=str(tmp_path / "start"))
    assert gates.check(short)[0]
    passed = settings_for(model_folder, rows, until=[{**needle, "at_least": 0.9}])
    result = train(passed, StageContext(folder=tmp_path / "passed"))
    assert result.counts["steps"] == 0 and "0.940 >= 0.900" in result.notes[0]
    same = (tmp_path / "passed" / "model" / "model.safetensors").read_bytes()
    assert same == (model_folder / "model.safetensors").read_bytes()
    more = settings_for(model_folder, rows, until=[{**needle, "at_least": 0.99}])
    assert train(more, StageContext(folder=tmp_path / "more")).counts["steps"] == 3
    with pytest.raises(LengthenError, match=r"0.940 < 0.990"):
        blocked = settings_for(model_folder, rows, requires=[{**needle, "at_least": 0.99}])
        train(blocked, StageContext(folder=tmp_path / "blocked"))
    with pytest.raises(LengthenError, match="single at 16384"):
        gates.check(Gate(scores=check, task="needle", length=8192, at_least=0.5))


def test_small_tiles_of_the_head_change_nothing(tmp_path, model_folder, four_rows, monkeypatch):
    """A whole training step on a processor with tiles far smaller than the row and the vocabulary."""
    import trl.kernels.chunked_logprob as kernel
    import trl.trainer.utils as utils

    from lengthen.train import estimate, machine

    assert (estimate.CPU_HEAD_TOKENS, estimate.CPU_HEAD_WORDS) == (machine.CPU_HEAD_TOKENS, machine.CPU_HEAD_WORDS)
    for module, name in ((kernel, "TOKEN_CHUNK_SIZE"), (utils, "_CHUNKED_LOGPROB_CHUNK_SIZE")):
        monkeypatch.setattr(module, name, 2**20)  # put back afterwards
    monkeypatch.setattr(machine, "CPU_HEAD_TOKENS", 16)
    monkeypatch.setattr(machine, "CPU_HEAD_WORDS", 50)
    rows = write_rows(tmp_path / "rows", four_rows)
    wanted, norm = plain_loss(model_folder, four_rows, "token")
    train(settings_for(model_folder, rows, steps=1), StageContext(folder=tmp_path / "out"))
    assert (kernel.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE) == (16, 50)
    line = metrics(tmp_path / "out")[0]
    assert line["loss"] == pytest.approx(wanted, abs=1e-5) and line["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_another_trl_keeps_its_tiles_and_says_so(monkeypatch, caplog):
    import trl.trainer.utils as utils

    from lengthen.train import machine

    monkeypatch.delattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE")
    machine.shrink_head_tiles()
    assert not hasattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE") and "_CHUNKED_LOGPROB_CHUNK_SIZE" in caplog.text
