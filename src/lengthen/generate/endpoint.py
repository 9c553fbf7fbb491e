"""Generation by an OpenAI-compatible endpoint: vLLM, SGLang, llama-server, transformers serve, or a paid service."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lengthen.common.errors import LengthenError, nearest
from lengthen.generate.engine import Answer, FinishReason, Request, failed
from lengthen.generate.prompt import encode, render
from lengthen.generate.wire import EndpointOptions, Garbage, Reply, Wire, patient
from lengthen.models import load_tokenizer

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_BROKEN_IN_A_ROW = 10  # requests that could not even connect, after all their tries: the endpoint is gone
_REFUSED = (401, 403, 404)


class EndpointEngine:
    """A model behind an address.

    Args:
        base_url: such as `http://localhost:8000/v1`. model: its name there; empty when the endpoint has one model.
        tokenizer: folder or name of the model's tokenizer: for counting and for `/v1/completions`.

    Raises:
        LengthenError: the endpoint is not there, or has no such model.
    """

    def __init__(
        self,
        base_url: str,
        model: str = "",
        *,
        tokenizer: str | None = None,
        template_options: Mapping[str, Any] | None = None,
        options: EndpointOptions | None = None,
    ) -> None:
        self.base_url, self.options = base_url.rstrip("/"), options or EndpointOptions()
        self.tokenizer = load_tokenizer(tokenizer) if tokenizer is not None else None
        self.template_options = dict(template_options or {})
        self.model = model
        self.window = 0
        self._run(self._find_model())

    @property
    def name(self) -> str:
        return f"{self.base_url}#{self.model}"

    def count_tokens(self, text: str) -> int:
        return len(encode(self._needed_tokenizer(), text))

    def render(self, request: Request) -> str:
        if request.text is not None:
            return request.text + request.prefix
        return render(self._needed_tokenizer(), request, self.template_options)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Answer]:
        """Answers as they finish. Requests with a common beginning are sent one after the other, so that the
        endpoint's prefix cache serves them. Closing the iterator cancels what is under way."""
        if not requests:
            return
        found: queue.Queue[Answer | BaseException | None] = queue.Queue()
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._thread, args=(loop, by_beginning(requests), found), daemon=True)
        thread.start()
        try:
            while (item := found.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            # The loop may close by itself between looking and asking.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_cancel_all, loop)
            thread.join(timeout=10)

    # ------------------------------------------------------------------------------------------------- inside
    def _thread(self, loop: asyncio.AbstractEventLoop, requests: Sequence[Request], found: queue.Queue[Any]) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(self._all(requests, found))
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:
            found.put(next((e for e in group.exceptions if isinstance(e, LengthenError)), group.exceptions[0]))
        except BaseException as error:
            found.put(error)
        finally:
            loop.close()
            found.put(None)

    async def _all(self, requests: Sequence[Request], found: queue.Queue[Any]) -> None:
        async with self._client() as client:
            wire = Wire(client, self.model, self.options.api, self.tokenizer, self.template_options)
            chats = [r for r in requests if r.messages is not None]
            await self._probe(wire, any(r.prefix for r in chats), len(chats) < len(requests))
            places = asyncio.Semaphore(self.options.concurrency)
            health = _Health()
            async with asyncio.TaskGroup() as group:
                for request in requests:
                    # As many tasks as places: a long list of requests is not a long list of tasks.
                    await places.acquire()
                    group.create_task(self._one(wire, request, places, health, found))

    async def _probe(self, wire: Wire, prefix: bool, text: bool) -> None:
        import openai

        try:
            await wire.probe(self.options, prefix=prefix, text=text)
        except (openai.APIError, TimeoutError, Garbage) as error:
            raise self._unreachable(error) from error

    async def _one(
        self, wire: Wire, request: Request, places: asyncio.Semaphore, health: _Health, found: queue.Queue[Any]
    ) -> None:
        began = time.monotonic()
        try:
            reply = await self._tries(wire, request)
        except LengthenError:
            raise
        except Exception as error:
            health.broken(error)
            found.put(failed(request, _said(error), time.monotonic() - began))
            if health.in_a_row >= _BROKEN_IN_A_ROW:
                raise self._unreachable(error) from error
        else:
            health.in_a_row = 0
            found.put(self._answer(request, reply, time.monotonic() - began))
        finally:
            places.release()

    async def _tries(self, wire: Wire, request: Request) -> Reply:
        """Ask until an answer comes or the tries are used up.

        Raises:
            the last try's error; LengthenError when the endpoint refuses key, rights or model, which no try mends.
        """
        import openai

        options = self.options
        allowed = options.seconds + options.seconds_per_token * request.max_new_tokens
        try:
            return await patient(lambda: wire.ask(request), allowed, options.retries, options.backoff)
        except openai.APIStatusError as error:
            if error.status_code in _REFUSED:
                raise LengthenError(
                    f"{self.base_url} refuses requests for the model '{self.model}' ({error.status_code}).",
                    why=_said(error),
                    fix=f"check the model's name, and the key in the environment variable {options.key}",
                ) from error
            raise

    def _answer(self, request: Request, reply: Reply, seconds: float) -> Answer:
        ends = [at for s in request.stop if s and (at := reply.text.find(s)) >= 0]
        text = reply.text[: min(ends)] if ends else reply.text
        if reply.finish_reason not in ("stop", "length"):
            reason = f"finish_reason {reply.finish_reason}"
            return Answer(request.id, text, "error", reply.prompt_tokens, reply.new_tokens, seconds, reason)
        ended: FinishReason = "stop" if ends or reply.finish_reason == "stop" else "length"
        return Answer(request.id, text, ended, reply.prompt_tokens, reply.new_tokens, seconds)

    async def _find_model(self) -> None:
        import openai

        try:
            async with self._client() as client:
                names = [model.id for model in (await asyncio.wait_for(client.models.list(), 60)).data or []]
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise self._unreachable(error) from error
            names = []  # some servers have no list of models
        except (openai.APIError, TimeoutError, ValueError, TypeError, AttributeError) as error:
            raise self._unreachable(error) from error
        if self.model and names and self.model not in names:
            raise LengthenError(f"{self.base_url} has no model '{self.model}'.", fix=nearest(self.model, names))
        if not self.model:
            if len(names) != 1:
                raise LengthenError(
                    f"{self.base_url}: name the model, as in {self.base_url}#NAME.",
                    why=f"the endpoint has {len(names)} models: {', '.join(names[:20])}" if names else "it lists none",
                )
            self.model = names[0]

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        # Tries and times are counted here, once; the client's own would multiply them.
        key = os.environ.get(self.options.key) or "none"
        return AsyncOpenAI(base_url=self.base_url, api_key=key, max_retries=0, timeout=86_400.0)

    def _unreachable(self, error: BaseException) -> LengthenError:
        return LengthenError(
            f"The endpoint {self.base_url} does not answer.",
            why=_said(error),
            fix="check that the server runs and that the address ends in /v1, and run again: answers so far are kept",
        )

    def _needed_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise LengthenError(
                "An endpoint does not count tokens: it needs the model's tokenizer.",
                fix="set `tokenizer` to the model's folder or Hub name",
            )
        return self.tokenizer

    @staticmethod
    def _run(work: Any) -> None:
        """Run a coroutine in a thread of its own: a notebook has a loop already, and loops do not nest."""
        failure: list[BaseException] = []

        def target() -> None:
            try:
                asyncio.run(work)
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]


@dataclass
class _Health:
    """Requests in a row that could not connect."""

    in_a_row: int = 0

    def broken(self, error: BaseException) -> None:
        import openai

        gone = isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)
        self.in_a_row = self.in_a_row + 1 if gone else 0


def by_beginning(requests: Sequence[Request]) -> list[Request]:
    """Requests of one `share` next to each other, in the order of each share's first request."""
    order: dict[str, int] = {}
    for at, request in enumerate(requests):
        order.setdefault(request.share or f"\0{at}", at)
    return [
        request for _, request in sorted(enumerate(requests), key=lambda p: (order[p[1].share or f"\0{p[0]}"], p[0]))
    ]


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
