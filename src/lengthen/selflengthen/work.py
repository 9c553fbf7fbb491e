"""What every task of the loop shares: settings, store, words, window; how a request is built; what a retry changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lengthen.common.seeds import derive_seed
from lengthen.generate.engine import Message, Request
from lengthen.recipe.stages.self_lengthen import Retry, Sampling, SelfLengthenStage
from lengthen.selflengthen.checks import Verdict
from lengthen.selflengthen.pipeline import Ask
from lengthen.selflengthen.store import Key, Outcome, Store
from lengthen.selflengthen.wording import Wording

TEMPLATE_TOKENS = 64
"""Allowance for the chat template around the messages: role marks, a default system prompt."""


@dataclass(frozen=True)
class Work:
    """window: tokens of prompt and answer together. count_tokens: by the model's tokenizer."""

    settings: SelfLengthenStage
    store: Store
    wordings: dict[str, Wording]
    seed: int
    window: int
    count_tokens: Callable[[str], int]

    def room(self, messages: Sequence[Message], prefix: str = "") -> int:
        """Tokens that are left for the answer; may be negative."""
        used = sum(self.count_tokens(message["content"]) for message in messages) + self.count_tokens(prefix)
        return self.window - used - TEMPLATE_TOKENS

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


def user(content: str, system: str | None = None) -> tuple[Message, ...]:
    """One user turn, with a system message where one is wanted."""
    turn = Message(role="user", content=content)
    return (Message(role="system", content=system), turn) if system else (turn,)


@dataclass
class Ladder:
    """The tries of one task. A rejection changes what the next try does; nothing is repeated blindly.

    Repetition raises the repetition penalty by `penalty_step` (three times at most). A cut answer gets twice the room
    when it was still writing, the higher penalty when it was circling, and only `cut_tries` more tries.
    """

    tries: int
    retry: Retry
    base: Sampling
    attempt: int = 0
    _cuts: int = 0
    _raised: int = 0
    _room: float = 1.0
    _stopped: bool = field(default=False)

    def more(self) -> bool:
        """Go to the next attempt, if there is one."""
        if self._stopped or self.attempt >= self.tries:
            return False
        self.attempt += 1
        return True

    @property
    def sampling(self) -> Sampling:
        penalty = self.base.repetition_penalty + self._raised * self.retry.penalty_step
        return self.base.model_copy(update={"repetition_penalty": round(penalty, 6)})

    def new_tokens(self, room: int) -> int:
        return max(1, min(int(self.base.max_new_tokens * self._room), room))

    def rejected(self, verdict: Verdict) -> None:
        circling = verdict.rule in ("loop", "repetition") or verdict.detail == "circling"
        if verdict.rule == "cut_by_limit" and self.retry.after_cut != "same":
            self._cuts += 1
            if self.retry.after_cut == "stop" or self._cuts > self.retry.cut_tries:
                self._stopped = True
            elif not circling:
                self._room *= 2
        if circling:
            self._raised = min(3, self._raised + 1)
