"""An endpoint that takes requests at any moment: one client, one probe, answers handed over as they come.

`EndpointEngine.generate` sends a list and ends with it; a pipeline whose next requests depend on earlier answers would
open a client and probe again for every few of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from lengthen.common.errors import LengthenError
from lengthen.generate.endpoint import EndpointEngine, _Health
from lengthen.generate.engine import Answer, Request
from lengthen.generate.listing import key_of
from lengthen.generate.wire import Wire

Sink = Callable[[Answer | BaseException], None]


class Stream:
    """Requests in flight at an endpoint, at most `options.concurrency` of them.

    Args:
        engine: how to speak to the endpoint: address, model, tries, time allowed.
        prefix, text: whether chats with a beginning of the answer and plain prompts will come.

    Raises:
        LengthenError: the endpoint is not there, or lacks what these requests need.
    """

    def __init__(self, engine: EndpointEngine, *, prefix: bool = True, text: bool = False) -> None:
        self.engine = engine
        self._needs = prefix, text
        self._loop = asyncio.new_event_loop()
        self._wire: Wire | None = None
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(engine.options.concurrency)
        self._health = _Health()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def name(self) -> str:
        return self.engine.name

    def count_tokens(self, text: str) -> int:
        return self.engine.count_tokens(text)

    def submit(self, request: Request, sink: Sink) -> None:
        """Send a request as soon as there is a place. `sink` gets its answer (or what stops all work: an endpoint that
        is gone, a refused key) from another thread."""
        if not self._thread.is_alive():
            raise LengthenError("The stream to the endpoint is closed.")
        self._loop.call_soon_threadsafe(self._begin, request, sink)

    def close(self) -> None:
        """Cancel what is under way and end."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=10)
        self.engine.close()

    # ------------------------------------------------------------------------------------------------- inside
    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _live(self) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient
        from openai._constants import DEFAULT_CONNECTION_LIMITS

        options = self.engine.options
        # The library's own limit of 1,000 connections would hold back what `concurrency` allows.
        # Its class is taken from there, since the HTTP library below differs from version to version.
        limits = type(DEFAULT_CONNECTION_LIMITS)(max_connections=None, max_keepalive_connections=options.concurrency)
        key = key_of(options.key)
        async with AsyncOpenAI(
            base_url=self.engine.base_url, api_key=key, max_retries=0, timeout=86_400.0,
            http_client=DefaultAsyncHttpxClient(limits=limits),
        ) as client:  # fmt: skip
            wire = Wire(client, self.engine.model, options.api, self.engine.tokenizer, self.engine.template_options)
            await self.engine._probe(wire, *self._needs)
            self._wire = wire
            self._ready.set()
            await self._stop.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, request: Request, sink: Sink) -> None:
        task = self._loop.create_task(self._one(request, sink))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, request: Request, sink: Sink) -> None:
        assert self._wire is not None
        await self._places.acquire()
        try:
            await self.engine._one(self._wire, request, self._places, self._health, _Found(sink))  # type: ignore[arg-type]
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            sink(error)


class _Found:
    """What `EndpointEngine._one` puts its answers into."""

    def __init__(self, sink: Sink) -> None:
        self.put = sink
