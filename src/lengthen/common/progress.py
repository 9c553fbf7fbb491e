"""Progress with an ETA, for the piece of work at hand and for the whole run.

A live line in a terminal; a line every half minute in a log.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lengthen.common.dist import is_main

_PAUSE_LIVE, _PAUSE_LOG = 0.2, 30.0


def clock(seconds: float) -> str:
    """`95` -> `1m35s`, `7260` -> `2h01m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Outlook:
    """The whole run's ETA: each stage's cost is a rough number of seconds on two cores; what has been done so far
    tells how fast this machine is."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.costs = dict(costs)
        self.finished: set[str] = set()
        self.now: dict[str, float] = {}
        self.start = time.monotonic()

    def note(self, stage: str, share: float) -> None:
        self.now[stage] = min(1.0, share)

    def finish(self, stage: str) -> None:
        self.finished.add(stage)

    @property
    def eta(self) -> float:
        """Seconds to go for all stages; NaN before there is anything to judge by."""
        done = sum(c * (1.0 if s in self.finished else self.now.get(s, 0.0)) for s, c in self.costs.items())
        total = sum(self.costs.values())
        elapsed = time.monotonic() - self.start
        return elapsed * (total - done) / done if done > 0.01 * total and elapsed > 3 else math.nan


_OUTLOOK: list[Outlook] = []


def show_outlook(outlook: Outlook | None) -> None:
    """Show this run's ETA behind every bar from now on (None: no longer)."""
    _OUTLOOK[:] = [outlook] if outlook else []


class Bar:
    """One piece of long work. `advance` after each unit; `done` may start above zero when a run goes on.

    The ETA counts only what this process did, so that resumed work does not make it too hopeful. Units may be
    weighted (`advance(weight)`) when they do not cost the same: a 32K prompt against a 4K one.
    """

    def __init__(self, label: str, total: float, unit: str, done: float = 0, stage: str = "") -> None:
        self.label, self.total, self.unit, self.stage = label, total, unit, stage
        self.done, self.began_at, self.text = done, done, ""
        self.start = self.last = time.monotonic()
        self.live = sys.stderr.isatty()

    def advance(self, amount: float = 1, note: str | None = None) -> None:
        """Count `amount` units more; `note` is shown behind (a loss, a score)."""
        self.done += amount
        if note is not None:
            self.text = note
        if _OUTLOOK and self.stage and self.total:
            _OUTLOOK[0].note(self.stage, self.done / self.total)
        now = time.monotonic()
        if now - self.last >= (_PAUSE_LIVE if self.live else _PAUSE_LOG):
            self.last = now
            self._show("\r\x1b[2K" if self.live else "", "" if self.live else "\n")

    @property
    def eta(self) -> float:
        """Seconds to go, from the speed of this process so far; NaN before the first unit."""
        did = self.done - self.began_at
        return (time.monotonic() - self.start) * (self.total - self.done) / did if did > 0 else math.nan

    def _show(self, begin: str, end: str) -> None:
        if not is_main():
            return
        share = f"{100 * self.done / self.total:3.0f}%" if self.total else ""
        eta = "" if math.isnan(self.eta) else f"  {clock(self.eta)} to go"
        run = _OUTLOOK[0].eta if _OUTLOOK else math.nan
        whole = "" if math.isnan(run) else f" (run: {clock(run)})"
        note = f"  {self.text}" if self.text else ""
        sys.stderr.write(
            f"{begin}{self.label}  {share}  {self.done:,.0f}/{self.total:,.0f} {self.unit}{eta}{whole}{note}{end}"
        )
        sys.stderr.flush()

    def close(self) -> None:
        if self.live and is_main():
            self._show("\r\x1b[2K", "\n")


@contextmanager
def progress(label: str, total: float, unit: str, done: float = 0, stage: str = "") -> Iterator[Bar]:
    """`with progress("needle", 40, "prompts") as bar: ... bar.advance()`."""
    bar = Bar(label, total, unit, done, stage)
    try:
        yield bar
    finally:
        bar.close()
