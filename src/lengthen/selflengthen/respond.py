"""First answers: the bare instruction, sampled until one passes the checks."""

from __future__ import annotations

from lengthen.selflengthen.checks import Verdict, check
from lengthen.selflengthen.pipeline import Task
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.work import Ladder, Work, user

LEAST_ROOM = 256
"""With fewer tokens left for an answer there is no use in asking."""


def respond(
    work: Work,
    iteration: int,
    item: str,
    language: str,
    instruction: str,
    sample: int,
    *,
    role: str = "response",
    engine: str = "generator",
    tries: int | None = None,
) -> Task:
    """Ask the Generator for one text. Its end is an outcome of `role`, with text None when every try failed.

    Args:
        tries: at most so many; default `respond.tries`.
    """
    settings = work.settings
    if work.store.outcome(iteration, role, item, sample) is not None:
        return
    ladder = Ladder(tries or settings.respond.tries, settings.retry, settings.sampling)
    messages = user(instruction, settings.respond.system)
    room = work.room(messages, enough=max(LEAST_ROOM, ladder.wanted))
    verdict = Verdict("no_room", f"{room} tokens left")
    key = Key(iteration, role, item, sample)
    while room >= LEAST_ROOM and ladder.more():
        key = Key(iteration, role, item, sample, ladder.attempt)
        if ladder.wanted > room:  # a cut answer asks for more
            room = work.room(messages, enough=ladder.wanted)
        answer = yield work.ask(key, engine, messages, ladder.sampling, ladder.new_tokens(room))
        verdict = work.judge(key, check(answer, answer.text, settings.checks, work.wordings[language]))
        if verdict.accepted:
            work.finish(key, answer.text.strip(), verdict, None, {"tries": ladder.attempt})
            return
        ladder.rejected(verdict)
    if room < LEAST_ROOM:
        work.judge(key, verdict)
    work.finish(key, None, verdict, None, {"tries": ladder.attempt, "rule": verdict.rule})
