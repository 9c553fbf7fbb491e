"""What every task of the loop shares: settings, store, words, window; how a request is built; what a retry changes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lengthen.common.seeds import derive_seed
from lengthen.generate.engine import NO_ROOM, Message, Request
from lengthen.generate.prompt import encode, render
from lengthen.recipe.stages.self_lengthen import Retry, Sampling, SelfLengthenStage
from lengthen.selflengthen.checks import Verdict
from lengthen.selflengthen.pipeline import Ask
from lengthen.selflengthen.store import Key, Outcome, Store
from lengthen.selflengthen.wording import Wording

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPLATE_TOKENS = 64
"""Allowance for the chat template around the messages (role marks, a system prompt), where it is not measured."""
_EDGES = 8
"""Tokens that more there may be where a text and its marks meet."""


@dataclass
class Work:
    """window: tokens of prompt and answer together. count_tokens: by the model's tokenizer. bytes_bound: no text has
    more tokens than bytes, as with byte-level tokenizers. template_tokens: what the chat template adds."""

    settings: SelfLengthenStage
    store: Store
    wordings: dict[str, Wording]
    seed: int
    window: int
    count_tokens: Callable[[str], int]
    bytes_bound: bool = False
    template_tokens: int = TEMPLATE_TOKENS

    def narrow(self, window: int) -> str | None:
        """Take over the window of a server, where it is the smaller one (0: it does not say). Returns a note then."""
        if not 0 < window < self.window:
            return None
        before, self.window = self.window, window
        return f"The server takes {window:,} tokens of prompt and answer together: the window is that, not {before:,}."

    def room(self, messages: Sequence[Message], prefix: str = "", *, enough: int | None = None) -> int:
        """Tokens that are left for the answer; may be negative.

        Args:
            enough: any number from here on says the same to the caller. Nothing is tokenised then where the bytes
                alone show that there is so much room, and the result is a smaller one, but at least `enough`.
        """
        texts = [*(message["content"] for message in messages), prefix]
        if enough is not None and self.bytes_bound:
            sure = self.window - sum(map(byte_count, texts)) - self.template_tokens
            if sure >= enough:
                return sure
        return self.window - sum(map(self.count_tokens, texts)) - self.template_tokens

    def most_tokens(self, text: str) -> int:
        """Tokens that a text has at most: its bytes where they are a bound, else its tokens."""
        return byte_count(text) if self.bytes_bound else self.count_tokens(text)

    def ask(
        self,
        key: Key,
        engine: str,
        messages: Sequence[Message],
        sampling: Sampling,
        max_new_tokens: int,
        prefix: str = "",
        share: str | None = None,
    ) -> Ask:
        """A request under its key; its seed follows from the key, so that another try draws anew."""
        request = Request(
            id=str(key),
            messages=tuple(messages),
            text=None,
            prefix=prefix,
            max_new_tokens=max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            stop=sampling.stop,
            seed=derive_seed(self.seed, *key.fields) % 2**31,
            share=share,
        )
        return Ask(key, engine, request)

    def judge(self, key: Key, verdict: Verdict) -> Verdict:
        """Store a verdict and hand it on."""
        self.store.verdict(key, verdict.rule, verdict.detail, verdict.words, verdict.clean_words)
        return verdict

    def finish(self, key: Key, text: str | None, verdict: Verdict, kept: bool | None, info: dict) -> None:
        """Store the end of a task."""
        self.store.finish(
            Outcome(key.iteration, key.role, key.item, key.sample, text, verdict.words, verdict.clean_words, kept, info)
        )


def template_tokens(tokenizer: PreTrainedTokenizerFast, options: Mapping[str, Any]) -> int:
    """Tokens that the chat template puts around a system message and a user's: those of an empty chat. It may have a
    system prompt of its own, which a given one replaces, and may know no system messages: the longer chat counts."""
    from jinja2 import TemplateError

    sizes = []
    for roles in (("user",), ("system", "user")):
        empty = Request("empty", messages=tuple(Message(role=role, content="") for role in roles))
        with contextlib.suppress(TemplateError):
            sizes.append(len(encode(tokenizer, render(tokenizer, empty, options))))
    return max(sizes) + _EDGES if sizes else TEMPLATE_TOKENS


def byte_count(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def tokens_are_bytes(tokenizer: Any) -> bool:
    """Whether a tokenizer provably makes at least one byte into each token, so that bytes are a bound of tokens: a
    byte-level one that changes no text before it cuts it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    spec = json.loads(backend.to_str())
    pre = spec.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    added = any(step.get("add_prefix_space") for step in steps)
    return not spec.get("normalizer") and any(step.get("type") == "ByteLevel" for step in steps) and not added


def user(content: str, system: str | None = None) -> tuple[Message, ...]:
    """One user turn, with a system message where one is wanted."""
    turn = Message(role="user", content=content)
    return (Message(role="system", content=system), turn) if system else (turn,)


@dataclass
class Ladder:
    """The tries of one task. A rejection changes what the next try does; nothing is repeated blindly.

    Repetition raises the repetition penalty by `penalty_step` (three times at most). A cut answer gets twice the room
    when it was still writing, the higher penalty when it was circling, and only `cut_tries` more tries; one that was
    still writing with all the room of the window gets none. Cuts are counted by step (a round's stage), and anew when
    a round was accepted, so that two cuts in different places do not end a whole extension.
    """

    tries: int
    retry: Retry
    base: Sampling
    attempt: int = 0
    _cuts: dict[str, int] = field(default_factory=dict)
    _raised: int = 0
    _room: float = 1.0
    _filled: bool = False
    stopped: bool = False

    def more(self) -> bool:
        """Go to the next attempt, if there is one."""
        if self.stopped or self.attempt >= self.tries:
            return False
        self.attempt += 1
        return True

    @property
    def sampling(self) -> Sampling:
        penalty = self.base.repetition_penalty + self._raised * self.retry.penalty_step
        return self.base.model_copy(update={"repetition_penalty": round(penalty, 6)})

    @property
    def wanted(self) -> int:
        """Tokens that the next try asks for, where there is room."""
        return int(self.base.max_new_tokens * self._room)

    def new_tokens(self, room: int) -> int:
        self._filled = self.wanted > room
        return max(1, min(self.wanted, room))

    def rejected(self, verdict: Verdict, step: str = "") -> None:
        """Change the next try. step: which of the requests of a try was refused."""
        if verdict.detail.startswith(NO_ROOM):
            self.stopped = True  # the server's own word; its window does not grow
        circling = verdict.rule in ("loop", "repetition") or verdict.detail == "circling"
        if verdict.rule == "cut_by_limit" and self.retry.after_cut != "same":
            self._cuts[step] = self._cuts.get(step, 0) + 1
            no_room = self._filled and not circling
            if self.retry.after_cut == "stop" or self._cuts[step] > self.retry.cut_tries or no_room:
                self.stopped = True
            elif not circling:
                self._room *= 2
        if circling:
            self._raised = min(3, self._raised + 1)

    def accepted(self) -> None:
        """A round gave a longer text: what comes now is another task."""
        self._cuts.clear()
