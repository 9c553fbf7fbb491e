"""The same bytes on a Ray cluster and under Slurm; errors and dead tasks are told. Real clusters on this machine."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.files import sha256_tree
from lengthen.common.progress import Bar
from lengthen.data.executors import run_tasks
from lengthen.recipe.stages.prepare import Executor
from tests.data.helpers import corpus, model_folder, run, stage, words, write_jsonl
from tests.slurm import slurm  # noqa: F401


def touch(work: Path, number: int) -> None:
    """A task that leaves a file with its process id, and dies as often as the folder's `deaths` say (with the process
    that started it, where `actor` says so: on Ray that is the actor, as when a node goes down)."""
    grave = work / f"deaths-{number}"
    if grave.exists() and int(grave.read_text()) > 0:
        grave.write_text(str(int(grave.read_text()) - 1))
        if (work / "actor").exists():
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    if (work / f"broken-{number}").exists():
        raise LengthenError(f"part {number} is broken", fix="mend it")
    # Whole or not at all, as the stages' tasks write: a worker beside a dead one is ended at any moment.
    done, part = work / f"done-{number}", work / f".done-{number}.{os.getpid()}"
    part.write_text((done.read_text() if done.exists() else "") + f"{os.getpid()}\n")
    os.replace(part, done)


def done_in(work: Path):
    return lambda number: (work / f"done-{number}").exists()


def go(work: Path, count: int, **settings) -> None:
    executor = Executor.model_validate(settings)
    run_tasks(touch, work, count, done_in(work), executor, Bar("tasks", count, "tasks"))


def test_a_dead_task_is_run_again_and_finished_ones_are_not(tmp_path):
    (tmp_path / "deaths-2").write_text("2")
    (tmp_path / "done-0").write_text("before\n")
    go(tmp_path, 5, workers=2)
    assert (tmp_path / "done-0").read_text() == "before\n"
    assert all(len((tmp_path / f"done-{n}").read_text().split()) == 1 for n in range(5))


def test_a_task_that_always_dies_stops_the_stage(tmp_path):
    (tmp_path / "deaths-1").write_text("99")
    with pytest.raises(LengthenError, match=r"(?s)Task 1 of touch died 3 times.*memory ran out"):
        go(tmp_path, 3, workers=2)
    assert int((tmp_path / "deaths-1").read_text()) == 96


def test_an_error_crosses_the_process_border_whole(tmp_path):
    (tmp_path / "broken-1").write_text("")
    with pytest.raises(LengthenError) as caught:
        go(tmp_path, 3, workers=2)
    assert caught.value.what == "part 1 is broken" and caught.value.fix == "mend it"


def test_far_executors_are_refused_where_they_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LengthenError, match="no sbatch"):
        go(tmp_path, 2, type="slurm", partition="main")


@pytest.fixture()
def small(tmp_path) -> tuple[Path, list[dict]]:
    """A model folder and sources: two JSONL files and a book that is longer than a tokenising window."""
    import random

    book = write_jsonl(tmp_path / "in/book.jsonl", [{"text": words(random.Random(1), 120_000)}])
    paths = [str(corpus(tmp_path / f"in/{n}.jsonl", 100, seed=n)) for n in range(2)]
    return model_folder(tmp_path / "model"), [{"kind": "jsonl", "paths": [*paths, str(book)]}]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ray_gives_the_same_bytes_and_tells_errors(tmp_path, small):
    ray = pytest.importorskip("ray")
    model, sources = small
    # Few tasks: Ray starts a process for each.
    settings = {"part_bytes": 400_000, "shard_tokens": 500_000}
    run(stage(model, sources, **settings), tmp_path / "here")
    # Workers import this test package for the functions that it sends them.
    root = str(Path(__file__).parents[2])
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}})
    try:
        far = {"type": "ray", "memory_gb_per_cpu": 1, "workers": 2}
        run(stage(model, sources, executor=far, **settings), tmp_path / "there")
        assert sha256_tree(tmp_path / "there") == sha256_tree(tmp_path / "here")
        work = tmp_path / "tasks"
        work.mkdir()
        (work / "broken-1").write_text("")
        (work / "done-0").write_text("before\n")
        with pytest.raises(LengthenError, match="part 1 is broken"):
            go(work, 3, **far)
        (work / "broken-1").unlink()
        (work / "deaths-1").write_text("1")
        (work / "actor").write_text("")
        go(work, 3, **far)
        assert (work / "deaths-1").read_text() == "0" and (work / "done-0").read_text() == "before\n"
        assert all((work / f"done-{n}").exists() for n in range(3))
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_slurm_gives_the_same_bytes_and_runs_dead_tasks_again(tmp_path, small, slurm, monkeypatch):  # noqa: F811
    model, sources = small
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    settings = {"part_bytes": 400_000, "shard_tokens": 65_536}
    run(stage(model, sources, **settings), tmp_path / "here")
    far = {"type": "slurm", "partition": "main", "time": "00:10:00", "memory_gb_per_cpu": 1, "poll_seconds": 0.5}
    run(stage(model, sources, executor=far, **settings), tmp_path / "there")
    assert sha256_tree(tmp_path / "there") == sha256_tree(tmp_path / "here")
    work = tmp_path / "tasks"
    work.mkdir()
    (work / "deaths-1").write_text("1")
    (work / "done-0").write_text("before\n")
    go(work, 3, **far)
    assert (work / "done-0").read_text() == "before\n" and (work / "deaths-1").read_text() == "0"
    script = (work / "logs/touch/launch_script.slurm").read_text()
    assert "#SBATCH --partition=main" in script and "#SBATCH --time=00:10:00" in script
    assert "launch_pickled_pipeline" in script and str(Path(sys.executable).parent) in script
    (work / "done-2").unlink()
    (work / "broken-2").write_text("")
    with pytest.raises(LengthenError, match="part 2 is broken"):
        go(work, 3, **far)
