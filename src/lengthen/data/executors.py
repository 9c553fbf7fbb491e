"""Running numbered tasks here, on Ray or under Slurm. Finished tasks are never run again; the result is the same
everywhere, because a task's output depends on its number and the work folder alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthen.common.errors import LengthenError, MissingExtra
from lengthen.common.files import read_json
from lengthen.common.progress import Bar
from lengthen.recipe.stages.prepare import Executor

if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor

Task = Callable[[Path, int], None]


def run_tasks(task: Task, work: Path, count: int, done: Callable[[int], bool], settings: Executor, bar: Bar) -> None:
    """Run task(work, 0) ... task(work, count - 1), except those that are done.

    Args:
        task: a function of a module, so that other processes can import it.
        done: tells whether a task's output is there.

    Raises:
        LengthenError: the error of a task, or a task that died as often as `attempts` allows.
    """
    left = [number for number in range(count) if not done(number)]
    bar.advance(count - len(left))
    if not left:
        return
    if settings.type == "local":
        _run_here(task, work, left, settings, bar)
    else:
        _run_far(task, work, count, done, settings, bar)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_here(task: Task, work: Path, left: list[int], settings: Executor, bar: Bar) -> None:
    workers = min(settings.workers or cores(), len(left))
    if workers == 1:
        for number in left:
            task(work, number)
            bar.advance()
        return
    deaths: dict[int, int] = {}
    while left:
        try:
            for number in _pool(task, work, left, workers):
                left = [other for other in left if other != number]
                bar.advance()
        except _Died as died:
            # The pool cannot tell which of its processes was killed, so all that were running are suspects.
            for number in died.numbers:
                deaths[number] = deaths.get(number, 0) + 1
                if deaths[number] >= settings.attempts:
                    raise LengthenError(
                        f"Task {number} of {task.__name__} died {deaths[number]} times.",
                        why="its process was killed from outside, most often because memory ran out",
                        fix="use fewer executor.workers or smaller part_bytes, and run the same command again; "
                        "finished tasks are kept",
                    ) from None
            workers = max(1, workers - 1) if max(deaths.values()) > 1 else workers


class _Died(Exception):
    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.numbers = numbers


def _pool(task: Task, work: Path, left: list[int], workers: int) -> Iterator[int]:
    """Numbers of tasks as they finish. At most `workers` are under way, so that a death has few suspects."""
    # spawn: forking a process that holds threads (tokenizers, torch, progress) can deadlock the child.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_die_with_parent)
    waiting = list(left)
    running: dict[Future[None], int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                number = waiting.pop(0)
                running[pool.submit(task, work, number)] = number
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                yield running.pop(future)
    except BrokenProcessPool:
        raise _Died(sorted(running.values())) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, so that a killed run leaves no workers behind."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _run_far(task: Task, work: Path, count: int, done: Callable[[int], bool], settings: Executor, bar: Bar) -> None:
    from lengthen.data.steps import NumberedTask

    seen = sum(done(number) for number in range(count))
    for _ in range(settings.attempts):
        # datatrove's completion marks may be missing for tasks that finished just before a kill; ours are the outputs.
        logs = work / "logs" / task.__name__
        for number in range(count):
            mark = logs / "completions" / f"{number:05d}"
            if done(number):
                mark.parent.mkdir(parents=True, exist_ok=True)
                mark.touch()
            else:
                mark.unlink(missing_ok=True)
        shutil.rmtree(work / "errors", ignore_errors=True)
        step = NumberedTask(task, str(work))
        executor = (
            _ray(step, count, logs, settings) if settings.type == "ray" else _slurm(step, count, logs, settings, task)
        )
        with _quiet():
            for ready in _watch(executor, count, done, settings):
                bar.advance(ready - seen)
                seen = ready
        if seen == count:
            return
        _raise_told(work, task)
    missing = [number for number in range(count) if not done(number)]
    raise LengthenError(
        f"{len(missing)} of {count} {settings.type} tasks of {task.__name__} did not finish, e.g. number {missing[0]}.",
        why=f"they were started {settings.attempts} times",
        fix=f"read their logs in {work / 'logs' / task.__name__}; finished tasks are kept",
    )


def _watch(executor: PipelineExecutor, count: int, done: Callable[[int], bool], settings: Executor) -> Iterator[int]:
    """Run an executor to its end, giving the number of finished tasks now and then."""
    if settings.type == "ray":
        # Ray's executor waits by itself; failed tasks are told by what they left behind.
        with contextlib.suppress(Exception):
            executor.run()
        yield sum(done(number) for number in range(count))
        return
    try:
        executor.run()
    except (OSError, subprocess.CalledProcessError) as error:
        raise LengthenError(
            f"Slurm did not take the job ({error}).",
            fix="check executor.partition, executor.sbatch, and that sbatch works on this machine",
        ) from error
    job = str(getattr(executor, "job_id", ""))
    while True:
        # Looked at in this order, a task that finishes in between is not taken for dead.
        alive = _slurm_alive(job)
        ready = sum(done(number) for number in range(count))
        yield ready
        if ready == count or not alive:
            return
        time.sleep(settings.poll_seconds)


def _slurm_alive(job: str) -> bool:
    listing = subprocess.run(["squeue", "--noheader", "--jobs", job, "--format", "%T"], capture_output=True, text=True)
    # squeue forgets finished jobs after some minutes and then answers with an error.
    return listing.returncode == 0 and bool(listing.stdout.strip())


def _ray(step: Any, count: int, logs: Path, settings: Executor) -> PipelineExecutor:
    try:
        import ray
    except ImportError as error:
        raise MissingExtra.of("executor.type ray", "ray") from error
    from datatrove.executor.ray import RayPipelineExecutor

    if not ray.is_initialized():
        # Joins the cluster that RAY_ADDRESS names or that runs on this machine; starts one here if there is none.
        ray.init(log_to_driver=False)
    return RayPipelineExecutor(
        pipeline=[step], tasks=count, workers=settings.workers or -1, logging_dir=str(logs),
        cpus_per_task=settings.cpus_per_task, mem_per_cpu_gb=settings.memory_gb_per_cpu,
        # An actor whose own child is killed waits for it for ever; the limit ends it, and the task is started again.
        time=_seconds(settings.time),
    )  # fmt: skip


def _seconds(limit: str) -> int:
    """`[days-]hours:minutes:seconds`, as Slurm writes time limits, in seconds."""
    days, _, rest = limit.rpartition("-")
    hours, minutes, seconds = map(int, rest.split(":"))
    return int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds


def _slurm(step: Any, count: int, logs: Path, settings: Executor, task: Task) -> PipelineExecutor:
    from datatrove.executor.slurm import SlurmPipelineExecutor

    if shutil.which("sbatch") is None:
        raise LengthenError(
            "executor.type slurm: there is no sbatch on this machine.",
            fix="run the command on a login node of the cluster, or use executor.type local",
        )
    environment = settings.environment or f'export PATH="{Path(sys.executable).parent}:$PATH"'
    return SlurmPipelineExecutor(
        pipeline=[step], tasks=count, time=settings.time, partition=settings.partition, qos=settings.qos,
        cpus_per_task=settings.cpus_per_task, mem_per_cpu_gb=settings.memory_gb_per_cpu,
        workers=settings.workers or -1, job_name=f"lengthen-{task.__name__}", env_command=environment,
        sbatch_args=dict(settings.sbatch), logging_dir=str(logs),
    )  # fmt: skip


def _raise_told(work: Path, task: Task) -> None:
    """The first error that a task left, if it was one of the user's."""
    for file in sorted((work / "errors").glob(f"{task.__name__}-*.json")):
        told = read_json(file)
        raise LengthenError(told["what"], why=told["why"], fix=told["fix"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """datatrove logs to stderr through loguru; its task logs lie in the work folder anyway."""
    from loguru import logger

    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")
