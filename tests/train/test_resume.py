"""A killed training goes on as if nothing had happened. Real processes, real SIGKILL."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.checkpoints import SEAL, checkpoints, last_checkpoint, prune, step_of, whole
from lengthen.train.run import train
from tests.train.rows import make_row, ordinary_rows, write_rows

CHILD = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.run import train
try:
    train(TrainStage.model_validate(json.loads(sys.argv[1])), StageContext(folder=Path(sys.argv[2]), seed=5))
except LengthenError as error:
    print(error, file=sys.stderr)
    sys.exit(3)
"""


def start(settings: dict, out: Path, limit: int | None = None) -> subprocess.Popen:
    def bound():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or 0, limit or 0))

    return subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(settings), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        preexec_fn=bound if limit else None,
    )


def lines(out: Path) -> list[dict]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def kill_after(settings: dict, out: Path, step: int, pause: float) -> None:
    child = start(settings, out)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if any(line["step"] >= step for line in lines(out)):
            time.sleep(pause)
            child.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    child.wait(timeout=60)
    child.stderr.close()  # type: ignore[union-attr]
    assert child.returncode == -signal.SIGKILL, "the run ended before it was killed"


def settings_for(model: Path, rows: Path, **changes) -> dict:
    return {
        "name": "train", "model": str(model), "rows": [str(rows)], "steps": 40, "batch_rows": 4, "lr": 2e-3,
        "length": 2048, "positions": {"type": "skip", "unit": [4, 12]}, "save_every": 3, "dtype": "float32", **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"workers": 2, "batching": "sorted"}, marks=pytest.mark.slow, id="workers"),
        pytest.param({"micro_batch": 2}, id="fp32"),
        # Minutes on a processor without bf16 instructions.
        pytest.param({"dtype": "bfloat16", "micro_batch": 2}, marks=pytest.mark.slow, id="bf16"),
        pytest.param({"lora": {"rank": 4, "dropout": 0.1}, "checkpointing": True}, marks=pytest.mark.slow, id="lora"),
    ],
)
def test_killed_twice_equals_uninterrupted(tmp_path, model_folder, changes):
    rows = ordinary_rows(tmp_path / "rows")
    settings = settings_for(model_folder, rows, **changes)
    train(TrainStage.model_validate(settings), StageContext(folder=tmp_path / "whole", seed=5))
    out = tmp_path / "killed"
    # Different pauses hit different places: inside a step, and while a checkpoint is being written.
    kill_after(settings, out, step=4, pause=0.011)
    first = checkpoints(out / "checkpoints")
    assert first and all(whole(folder) for folder in first)
    kill_after(settings, out, step=step_of(first[-1]) + 7, pause=0.0)
    train(TrainStage.model_validate(settings), StageContext(folder=out, seed=5))
    expected, found = lines(tmp_path / "whole"), lines(out)
    assert [line["step"] for line in found] == list(range(1, settings["steps"] + 1))
    for a, b in zip(expected, found, strict=True):
        assert abs(a["loss"] - b["loss"]) <= 1e-6 and abs(a["grad_norm"] - b["grad_norm"]) <= 1e-5
        assert a["learning_rate"] == b["learning_rate"] and a["trained_tokens"] == b["trained_tokens"]


def test_half_written_checkpoint_is_never_loaded(tmp_path, model_folder):
    rows = ordinary_rows(tmp_path / "rows")
    settings = settings_for(model_folder, rows, steps=6, save_every=2, keep_after=2)
    train(TrainStage.model_validate(settings), StageContext(folder=tmp_path / "out", seed=5))
    store = tmp_path / "out" / "checkpoints"
    assert [p.name for p in checkpoints(store)] == ["checkpoint-4", "checkpoint-6"]
    identity = json.loads((store / "checkpoint-6" / SEAL).read_text())["identity"]
    torn = store / "checkpoint-6" / "optimizer.pt"
    torn.write_bytes(torn.read_bytes()[:-100])
    assert last_checkpoint(store, identity) == store / "checkpoint-4"
    shutil.copytree(store / "checkpoint-4", store / "checkpoint-8")
    (store / "checkpoint-8" / SEAL).unlink()
    assert last_checkpoint(store, identity) == store / "checkpoint-4"
    prune(store, 1)
    assert [p.name for p in store.iterdir()] == ["checkpoint-4"]


def test_checkpoint_of_another_run_is_refused(tmp_path, model_folder):
    rows = ordinary_rows(tmp_path / "rows")
    settings = settings_for(model_folder, rows, steps=4, save_every=2, keep_after=1)
    context = StageContext(folder=tmp_path / "out", seed=5)
    train(TrainStage.model_validate(settings), context)
    with pytest.raises(LengthenError, match="another run: lr was"):
        train(TrainStage.model_validate({**settings, "lr": 1e-4}), context)
    other = ordinary_rows(tmp_path / "other", seed=9)
    with pytest.raises(LengthenError, match="another run: row"):
        train(TrainStage.model_validate({**settings, "rows": [str(other)]}), context)
    with pytest.raises(LengthenError, match=r"another run: row_content was [^(]*$"):
        train(TrainStage.model_validate({**settings, "rows": [str(same_shape(rows, tmp_path / "shape"))]}), context)
    # A checkpoint from before rows were compared by content goes on.
    (checkpoint,) = checkpoints(tmp_path / "out" / "checkpoints")
    seal = json.loads((checkpoint / SEAL).read_text())
    now = {**seal["identity"], "row_content": "other"}
    del seal["identity"]["row_content"]
    (checkpoint / SEAL).write_text(json.dumps(seal))
    assert last_checkpoint(checkpoint.parent, now) == checkpoint


def same_shape(rows: Path, folder: Path) -> Path:
    """The same rows with one token changed."""
    table = [row for shard in sorted((rows / "rows").glob("*.parquet")) for row in pq.read_table(shard).to_pylist()]
    table[5]["input_ids"][3] ^= 1
    return write_rows(folder, table)


def test_optimizer_state_is_carried_and_checked(tmp_path, model_folder):
    from tests.conftest import make_model

    rows = ordinary_rows(tmp_path / "rows")
    first = settings_for(model_folder, rows, steps=20, save_every=10, keep_after=1)
    train(TrainStage.model_validate(first), StageContext(folder=tmp_path / "one", seed=5))
    second = {**first, "model": str(tmp_path / "one"), "steps": 3, "rope": {"type": "none"}, "keep_after": 0}
    train(TrainStage.model_validate(second), StageContext(folder=tmp_path / "fresh", seed=5))
    second["optimizer_from"] = str(tmp_path / "one")
    train(TrainStage.model_validate(second), StageContext(folder=tmp_path / "carried", seed=5))
    fresh, carried = lines(tmp_path / "fresh"), lines(tmp_path / "carried")
    # The same first loss and a fresh schedule; other moments, so another second loss.
    assert fresh[0]["loss"] == carried[0]["loss"] and fresh[1]["loss"] != carried[1]["loss"]
    assert [line["learning_rate"] for line in fresh] == [line["learning_rate"] for line in carried]
    wide = make_model(tmp_path / "wide", hidden=96, window=2048)
    with pytest.raises(LengthenError, match="shape"):
        train(TrainStage.model_validate({**second, "model": str(wide)}), StageContext(folder=tmp_path / "bad", seed=5))
    with pytest.raises(LengthenError, match="parameters"):
        deep = make_model(tmp_path / "deep", layers=3, window=2048)
        train(TrainStage.model_validate({**second, "model": str(deep)}), StageContext(folder=tmp_path / "bad2", seed=5))


def test_nan_stops_and_names_the_last_good_checkpoint(tmp_path, model_folder):
    rng = random.Random(0)
    rows = [make_row(rng, [40, 56], 300) for _ in range(8)]
    folder = write_rows(tmp_path / "rows", rows)
    settings = settings_for(model_folder, folder, steps=30, batch_rows=1, save_every=2, lr=1e18, grad_clip=0, warmup=1)
    with pytest.raises(LengthenError, match="The loss of step") as error:
        train(TrainStage.model_validate(settings), StageContext(folder=tmp_path / "out", seed=5))
    assert "good checkpoint" in str(error.value) or "no earlier checkpoint" in str(error.value)
    assert all(whole(p) for p in checkpoints(tmp_path / "out" / "checkpoints"))
    assert not (tmp_path / "out" / "model").exists()


def test_full_disk_stops_cleanly_and_goes_on_later(tmp_path, model_folder):
    rows = ordinary_rows(tmp_path / "rows")
    settings = settings_for(model_folder, rows, steps=6, save_every=2)
    # Files may not grow beyond a few kilobytes, as on a disk that runs full while the checkpoint is written.
    child = start(settings, tmp_path / "out", limit=300_000)
    _, told = child.communicate(timeout=120)
    assert child.returncode == 3, told.decode()
    assert b"could not be written" in told and b"checkpoint" in told
    assert not list((tmp_path / "out" / "checkpoints").glob("*"))
    train(TrainStage.model_validate(settings), StageContext(folder=tmp_path / "out", seed=5))
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
