"""Real ranks for the tests: processes that are forked after the imports and meet over gloo on 127.0.0.1."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable


def fork_ranks(world: int, main: Callable[[], None]) -> None:
    """Run `main` in `world` processes with the launcher's variables set; a failed one ends the others.

    Only for a process without threads: forking copies locks, but not the threads that hold them.

    Raises:
        SystemExit: a rank failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = set()
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            os.environ.update(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
            )  # fmt: skip
            os._exit(_guarded(main))
        children.add(pid)
    failed = False
    while children:
        pid, status = os.wait()
        children.discard(pid)
        if status and not failed:
            failed = True
            for other in children:
                os.kill(other, 15)
    if failed:
        raise SystemExit(f"a rank of world size {world} failed")


def _guarded(main: Callable[[], None]) -> int:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        main()
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        return 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
