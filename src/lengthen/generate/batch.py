"""Writing many texts at once: which requests run together, how prompts are read, when a place is filled anew."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from lengthen.generate.attention import Beginning
from lengthen.generate.cache import Buffers, stack
from lengthen.generate.engine import OUT_OF_MEMORY, Answer, Request, failed
from lengthen.generate.reader import Reader
from lengthen.generate.sampling import Chooser, Writer

ALONE = 1024
"""Prompts of so many tokens are read one at a time: they fill the processor, and padding would only cost."""
ROOM = 512


@dataclass
class Job:
    """A request and its tokens. `skip`: tokens at the front that a shared beginning already holds."""

    request: Request
    ids: list[int]
    skip: int = 0

    @property
    def tail(self) -> list[int]:
        return self.ids[self.skip :]


@dataclass
class Row:
    """A text that is being written."""

    job: Job
    chooser: Chooser
    writer: Writer
    began: float
    token: int = 0
    position: int = 0
    ended: str | None = None
    done: bool = field(default=False)


@dataclass(frozen=True)
class Limits:
    """rows: most texts at once. prompt_tokens: of all rows' prompts together. memory_tokens: prompts and answers."""

    rows: int
    prompt_tokens: int
    memory_tokens: int


class Batch:
    """Runs a queue of jobs to its end, always with as many rows as the limits allow."""

    def __init__(self, reader: Reader, limits: Limits, beginning: Beginning | None = None) -> None:
        self.reader, self.limits, self.beginning = reader, limits, beginning
        self.rows: list[Row] = []
        self.cache: Buffers | None = None
        self.pads_B: torch.Tensor | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        """Answers as they finish. Out of memory halves the batch; a prompt that does not fit alone is an error."""
        queue = deque(sorted(jobs, key=lambda job: len(job.tail)))
        while queue or self.rows:
            try:
                yield from self._advance(queue)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                answer = self._make_smaller(queue)
                if answer is not None:
                    yield answer

    def _advance(self, queue: deque[Job]) -> Iterator[Answer]:
        places = self.limits.rows
        # Filling a place copies the cache, so a few places wait for each other.
        if queue and len(self.rows) <= max(0, places - max(1, places // 4)):
            self._fill(queue)
            yield from self._leave()
        if self.rows:
            self.step()
            yield from self._leave()

    # ------------------------------------------------------------------------------------------------- new rows
    def _fill(self, queue: deque[Job]) -> None:
        jobs = self._take(queue)
        if not jobs:
            return
        try:
            fresh = self._read(jobs)
        except (RuntimeError, MemoryError):
            queue.extendleft(reversed(jobs))
            raise
        pieces = [*self._pieces(range(len(self.rows))), *(piece for _, piece in fresh)]
        self.rows += [row for row, _ in fresh]
        self._restack(pieces)

    def _take(self, queue: deque[Job]) -> list[Job]:
        prompts = sum(len(r.job.tail) for r in self.rows)
        longest = max([r.position - r.job.skip for r in self.rows], default=0)
        jobs: list[Job] = []
        while queue and len(self.rows) + len(jobs) < self.limits.rows:
            job = queue[0]
            prompts += len(job.tail)
            longest = max(longest, len(job.tail) + job.request.max_new_tokens)
            many = len(self.rows) + len(jobs) + 1
            if many > 1 and (prompts > self.limits.prompt_tokens or many * longest > self.limits.memory_tokens):
                break
            jobs.append(queue.popleft())
        return jobs

    def _read(self, jobs: Sequence[Job]) -> list[tuple[Row, tuple[Buffers, int, int]]]:
        """First tokens of new rows, and where their keys lie."""
        short = [j for j in jobs if len(j.tail) < ALONE or self.beginning is not None]
        groups = [short] if short else []
        groups += [[j] for j in jobs if not (len(j.tail) < ALONE or self.beginning is not None)]
        made = []
        for group in groups:
            began = time.monotonic()
            if len(group) == 1 and self.beginning is None:
                cache = self.reader.cache(len(group[0].ids) + min(ROOM, group[0].request.max_new_tokens))
                logits_BV, pads = self.reader.read(cache, group[0].ids)[None], [0]
            else:
                logits_BV, cache, pads = self.reader.read_rows([j.tail for j in group], self.beginning)
            for at, job in enumerate(group):
                row = Row(job, Chooser(job.request, job.ids), Writer(self.reader.tokenizer, job.request.stop), began)
                row.position = len(job.ids)
                self.take_token(row, logits_BV[at])
                made.append((row, (cache, at, pads[at])))
        return made

    # ------------------------------------------------------------------------------------------------- writing
    def step(self) -> None:
        assert self.cache is not None
        tokens_B = torch.tensor([row.token for row in self.rows])
        positions_B = torch.tensor([row.position for row in self.rows])
        logits_BV = self.reader.step(self.cache, tokens_B, positions_B, self.pads_B, self.beginning)
        for row, logits_V in zip(self.rows, logits_BV):
            row.position += 1
            if not row.done:
                self.take_token(row, logits_V)

    def take_token(self, row: Row, logits_V: torch.Tensor) -> None:
        row.token = row.chooser.choose(logits_V)
        if row.token in self.reader.ends or row.writer.add(row.token):
            row.ended = "stop"
        elif len(row.writer.tokens) >= row.job.request.max_new_tokens:
            row.ended = "length"

    def _leave(self) -> Iterator[Answer]:
        """Answers of finished rows; their places are given up once a quarter is idle."""
        found = [row for row in self.rows if row.ended and not row.done]
        for row in found:
            row.done = True
        live = [at for at, row in enumerate(self.rows) if not row.done]
        if not live:
            self.rows, self.cache, self.pads_B = [], None, None
        elif found and len(live) <= 0.75 * len(self.rows):
            pieces = self._pieces(live)
            self.rows = [self.rows[at] for at in live]
            self._restack(pieces)
        for row in found:
            yield answer_of(row)

    def _pieces(self, rows: Sequence[int]) -> list[tuple[Buffers, int, int]]:
        if self.cache is None:
            return []
        pads = [0] * len(self.rows) if self.pads_B is None else self.pads_B.tolist()
        return [(self.cache, at, pads[at]) for at in rows]

    def _restack(self, pieces: Sequence[tuple[Buffers, int, int]]) -> None:
        cache, _, first = pieces[0]
        if len(pieces) == 1 and cache.rows == 1 and first == 0:
            self.cache, self.pads_B = cache, None
            return
        left = max(r.job.request.max_new_tokens - len(r.writer.tokens) for r in self.rows)
        self.cache, pads_B = stack(pieces, min(ROOM, left))
        self.pads_B = pads_B if bool(pads_B.any()) else None

    def _make_smaller(self, queue: deque[Job]) -> Answer | None:
        """After running out of memory: half as many rows, begun anew; None, or the answer of a hopeless prompt."""
        jobs = [row.job for row in self.rows if not row.done]
        many = len(jobs)
        queue.extendleft(reversed(jobs))
        self.rows, self.cache, self.pads_B = [], None, None
        self.reader.free()
        if self.limits.rows > 1 and (many > 1 or len(queue) > 1):
            rows = max(1, min(self.limits.rows, max(many, 2)) // 2)
            self.limits = Limits(rows, self.limits.prompt_tokens, self.limits.memory_tokens)
            return None
        job = queue.popleft()
        return failed(job.request, f"{OUT_OF_MEMORY} at a prompt of {len(job.ids):,} tokens")


def answer_of(row: Row) -> Answer:
    """The answer of a finished row."""
    new = len(row.writer.tokens)
    reason = "stop" if row.ended == "stop" else "length"
    seconds = time.monotonic() - row.began
    return Answer(row.job.request.id, row.writer.text(), reason, len(row.job.ids), new, seconds)


def out_of_memory(error: BaseException) -> bool:
    """True for torch's errors of CPU and GPU memory, and Python's."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning of two token sequences."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
