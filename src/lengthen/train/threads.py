"""A pool of threads that each run torch's operators on their share of the processor.

Why not torch's own parallel loops: a tile of attention is a dozen operators of 50-200 us, and each would start and join
all threads. That costs little on an idle machine, but as soon as another process takes a core, every operator waits for
the thread that was put aside (measured: a prefill of 3.5 s became 87 s). Whole blocks on independent threads slow down
by what the other process takes, no more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, local
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MOST_WORKERS = 8  # Python runs between two operators of every worker under one lock: with more workers it is the limit


class _Pool:
    def __init__(self, threads: int) -> None:
        self.owner, self.threads = os.getpid(), threads
        self.workers = min(threads, MOST_WORKERS)
        share = max(1, threads // self.workers)
        self.executor = ThreadPoolExecutor(
            self.workers, "lengthen", initializer=torch.set_num_threads, initargs=(share,)
        )
        list(self.executor.map(lambda _: None, range(self.workers)))
        # The call sets its own thread's count, and the default of threads born later, which we give back.
        torch.set_num_threads(threads)


_lock = Lock()
_pool: _Pool | None = None
_inside = local()


def worker_count() -> int:
    """How many items run at a time: the threads torch may use here, at most MOST_WORKERS; one inside a worker."""
    return 1 if getattr(_inside, "worker", False) else min(torch.get_num_threads(), MOST_WORKERS)


def _current_pool() -> _Pool:
    global _pool
    with _lock:
        threads = torch.get_num_threads()
        # A forked child inherits the object without its threads, so the owner is part of what makes a pool current.
        if _pool is None or _pool.owner != os.getpid() or _pool.threads != threads:
            if _pool is not None and _pool.owner == os.getpid():
                _pool.executor.shutdown(wait=False)
            _pool = _Pool(threads)
        return _pool


def run(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """[function(item) for item in items], in parallel and without autograd; the first error is raised again."""
    inference = torch.is_inference_mode_enabled()

    def job(item: Item) -> Result:
        _inside.worker = True
        with torch.inference_mode(inference), torch.no_grad():  # both modes belong to a thread, not to the process
            return function(item)

    if len(items) < 2 or worker_count() < 2:
        return [function(item) for item in items]
    return list(_current_pool().executor.map(job, items))
