"""What an endpoint lists under `/v1/models`, and the two ways in which it may not let us in."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from lengthen.common.errors import LengthenError

REFUSED = (401, 403)
"""HTTP status of a key that is missing, wrong or without rights."""
_NO_LIST = (404, 405, 501)


class NoAnswer(LengthenError):
    """Nothing answers at the address."""

    @classmethod
    def at(cls, url: str, error: BaseException) -> NoAnswer:
        return cls(
            f"The endpoint {url} does not answer.",
            why=said(error),
            fix="check that the server runs and that the address ends in /v1, and run again: answers so far are kept",
        )


class KeyRefused(LengthenError):
    """Something answers, and does not take the key."""

    @classmethod
    def at(cls, url: str, key: str, status: int, why: str) -> KeyRefused:
        return cls(
            f"The endpoint {url} refuses the key ({status}).",
            why=f"{why}; the key comes from the environment variable {key}, "
            + ("which is set" if os.environ.get(key) else "which is not set"),
            fix=f"export {key}=... with a key of this endpoint, and run again: answers so far are kept",
        )


@dataclass(frozen=True)
class Listed:
    """A model of the list. root: what it was loaded from. parent: of an adapter, the model under it. window: most
    tokens of prompt and answer together. "" and 0: the server does not say (vLLM and SGLang do)."""

    name: str
    root: str = ""
    parent: str = ""
    window: int = 0


def key_of(variable: str) -> str:
    """The key in an environment variable; local servers take any."""
    return os.environ.get(variable) or "none"


def list_models(url: str, key: str, seconds: float = 60.0) -> list[Listed] | None:
    """The models of an endpoint; None where it has no list, as some servers.

    Args:
        key: name of the environment variable with the key.

    Raises:
        NoAnswer, KeyRefused: see there.
    """
    import openai

    with openai.OpenAI(base_url=url, api_key=key_of(key), max_retries=0, timeout=seconds) as client:
        for wait in (0.5, 2.0, 8.0, None):
            try:
                return [_listed(row) for row in client.models.list().data or []]
            except openai.APIStatusError as error:
                if error.status_code in REFUSED:
                    raise KeyRefused.at(url, key, error.status_code, said(error)) from error
                if error.status_code in _NO_LIST:
                    return None
                # A server in trouble for a moment is none without a list: its names and its window would be missed.
                if wait is None or (error.status_code < 500 and error.status_code not in (408, 429)):
                    raise NoAnswer.at(url, error) from error
                time.sleep(wait)
            except (openai.APIError, ValueError, TypeError, AttributeError) as error:
                raise NoAnswer.at(url, error) from error
    return None


def _listed(row: Any) -> Listed:
    more = row.model_extra or {}
    root, parent, window = (more.get(name) for name in ("root", "parent", "max_model_len"))
    return Listed(
        str(row.id),
        root if isinstance(root, str) else "",
        parent if isinstance(parent, str) else "",
        window if isinstance(window, int) and window > 0 else 0,
    )


def said(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
