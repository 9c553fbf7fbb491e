"""How the ranks of one launch agree: the first one decides and works, the others hear of it.

Stages that are not parallel run on the first rank alone, for hours perhaps, so that a collective (with its time-out)
is no way to wait. The launcher's own key-value store is.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from lengthen.common import dist
from lengthen.common.errors import LengthenError

_FAILED = "failed:"


class Launch:
    """The store of a launch; without one (a single process) telling and hearing do nothing."""

    def __init__(self, store: Any | None) -> None:
        self._store = store
        self._failed = False

    @classmethod
    def join(cls) -> Launch:
        """Connect to the launcher's store (torchrun's agent, or one that the first rank opens)."""
        dist.export_launcher_variables()
        if dist.world_size() == 1:
            return cls(None)
        from torch.distributed import PrefixStore, TCPStore

        agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]) + (0 if agent else 1),
            dist.world_size(),
            is_master=dist.is_main() and not agent,
            timeout=timedelta(days=14),
        )
        return cls(PrefixStore(f"lengthen/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store))

    def tell(self, key: str, word: str) -> None:
        """First rank: say what happens with `key`."""
        if self._store is not None:
            self._store.set(key, word)
            self._store.set("last", word)

    def fail(self, why: str) -> None:
        """First rank: it is over; ranks that wait stop too."""
        self._failed = True
        if self._store is not None:
            with suppress(RuntimeError):  # the launcher's store may be gone; the reason is told all the same
                self._store.set("failed", why or "stopped")

    def leave(self) -> None:
        """All ranks, at the end: the first one may hold the store, so it goes last. It waits a minute at most, and ten
        seconds after a failure: other ranks may be gone, or in the middle of a computation."""
        if self._store is None:
            return
        if not dist.is_main():
            with suppress(RuntimeError):  # the store is gone: the first rank waited long enough
                self._store.set(f"left/{dist.rank()}", "")
            return
        others = [f"left/{rank}" for rank in range(1, dist.world_size())]
        end = time.monotonic() + (10 if self._failed else 60)
        with suppress(RuntimeError):
            while time.monotonic() < end and not self._store.check(others):
                _pause()

    def hear(self, key: str) -> str:
        """Other ranks: wait until the first one has said what happens with `key`."""
        if self._store is None:
            return "run"
        while True:
            if self._store.check([key]):
                return self._store.get(key).decode()
            if self._store.check(["failed"]):
                raise LengthenError(f"The first rank stopped: {self._store.get('failed').decode()}")
            _pause()


def _pause() -> None:
    time.sleep(0.5)
