"""Generation by an OpenAI-compatible endpoint: vLLM, SGLang, llama-server, transformers serve, or a paid service."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lengthen.common.errors import LengthenError, nearest
from lengthen.generate.engine import NO_ROOM, Answer, FinishReason, Request, failed
from lengthen.generate.listing import REFUSED, NoAnswer, key_of, list_models, said
from lengthen.generate.patience import Garbage, patient
from lengthen.generate.prompt import encode, render
from lengthen.generate.wire import EndpointOptions, Reply, Wire
from lengthen.models import load_tokenizer

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_BROKEN_IN_A_ROW = 10  # requests that could not even connect, after all their tries: the endpoint is gone
_TOO_LONG = re.compile(
    r"context[ _-](length|size|window)|maximum model length|max_model_len|reduce the length|tokens' is too large", re.I
)
"""How vLLM, SGLang, llama.cpp and paid services say that prompt and answer do not fit, in the body of a 400."""


class EndpointEngine:
    """A model behind an address.

    Args:
        base_url: such as `http://localhost:8000/v1`. model: its name there; empty when the endpoint has one model.
        tokenizer: folder or name of the model's tokenizer: for counting and for `/v1/completions`.

    Raises:
        LengthenError: the endpoint is not there, refuses the key, or has no such model.
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
        self._find_model()

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
            raise self._refused(error) or NoAnswer.at(self.base_url, error) from error

    async def _one(
        self, wire: Wire, request: Request, places: asyncio.Semaphore, health: _Health, found: queue.Queue[Any]
    ) -> None:
        began = time.monotonic()
        tries = 0

        async def send() -> Reply:
            nonlocal tries
            tries += 1
            return await wire.ask(request)

        try:
            reply = await self._tries(send, request)
        except LengthenError:
            raise
        except Exception as error:
            health.broken(error)
            found.put(failed(request, _why(error), time.monotonic() - began, tries))
            if health.in_a_row >= _BROKEN_IN_A_ROW:
                raise NoAnswer.at(self.base_url, error) from error
        else:
            health.in_a_row = 0
            found.put(self._answer(request, reply, time.monotonic() - began, tries))
        finally:
            places.release()

    async def _tries(self, send: Callable[[], Awaitable[Reply]], request: Request) -> Reply:
        """Send until an answer comes or the tries are used up.

        Raises:
            the last try's error; LengthenError when the endpoint refuses key, rights or model, which no try mends.
        """
        import openai

        options = self.options
        allowed = options.seconds + options.seconds_per_token * request.max_new_tokens
        try:
            return await patient(send, allowed, options.retries, options.backoff, timeouts=options.retry_timeouts)
        except openai.APIStatusError as error:
            refused = self._refused(error)
            if refused is not None:
                raise refused from error
            raise

    def _refused(self, error: BaseException) -> LengthenError | None:
        """What to say when key, rights or model are refused; None for any other error."""
        import openai

        if not isinstance(error, openai.APIStatusError) or error.status_code not in (*REFUSED, 404):
            return None
        return LengthenError(
            f"{self.base_url} refuses requests for the model '{self.model}' ({error.status_code}).",
            why=said(error),
            fix=f"check the model's name, and the key in the environment variable {self.options.key}",
        )

    def _answer(self, request: Request, reply: Reply, seconds: float, tries: int) -> Answer:
        ends = [at for s in request.stop if s and (at := reply.text.find(s)) >= 0]
        text = reply.text[: min(ends)] if ends else reply.text
        if reply.finish_reason not in ("stop", "length"):
            reason = f"finish_reason {reply.finish_reason}"
            return Answer(request.id, text, "error", reply.prompt_tokens, reply.new_tokens, seconds, reason, tries)
        ended: FinishReason = "stop" if ends or reply.finish_reason == "stop" else "length"
        return Answer(request.id, text, ended, reply.prompt_tokens, reply.new_tokens, seconds, tries=tries)

    def _find_model(self) -> None:
        names = [row.name for row in list_models(self.base_url, self.options.key) or []]
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
        key = key_of(self.options.key)
        return AsyncOpenAI(base_url=self.base_url, api_key=key, max_retries=0, timeout=86_400.0)

    def _needed_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise LengthenError(
                "An endpoint does not count tokens: it needs the model's tokenizer.",
                fix="set `tokenizer` to the model's folder or Hub name",
            )
        return self.tokenizer


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


def _why(error: BaseException) -> str:
    """An error as `Answer.error` has it."""
    import openai

    text = said(error)
    refused = isinstance(error, openai.APIStatusError) and error.status_code in (400, 413, 422)
    return f"{NO_ROOM}: {text}" if refused and _TOO_LONG.search(str(error)) else text
