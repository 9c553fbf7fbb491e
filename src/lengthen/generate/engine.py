"""What every generation back-end takes and gives: requests in, answers out as they finish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Request:
    """One text to write.

    messages: a chat, rendered with the model's template; or `text`: a prompt that is rendered already and is tokenised
        as it stands, without special tokens being added. Exactly one of the two.
    prefix: beginning of the assistant's answer; the model continues it, and it is not part of the output.
    temperature: 0 is greedy. top_k 0 and top_p 1 switch these off.
    seed: of this request's draws; the output does not depend on what else is in the batch (in exact arithmetic).
    stop: the answer ends before the first of these strings.
    share: requests with an equal value probably have a long beginning in common.
    """

    id: str
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    prefix: str = ""
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    share: str | None = None

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.text is None):
            raise ValueError(f"request {self.id}: give messages or text, not both and not neither")
        if self.max_new_tokens < 1:
            raise ValueError(f"request {self.id}: max_new_tokens must be at least 1, not {self.max_new_tokens}")


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    finish_reason: stop (end token or a stop string), length (max_new_tokens), error (`error` says why; `text` is empty
        or what there was until then).
    prompt_tokens, new_tokens: as the back-end counts them. seconds: from the request's start to its end.
    tries: how often it went out to an endpoint.
    """

    id: str
    text: str
    finish_reason: FinishReason
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    error: str | None = None
    tries: int = 1

    @property
    def final(self) -> bool:
        """No further try brings another one: it is an answer, or the server's window does not hold the request."""
        return self.finish_reason != "error" or (self.error or "").startswith(NO_ROOM)


NO_ROOM = "no room"
"""How `Answer.error` begins when an endpoint says that prompt and answer are more than its window holds."""

OUT_OF_MEMORY = "out of memory"
"""How `Answer.error` begins when one prompt alone does not fit into memory."""


class Engine(Protocol):
    """A back-end. `generate` may be called any number of times; answers come in the order in which they finish."""

    @property
    def name(self) -> str: ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Answer]: ...

    def count_tokens(self, text: str) -> int: ...

    def render(self, request: Request) -> str:
        """The text that the model reads, chat template and prefix included."""
        ...

    def close(self) -> None: ...


def failed(request: Request, error: str, seconds: float = 0.0, tries: int = 1) -> Answer:
    """The answer to a request that could not be answered."""
    return Answer(request.id, "", "error", seconds=seconds, error=error, tries=tries)
