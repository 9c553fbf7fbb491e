"""Write conversations one by one to chat.jsonl: goes on after a kill, and in any number of processes alike."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from lengthen.common.files import explain_disk, read_json_lines
from lengthen.common.manifest import Drops, StageContext, StageResult

Build = Callable[[int], dict[str, Any]]
_BUILD: list[Build] = []


def write_chat(ctx: StageContext, count: int, workers: int, make: Callable[..., Build], *args: Any) -> StageResult:
    """Write conversations 0..count-1 in order.

    Args:
        make: a module-level function that returns the builder of conversation i; called once per process with `args`.
            Conversation i must depend on i and the args alone.
    """
    part, final = ctx.folder / ".chat.jsonl.part", ctx.folder / "chat.jsonl"
    tally = Summary()
    if final.exists() and not part.exists():
        os.replace(final, part)
    kept = 0
    for sample in read_json_lines(part, repair=True):
        if tally.samples == count:  # fewer are asked for than were once made
            os.truncate(part, kept)
            break
        tally.add(sample)
        kept += len(_line(sample))
    with (
        explain_disk(part),
        open(part, "ab") as file,
        ctx.progress("conversations", count, "written", done=tally.samples) as bar,
    ):
        for sample in _built(range(tally.samples, count), workers, make, args):
            file.write(_line(sample))
            file.flush()
            tally.add(sample)
            bar.advance()
        os.fsync(file.fileno())
    os.replace(part, final)
    return tally.result()


def _line(sample: dict[str, Any]) -> bytes:
    return (json.dumps(sample, ensure_ascii=False) + "\n").encode()


def _built(indices: range, workers: int, make: Callable[..., Build], args: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    if workers == 1 or len(indices) < 2:
        build = make(*args) if indices else None
        for index in indices:
            assert build is not None
            yield build(index)
        return
    # Not fork: the parent may hold threads (tokenizers, torch), whose locks a forked child would inherit.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(make, args)) as pool:
        yield from pool.map(_work, indices, chunksize=4)


def _start(make: Callable[..., Build], args: tuple[Any, ...]) -> None:
    _BUILD[:] = [make(*args)]


def _work(index: int) -> dict[str, Any]:
    return _BUILD[0](index)


class Summary:
    """What was written, and what was redrawn by which rule."""

    def __init__(self) -> None:
        self.samples = self.tokens = self.questions = 0
        self.redrawn: Tally[str] = Tally()
        self.parts: dict[str, Tally[str]] = {}

    def add(self, sample: dict[str, Any]) -> None:
        meta = sample["meta"]
        self.samples += 1
        self.tokens += meta["tokens"]
        self.questions += len(meta["turns"])
        self.redrawn.update(meta["redrawn"])
        for turn in meta["turns"]:
            self.parts.setdefault("task", Tally())[turn["task"]] += 1
        for name in ("language", "rendering"):
            if name in meta:
                self.parts.setdefault(name, Tally())[meta[name]] += 1

    def result(self) -> StageResult:
        drops = Drops()
        for rule, times in sorted(self.redrawn.items()):
            drops.add(f"redrawn:{rule}", times)
        counts: dict[str, float] = {"conversations": self.samples, "questions": self.questions, "tokens": self.tokens}
        figures = {name: dict(sorted(tally.items())) for name, tally in sorted(self.parts.items())}
        return StageResult(counts=counts, drops=drops.by_rule, figures=figures)
