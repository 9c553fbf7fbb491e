"""Calls to an endpoint that may fail: what is worth another try, and how long to wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

_RETRIED = (408, 409, 425, 429)
_SLOW = (408, 504)
"""A server, or a gateway before it, gave up waiting for the answer."""
T = TypeVar("T")


class Garbage(Exception):
    """An answer that is no answer: not JSON, no choice, a choice without text. Worth another try."""


async def patient(
    call: Callable[[], Awaitable[T]], seconds: float, retries: int, backoff: float, *, timeouts: bool = True
) -> T:
    """Call until an answer comes, at most `retries` times more, each try at most `seconds` long.

    Args:
        timeouts: a time-out is worth another try. False: it ends the call, since a try that may last hours must not
            last them again before anyone hears of it.

    Raises:
        the last try's error: one of the endpoint, Garbage or TimeoutError.
    """
    import tenacity

    doubling = tenacity.wait_random_exponential(multiplier=0.25, max=backoff)

    def wait(state: tenacity.RetryCallState) -> float:
        asked_for = _retry_after(state.outcome.exception() if state.outcome is not None else None)
        return min(asked_for, 10 * backoff) if asked_for is not None else doubling(state)

    async def once() -> T:
        try:
            async with asyncio.timeout(seconds):
                return await call()
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {seconds:g} s") from error
        except ValueError as error:  # JSON that is none, or not of this protocol
            raise Garbage(f"an answer that is not JSON ({error})") from error

    tries = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(retries + 1),
        wait=wait,
        retry=tenacity.retry_if_exception(lambda error: _worth_another_try(error) and (timeouts or not _slow(error))),
        reraise=True,
    )
    return await tries(once)


def _worth_another_try(error: BaseException) -> bool:
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in _RETRIED or error.status_code >= 500
    return isinstance(error, Garbage | TimeoutError | openai.APIConnectionError | openai.APIResponseValidationError)


def _slow(error: BaseException) -> bool:
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in _SLOW
    return isinstance(error, TimeoutError | openai.APITimeoutError)


def _retry_after(error: BaseException | None) -> float | None:
    response = getattr(error, "response", None)
    value = response.headers.get("retry-after") if response is not None else None
    try:
        return float(value) if value is not None else None
    except ValueError:
        return None
