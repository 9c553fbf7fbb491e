"""Progress with an ETA: a live bar in a terminal, a line every half minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lengthen.common.dist import is_main


def clock(seconds: float) -> str:
    """`95` -> `1m35s`, `7260` -> `2h01m`."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Bar:
    """One piece of long work. `advance` after each unit; `done` may start above zero when a run goes on.

    The ETA counts only what this process did, so that resumed work does not make it too hopeful. Units may be
    weighted (`advance(weight)`) when they do not cost the same: a 32K prompt against a 4K one.
    """

    def __init__(self, label: str, total: float, unit: str, done: float = 0, emit: Callable[[str], None] = print):
        self.label, self.total, self.unit = label, total, unit
        self.done, self.began_at, self.note = done, done, ""
        self.start = self.last = time.monotonic()
        self.emit = emit
        self.live = sys.stderr.isatty()

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        self.done += amount
        if note is not None:
            self.note = note
        now = time.monotonic()
        if now - self.last >= (0.2 if self.live else 30):
            self.last = now
            self._show("\r\x1b[2K" if self.live else "", "" if self.live else "\n")

    @property
    def eta(self) -> float:
        """Seconds to go, from the speed of this process so far."""
        did = self.done - self.began_at
        return (time.monotonic() - self.start) * (self.total - self.done) / did if did > 0 else float("nan")

    def _show(self, begin: str, end: str) -> None:
        if not is_main():
            return
        share = f"{100 * self.done / self.total:3.0f}%" if self.total else ""
        eta = f"  {clock(self.eta)} to go" if self.eta == self.eta else ""
        note = f"  {self.note}" if self.note else ""
        text = f"{self.label}  {share}  {self.done:,.0f}/{self.total:,.0f} {self.unit}{eta}{note}"
        sys.stderr.write(f"{begin}{text}{end}")
        sys.stderr.flush()

    def close(self) -> None:
        if self.live:
            self._show("\r\x1b[2K", "\n")


@contextmanager
def progress(label: str, total: float, unit: str, done: float = 0) -> Iterator[Bar]:
    """`with progress("needle", 40, "prompts") as bar: ... bar.advance()`."""
    bar = Bar(label, total, unit, done)
    try:
        yield bar
    finally:
        bar.close()
