"""Making prompts of an honest length: never longer than asked, less than one unit shorter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.evaluate.counting import Counter, Frame


@dataclass(frozen=True)
class Draft:
    """One question, ready to be asked.

    user: the user message. prefix: the beginning of the answer, placed after the chat template.
    refs: expected answers. context: samples with equal `context` share their long beginning (bootstrap unit).
    depth: place of what is asked for, 0..1 of the context. tokens: prompt tokens, filled in by `make`.
    """

    user: str
    prefix: str
    refs: tuple[str, ...]
    new_tokens: int
    context: str
    depth: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0


class Plan(Protocol):
    """All random choices of one context, for any number of units."""

    least: int
    most: int

    def tokens(self, units: int) -> int:
        """Tokens of the longest prompt with so many units, from the parts' counts; rises with `units`."""
        ...

    def build(self, units: int) -> list[Draft]: ...


class Maker(Protocol):
    """A task at one length. `proven`: its parts provably add up, so that `Plan.tokens` is exact."""

    frame: Frame
    counter: Counter
    proven: bool
    short_of: str

    def plan(self, index: int) -> Plan: ...


class TooShort(LengthenError):
    """A task cannot be made this long (its words or passages ended) or this short."""


def largest(plan: Plan, limit: int) -> int:
    """The largest number of units whose prompt, by the parts' counts, has at most `limit` tokens."""
    low, high = plan.least, plan.most
    while low < high:
        middle = (low + high + 1) // 2
        if plan.tokens(middle) <= limit:
            low = middle
        else:
            high = middle - 1
    return low


def make(maker: Maker, indices: range, length: int, new_tokens: int) -> Iterator[list[Draft]]:
    """Drafts of each index: prompts of at most `length - new_tokens` tokens and less than one unit short of it.

    With proven parts the first and the last prompt are counted in full as well; if either differed, all are. (Both in
    one call, for two cores: a full count takes longer than making several prompts.)

    Raises:
        TooShort: the task has not enough material for this length, or does not fit into it.
    """
    limit = length - new_tokens
    if maker.proven and len(indices):
        ends = [_by_parts(maker, i, limit, length)[0] for i in sorted({indices[0], indices[-1]})]
        counts = maker.counter.counts([maker.frame.text(d.user, d.prefix) for d in ends]) + maker.frame.added
        maker.proven = [d.tokens for d in ends] == counts.tolist()
    for index in indices:
        yield _by_parts(maker, index, limit, length) if maker.proven else _by_whole(maker, index, limit, length)


def whole(maker: Maker, draft: Draft) -> int:
    """Tokens of a prompt, counted in full."""
    return maker.counter.count(maker.frame.text(draft.user, draft.prefix)) + maker.frame.added


def _planned(maker: Maker, index: int) -> Plan:
    plan = maker.plan(index)
    if plan.most < plan.least:
        raise TooShort(
            f"{maker.short_of} ended: there are {plan.most}, and {plan.least} are needed at least.",
            fix="give more material, or leave this task out",
        )
    return plan


def _by_parts(maker: Maker, index: int, limit: int, length: int) -> list[Draft]:
    plan = _planned(maker, index)
    units = largest(plan, limit)
    tokens = plan.tokens(units)
    _check(maker, plan, units, tokens, limit, length)
    drafts = plan.build(units)
    if len(drafts) == 1:
        return [_counted(drafts[0], tokens)]
    # Questions over one context differ a little in length.
    return [_counted(d, whole(maker, d)) for d in drafts]


def _by_whole(maker: Maker, index: int, limit: int, length: int) -> list[Draft]:
    plan = _planned(maker, index)
    memo: dict[int, tuple[int, list[Draft]]] = {}

    def measure(units: int) -> int:
        if units not in memo:
            drafts = [_counted(d, whole(maker, d)) for d in plan.build(units)]
            memo[units] = max(d.tokens for d in drafts), drafts
        return memo[units][0]

    units = largest(plan, limit)
    low, high = plan.least - 1, plan.most + 1  # measured: fits at `low`, does not at `high`
    while high - low > 1:
        units = int(np.clip(units, low + 1, high - 1))
        tokens = measure(units)
        if tokens <= limit:
            low = units
        else:
            high = units
        # The parts' counts are nearly right, so the next guess is off by a few units at most.
        step = max(1, round(abs(limit - tokens) / max(1.0, _unit(plan, units))))
        units = low + step if tokens <= limit else high - step
    if low < plan.least:
        _check(maker, plan, plan.least, measure(plan.least), limit, length)
    _check(maker, plan, low, measure(low), limit, length)
    return memo[low][1]


def _unit(plan: Plan, units: int) -> float:
    return float(plan.tokens(min(units + 1, plan.most)) - plan.tokens(min(units, plan.most - 1)))


def _check(maker: Maker, plan: Plan, units: int, tokens: int, limit: int, length: int) -> None:
    if tokens > limit:
        raise TooShort(
            f"A prompt of {length:,} tokens is too short for this task: its smallest one takes "
            f"{tokens + length - limit:,} with the room for the answer.",
            fix="ask for a greater length",
        )
    if units == plan.most and tokens < 0.98 * limit and limit - tokens > _unit(plan, units):
        raise TooShort(
            f"{maker.short_of} ended at {tokens:,} of {limit:,} tokens.",
            why="a prompt is never shortened in silence",
            fix="give more material, or leave this length out",
        )


def _counted(draft: Draft, tokens: int) -> Draft:
    from dataclasses import replace

    return replace(draft, tokens=tokens)
