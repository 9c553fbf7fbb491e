"""Ranks, Ulysses' exchange and its refusals, sharded checkpoints, and launches by torchrun, Accelerate and Slurm."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.mesh import check_sequence_parallel, ranks_of
from lengthen.train.run import train
from tests.slurm import free_ports, slurm  # noqa: F401
from tests.train.rows import ordinary_rows

ROOT = Path(__file__).parents[2]


def command(*words: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(list(words), env=env, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-4000:]}"
    return done


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------- places and refusals


def test_ranks_of_a_group_are_neighbours_and_read_the_same_rows():
    places = [ranks_of(2, rank, 6) for rank in range(6)]
    assert [p.dp_rank for p in places] == [0, 0, 1, 1, 2, 2]
    assert [p.sp_rank for p in places] == [0, 1, 0, 1, 0, 1]
    assert {(p.dp_size, p.sp_size) for p in places} == {(3, 2)}


@pytest.mark.parametrize(("size", "world"), [(2, 1), (2, 3), (4, 6)])
def test_world_size_must_be_a_multiple(size, world):
    with pytest.raises(LengthenError, match=f"sequence_parallel is {size}.*{world}") as caught:
        ranks_of(size, 0, world)
    assert "torchrun --nproc-per-node" in (caught.value.fix or "")


def config_of(family: str = "llama", **more):
    from transformers import AutoConfig

    sizes = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 4, "hidden_size": 64}
    return AutoConfig.for_model(family, **{**sizes, **more})


def test_heads_must_divide():
    smollm2 = config_of(num_attention_heads=9, num_key_value_heads=3, hidden_size=576)
    check_sequence_parallel(smollm2, 3)
    check_sequence_parallel(smollm2, 9)  # key/value heads are copied to three ranks each
    with pytest.raises(LengthenError, match="9 query and 3 key/value heads") as caught:
        check_sequence_parallel(smollm2, 2)
    assert caught.value.fix == "use sequence_parallel 3, 9, or 1"
    for size in (1, 2, 4, 8):
        check_sequence_parallel(config_of(), size)
    with pytest.raises(LengthenError, match="12 query and 3"):
        check_sequence_parallel(config_of(num_attention_heads=12, num_key_value_heads=3, hidden_size=96), 2)


@pytest.mark.parametrize(
    ("config", "how", "words"),
    [
        ({}, {"length": 1001}, "length 1,001 cannot be cut into 2"),
        ({}, {"dropout": 0.1}, "lora.dropout 0.1"),
        ({"attention_dropout": 0.1}, {}, "attention_dropout 0.1"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, {}, "'dynamic'"),
        ({"family": "qwen3_next"}, {}, "linear_attention layers"),
    ],
)
def test_what_is_not_proven_is_refused(config, how, words):
    config = config_of(**config)
    check_sequence_parallel(config, 1, **how)
    with pytest.raises(LengthenError, match=words) as caught:
        check_sequence_parallel(config, 2, **how)
    assert caught.value.fix


def test_a_run_is_refused_before_any_compute(tmp_path, model_folder):
    settings = TrainStage(model=str(model_folder), rows=[str(tmp_path)], steps=1, sequence_parallel=2)
    with pytest.raises(LengthenError, match="sequence_parallel is 2"):
        train(settings, StageContext(folder=tmp_path / "out"))
    assert not (tmp_path / "out" / "model").exists()


def test_mesh_settings_do_not_run_a_stage_anew():
    assert TrainStage(rows=["r"]).without_effect() >= {"sequence_parallel", "sharding"}


# ---------------------------------------------------------------------------------------------- processes


def test_exchange_trades_heads_for_tokens():
    """Strided tensors, more heads than ranks, as many, and fewer; forwards, backwards, and back again."""
    command(sys.executable, "-m", "tests.train.mesh_worker", "exchange", "4")


def test_sharded_training_saves_and_resumes_as_one_process(tmp_path, model_folder):
    """FSDP2 x SP2 writes the model and the checkpoints of one process: each may go on where the other stopped."""
    rows = ordinary_rows(tmp_path / "rows")
    plain = {"name": "train", "model": str(model_folder), "rows": [str(rows)], "steps": 6, "batch_rows": 4, "lr": 1e-3,
             "eps": 1e-3, "save_every": 3, "keep": 2, "keep_after": 2, "dtype": "float32"}  # fmt: skip
    spread = {"sequence_parallel": 2, "sharding": "fsdp2"}
    kinds = {"full": plain, "lora": {**plain, "lora": {"rank": 4}}}
    jobs = []
    for name, settings in kinds.items():
        train(TrainStage.model_validate(settings), StageContext(folder=tmp_path / name / "one"))
        forget(shutil.copytree(tmp_path / name / "one", tmp_path / name / "resumed"))
        jobs += [({**settings, **spread}, str(tmp_path / name / folder)) for folder in ("two", "resumed")]
    jobs.append(({**plain, **spread, "dtype": "bfloat16", "keep_after": 0}, str(tmp_path / "half")))
    (tmp_path / "jobs").write_text(json.dumps(jobs))
    command(sys.executable, "-m", "tests.train.mesh_worker", "train", "2", str(tmp_path / "jobs"))
    for name, settings in kinds.items():
        one, two = tmp_path / name / "one", tmp_path / name / "two"
        compare(one, two)
        compare(one, tmp_path / name / "resumed")
        # And back: one process goes on from the checkpoint of the sharded run.
        forget(two)
        train(TrainStage.model_validate(settings), StageContext(folder=two))
        compare(one, two)
    check_bfloat16(tmp_path / "full" / "one", tmp_path / "half")


def forget(folder: Path) -> None:
    """As if the training had been killed behind its third step."""
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    shutil.rmtree(folder / "model")


def compare(one: Path, other: Path) -> None:
    """The same losses, and the same weights under the same names."""
    from transformers import AutoModelForCausalLM

    expected = [line["loss"] for line in metrics(one)]
    assert [line["loss"] for line in metrics(other)] == pytest.approx(expected, abs=1e-5)
    a, b = (AutoModelForCausalLM.from_pretrained(folder / "model").state_dict() for folder in (one, other))
    assert set(a) == set(b)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5
    assert json.loads((other / "model" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def check_bfloat16(one: Path, half: Path) -> None:
    """Sharded bf16 weights with fp32 masters train the same within bf16's rounding, and are saved whole."""
    from safetensors.torch import load_file

    assert [line["loss"] for line in metrics(half)] == pytest.approx([line["loss"] for line in metrics(one)], abs=5e-2)
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (one, half))
    assert {name: value.shape for name, value in a.items()} == {name: value.shape for name, value in b.items()}
    assert {str(value.dtype) for value in b.values()} == {"torch.bfloat16"}


RECIPE = """
name: launched
stages:
  - {kind: tables, count: 6, min_tokens: 300, max_tokens: 450, languages: [en], families: [retrieval], tasks: [cell],
     min_columns: 3, max_columns: 4, joins: 0}
  - kind: prepare
    row_length: 512
    sources: [{kind: chat, name: tables, paths: ["@tables"], packing: none}]
  - {kind: train, rows: ["@prepare"], steps: 2, batch_rows: 2, dtype: float32}
"""


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
# Without GPUs Accelerate starts several processes of one machine under this flag only.
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip


def launched(folder: Path, model: Path, *launcher: str) -> None:
    """Tables and rows are made by the first rank alone, both train, and the losses are those of one process."""
    (folder / "recipe.yaml").write_text(f"model: {model}\n{RECIPE}")
    words = ["-m", "lengthen", "run", str(folder / "recipe.yaml"), "--out"]
    command(*launcher, *words, str(folder / "two"))
    # The same rows, on one process: only the train stage runs.
    shutil.copytree(folder / "two", folder / "one", symlinks=True)
    shutil.rmtree(folder / "one" / "stages" / "train")
    command(sys.executable, *words, str(folder / "one"))
    one, two = (metrics(folder / name / "stages" / "train") for name in ("one", "two"))
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-5)
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    manifest = json.loads((folder / "two" / "stages" / "train" / "manifest.json").read_text())
    assert manifest["status"] == "done"


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_launchers_run_a_recipe(tmp_path, model_folder, launcher):
    launched(tmp_path, model_folder, *launcher)


def test_all_ranks_stop_when_the_first_one_may_not_run(tmp_path, model_folder):
    """The folder belongs to somebody else: each rank says so and ends, and none waits for ever."""
    (tmp_path / "recipe.yaml").write_text(f"model: {model_folder}\n{RECIPE}")
    (tmp_path / "run").mkdir()
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(free_ports(1)[0])}  # fmt: skip
    words = [sys.executable, "-m", "lengthen", "run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    with FileLock(tmp_path / "run" / ".lock"):
        ranks = [
            subprocess.Popen(words, env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=ROOT,
                             stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]  # fmt: skip
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert "Another process is running" in said[0] and "The first rank stopped: another process" in said[1]


@pytest.mark.slow
def test_slurm_runs_a_recipe(tmp_path, model_folder, slurm):  # noqa: F811
    """srun gives each task its number; nothing else is told."""
    launched(tmp_path, model_folder, "srun", "-n", "2", "--partition", "main", sys.executable)
