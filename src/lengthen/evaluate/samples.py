"""Samples: what is asked, made once and kept in one readable file per task and length."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from lengthen.common.errors import LengthenError
from lengthen.common.files import cache_folder, read_json_lines, write_atomic


@dataclass(frozen=True)
class Sample:
    """One question.

    id: unique in a run: suite/task/length/index, and a number where one context has several questions.
    length: nominal length in tokens (0 for tasks without one). tokens: of the prompt, by the tested model's tokenizer.
    context: samples of one context depend on each other; intervals are drawn over contexts.
    user: the user message; prefix: the beginning of the answer, given to the model after the chat template.
    refs: what a right answer holds. depth: place of what is asked for, 0..1 of the context.
    new_tokens: room for the answer. share: samples of an equal value have a long beginning in common.
    meta: what the scorer or a reader needs besides.
    """

    id: str
    suite: str
    task: str
    length: int
    context: str
    user: str
    refs: tuple[str, ...]
    new_tokens: int
    prefix: str = ""
    tokens: int = 0
    depth: float | None = None
    share: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Sample:
        return cls(**{**row, "refs": tuple(row["refs"])})


@dataclass(frozen=True)
class SampleKey:
    """All that decides a cell's samples. Two runs with an equal key are asked the same questions, byte for byte."""

    suite: str
    task: str
    version: int
    length: int
    seed: int
    tokenizer: str
    template: str
    parameters: Mapping[str, Any]

    def hash(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()[:16]

    def file_name(self) -> str:
        return f"{self.suite}-{self.task}-{self.length}-{self.hash()}.jsonl"


def cached_samples(
    key: SampleKey, contexts: int, make: Callable[[range], Iterator[Sample]], folder: Path | None = None
) -> tuple[list[Sample], Path]:
    """The samples of the first `contexts` contexts, from the cache or made now, and the file that holds them.

    A longer file serves a smaller number too: sample i never depends on how many there are.

    Args:
        make: samples of a range of contexts, in order; each sample's `context` ends in `/<index of the context>`.
        folder: where the file lies; default: `samples` in the cache.
    """
    store = folder or cache_folder("samples")
    path = store / key.file_name()
    with FileLock(str(store / f".{path.name}.lock")):
        known = [Sample.of(row) for row in read_json_lines(path)]
        have = 1 + max((context_index(s) for s in known), default=-1)
        if have < contexts:
            known += make(range(have, contexts))
            _check_unique(known)
            write_atomic(path, "".join(sample.line() + "\n" for sample in known))
    return [s for s in known if context_index(s) < contexts], path


def context_index(sample: Sample) -> int:
    return int(sample.context.rsplit("/", 1)[1])


def place(path: Path, folder: Path) -> None:
    """Put a sample file beside the predictions: a hard link where the file system allows it, else a copy."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    part = folder / f".{path.name}.part"
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:
        shutil.copyfile(path, part)
    os.replace(part, target)
    # Renaming one link of a file to another link of it does nothing, and leaves both.
    part.unlink(missing_ok=True)


def _check_unique(samples: list[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise LengthenError(f"Two samples have the id {sample.id}.", why="a suite must number its samples")
        seen.add(sample.id)
