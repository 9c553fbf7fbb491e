"""Requests in flight: many small tasks, each a generator that asks and goes on when its answer comes.

A task never waits for another one. Answers are committed to the store before the task sees them, and a task that is
started again finds them there: going on after a kill is nothing but running the same tasks again.

What came together is handled together: one transaction for the answers, then one for all that follows from them
(verdicts, ends of tasks, the next requests), which is committed before those requests go out.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lengthen.common.errors import LengthenError
from lengthen.common.progress import Bar
from lengthen.generate.engine import Answer, Engine, Request, failed
from lengthen.generate.stream import Stream
from lengthen.selflengthen.store import Key, Store

RECORD_SECONDS = 5.0
"""The traffic of a phase is kept so often; a process that is killed loses no more of it."""
_TRAFFIC = "traffic"


@dataclass(frozen=True)
class Ask:
    """A request under its key; `engine` names the engine that answers it (base, generator, extender)."""

    key: Key
    engine: str
    request: Request


Task = Generator[Ask, Answer, None]


class Source(Protocol):
    """Gives tasks as they become possible."""

    def next_task(self) -> Task | None:
        """The next task, or None when there is none at this moment."""
        ...

    def more(self) -> bool:
        """False when no task will come any more, whatever the running ones bring."""
        ...


@dataclass
class Listed:
    """A source over tasks that are known from the beginning."""

    tasks: Iterator[Task]
    _ended: bool = False

    @classmethod
    def of(cls, tasks: Iterable[Task]) -> Listed:
        return cls(iter(tasks))

    def next_task(self) -> Task | None:
        task = next(self.tasks, None)
        self._ended = task is None
        return task

    def more(self) -> bool:
        return not self._ended


@dataclass
class Traffic:
    """What a run of the pipeline did. wire: seconds that requests were out, added up. processor: seconds of processor
    time that this process took meanwhile."""

    in_flight: int = 1
    asked: int = 0
    from_store: int = 0
    errors: int = 0
    tokens: int = 0
    seconds: float = 0.0
    wire: float = 0.0
    processor: float = 0.0

    @property
    def busy(self) -> float:
        """Mean share of the allowed places that held a request. A request that waits here, answered but not looked at
        or ready but not sent, holds none."""
        return self.wire / (self.in_flight * self.seconds) if self.seconds > 0 else 0.0

    def facts(self) -> dict[str, Any]:
        """What a phase records of it."""
        return {
            "requests": self.asked,
            "requests_per_second": round(self.asked / self.seconds, 2) if self.seconds > 0 else 0.0,
            "busy": round(self.busy, 4),
            "processor_seconds": round(self.processor, 1),
        }

    def __add__(self, other: Traffic) -> Traffic:
        """One after the other."""
        return Traffic(
            max(self.in_flight, other.in_flight), self.asked + other.asked, self.from_store + other.from_store,
            self.errors + other.errors, self.tokens + other.tokens, self.seconds + other.seconds,
            self.wire + other.wire, self.processor + other.processor,
        )  # fmt: skip


@dataclass
class Totals:
    """Traffic of the phase that is open. before: what earlier runs in it did, in this process or in one that was
    killed."""

    store: Store
    phase: list[Any] | None
    before: Traffic

    @classmethod
    def of(cls, store: Store) -> Totals:
        rows = store.query(
            "SELECT iteration, phase, began_at FROM phases WHERE ended_at IS NULL ORDER BY began_at DESC LIMIT 1"
        )
        phase = list(rows[0]) if rows else None
        saved = json.loads(store.meta(_TRAFFIC) or "{}")
        same = phase is not None and saved.get("phase") == phase
        return cls(store, phase, Traffic(**saved["traffic"]) if same else Traffic())

    def save(self, traffic: Traffic) -> None:
        """Keep the total, from which a next process goes on. One phase is open at a time."""
        if self.phase is not None:
            row = {"phase": self.phase, "traffic": vars(self.before + traffic)}
            self.store.set_meta(_TRAFFIC, json.dumps(row))


class Pipeline:
    """Runs tasks against engines.

    Args:
        engines: by the name that an `Ask` gives. A stream takes requests at any moment, and they are sent as soon as a
            place is free; to an engine all that is ready goes out as one wave (batched decoding inside this process,
            where a second caller would only slow the first).
        in_flight: requests out at the same time.
        error_tries: how often a request that ends in an error is sent before its task hears of it.
        in_a_row: so many errors one after the other stop the run: the endpoint is gone, and no try shall be wasted.
        at_once: answers handled together, before new requests go out.
        record: is given the traffic every few seconds and at the end.
    """

    def __init__(
        self,
        store: Store,
        engines: Mapping[str, Engine | Stream],
        *,
        in_flight: int = 256,
        error_tries: int = 3,
        in_a_row: int | None = None,
        at_once: int = 64,
        bar: Bar | None = None,
        record: Callable[[Traffic], None] | None = None,
    ) -> None:
        self.store, self.engines, self.in_flight = store, engines, in_flight
        self.flow = all(isinstance(engine, Stream) for engine in engines.values())
        self.error_tries, self.at_once, self.bar = error_tries, at_once, bar
        self.record = record
        self.in_a_row = in_a_row or max(50, 2 * in_flight)
        self.traffic = Traffic(in_flight)
        self._ready: deque[tuple[Task, Ask, int]] = deque()
        self._out: dict[str, tuple[Task, Ask, int]] = {}
        self._answers: queue.Queue[Answer | BaseException] = queue.Queue()
        self._errors_in_a_row = 0

    def run(self, source: Source) -> Traffic:
        """Run every task of the source to its end. Raises what a task raises, and LengthenError when the engine
        answers nothing but errors; everything that was answered is in the store then."""
        began, processor = time.monotonic(), time.process_time()
        answers: list[Answer] = []
        recorded = began
        while True:
            with self.store.together():
                self._go_on(answers)
                self._start(source)
                batches = self._batches()
                if time.monotonic() - recorded >= RECORD_SECONDS:
                    self._record(began, processor)
                    recorded = time.monotonic()
            self._send(batches)
            if self._out:
                answers = self._received()
            elif self._ready:
                answers = []
            elif not source.more():
                break
            else:
                raise RuntimeError("no task is running and the source gives none")
        self._record(began, processor)
        return self.traffic

    def _record(self, began: float, processor: float) -> None:
        self.traffic.seconds = time.monotonic() - began
        self.traffic.processor = time.process_time() - processor
        if self.record is not None:
            self.record(self.traffic)

    def _received(self) -> list[Answer]:
        """Answers that are there, at least one, after they have been stored."""
        found = [self._answers.get()]
        while len(found) < self.at_once and not self._answers.empty():
            found.append(self._answers.get_nowait())
        answers = [one for one in found if isinstance(one, Answer)]
        with self.store.together():
            for answer in answers:
                self.store.answered(self._out[answer.id][1].key, answer)
        for one in found:
            if not isinstance(one, Answer):
                raise one
        return answers

    def _start(self, source: Source) -> None:
        """Start tasks until as many requests wait as can go out."""
        while len(self._ready) + len(self._out) < self.in_flight:
            task = source.next_task()
            if task is None:
                return
            self._advance(task, None)

    def _advance(self, task: Task, answer: Answer | None) -> None:
        """Let a task go on until it asks for something that is not in the store, or ends."""
        while True:
            try:
                ask = next(task) if answer is None else task.send(answer)
            except StopIteration:
                if self.bar is not None:
                    self.bar.advance(1, f"{len(self._out)} in flight")
                return
            answer = self.store.answer(ask.key)
            if answer is None:
                self._ready.append((task, ask, 1))
                return
            self.traffic.from_store += 1

    def _batches(self) -> dict[str, list[Request]]:
        """What goes out now, by engine, after it has been written down."""
        batches: dict[str, list[Request]] = {}
        if self._out and not self.flow:
            return batches
        while self._ready and len(self._out) < self.in_flight:
            task, ask, tries = self._ready.popleft()
            name = f"{ask.key}#{tries}"
            if name in self._out:
                raise RuntimeError(f"two tasks ask for {name}")
            self.store.sending(ask.key, ask.request)
            self._out[name] = (task, ask, tries)
            batches.setdefault(ask.engine, []).append(replace(ask.request, id=name))
            self.traffic.asked += 1
        return batches

    def _send(self, batches: Mapping[str, list[Request]]) -> None:
        for name, requests in batches.items():
            engine = self.engines[name]
            if isinstance(engine, Stream):
                for request in requests:
                    engine.submit(request, self._answers.put)
            else:
                threading.Thread(target=self._work, args=(engine, requests), daemon=True).start()

    def _work(self, engine: Engine, requests: list[Request]) -> None:
        """One thread per batch that goes out; its answers are handed over one by one, as they come."""
        missing = {request.id: request for request in requests}
        try:
            for answer in engine.generate(requests):
                missing.pop(answer.id, None)
                self._answers.put(answer)
            for request in missing.values():
                self._answers.put(failed(request, "the engine gave no answer"))
        except BaseException as error:
            self._answers.put(error)

    def _go_on(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            task, ask, tries = self._out.pop(answer.id)
            self.traffic.wire += answer.seconds
            if answer.finish_reason != "error":
                self._errors_in_a_row = 0
                self.traffic.tokens += answer.new_tokens
                self._advance(task, answer)
                continue
            self.traffic.errors += 1
            if not answer.final:
                self._count_error(answer)
                if tries < self.error_tries:
                    self._ready.append((task, ask, tries + 1))
                    continue
            self._advance(task, answer)

    def _count_error(self, answer: Answer) -> None:
        self._errors_in_a_row += 1
        if self._errors_in_a_row >= self.in_a_row:
            raise LengthenError(
                f"The last {self._errors_in_a_row} requests all ended in errors; the last one: {answer.error}",
                why="the endpoint does not answer, or refuses these requests",
                fix="look at the server, then run the same command again; nothing that was answered is asked again",
            )


def run_tasks(pipeline: Pipeline, tasks: Iterable[Task]) -> Traffic:
    """Run tasks that are all known."""
    return pipeline.run(Listed.of(tasks))
