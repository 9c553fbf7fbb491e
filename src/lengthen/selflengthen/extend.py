"""Two-stage extension (arXiv 2410.23933): half of a text is written out, the beginning of that is kept, and the whole
text is written out from this beginning. Several rounds, then the result must have grown."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from lengthen.common.seeds import named_random
from lengthen.common.words import count_words, sentence_spans
from lengthen.generate.engine import Answer, Message
from lengthen.selflengthen.checks import Verdict, check
from lengthen.selflengthen.cuts import beginning, join
from lengthen.selflengthen.pipeline import Ask, Task
from lengthen.selflengthen.respond import LEAST_ROOM
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.work import Ladder, Work, user

ROLE = "extension"


@dataclass(frozen=True)
class Round:
    """End of one micro-iteration. text: the longer text, or None. step: the stage that the verdict is about. asked:
    whether anything was; without that the verdict follows from the text alone, and another try would end the same."""

    text: str | None
    verdict: Verdict
    step: str
    asked: bool = True


def extend(work: Work, iteration: int, item: str, language: str, instruction: str, response: str, sample: int) -> Task:
    """Extend one response; the end is an outcome of the role `extension`.

    A try runs `extend.rounds` rounds. A round that fails leaves the text as it was, and the next one starts from it
    again; a text is accepted when it has more than `extend.growth` times the response's words. A response that cannot
    be extended at all (no_edge, no_room) is judged once.
    """
    settings = work.settings
    if work.store.outcome(iteration, ROLE, item, sample) is not None:
        return
    ladder = Ladder(settings.extend.tries, settings.retry, settings.sampling)
    first = count_words(response)
    verdict = Verdict("no_growth")
    key = Key(iteration, ROLE, item, sample)
    while ladder.more():
        text, rounds = response, []
        key = Key(iteration, ROLE, item, sample, ladder.attempt)
        reached = Verdict("no_growth", "1.00 times", first, first)
        for number in range(1, settings.extend.rounds + 1):
            done = yield from _round(work, key, number, language, instruction, text, ladder)
            if done.text is not None:
                ladder.accepted()
                text, reached = done.text, done.verdict
                rounds.append(reached.words)
                continue
            if not done.asked and not rounds:
                info = {"tries": ladder.attempt, "from_words": first, "rule": done.verdict.rule}
                work.finish(key, None, done.verdict, None, info)
                return
            ladder.rejected(done.verdict, done.step)
            if ladder.stopped or not done.asked:
                break
        if reached.words > settings.extend.growth * first:
            work.judge(key, reached)
            info = {"tries": ladder.attempt, "from_words": first, "rounds": rounds}
            work.finish(key, text, reached, None, info)
            return
        detail = f"{reached.words / max(1, first):.2f} times"
        verdict = work.judge(key, Verdict("no_growth", detail, reached.words, reached.clean_words))
    work.finish(key, None, verdict, None, {"tries": ladder.attempt, "from_words": first, "rule": verdict.rule})


def _round(
    work: Work, key: Key, number: int, language: str, instruction: str, text: str, ladder: Ladder
) -> Generator[Ask, Answer, Round]:
    """One micro-iteration; both stages' verdicts are stored."""
    settings, wording = work.settings, work.wordings[language]
    one, two = (Key(*key.fields[:5], step=f"{number}{stage}") for stage in "ab")

    def refused(step: Key, verdict: Verdict, *, asked: bool = True) -> Round:
        return Round(None, work.judge(step, verdict), step.step, asked)

    half = beginning(text, settings.extend.half)
    if half is None:
        return refused(one, Verdict("no_edge", text[:80], count_words(text)), asked=False)
    # --- stage one: the first half alone. Whether stage two has room is known before it, too
    messages = user(wording.render("extend", {"instruction": instruction, "outline": half.text}))
    whole = user(wording.render("extend", {"instruction": instruction, "outline": text}))
    room = _room(work, messages, half.text, ladder)
    if room is None:
        return refused(one, Verdict("no_room", f"{work.room(messages)} tokens left", half.words), asked=False)
    if _room(work, whole, text, ladder) is None:
        left = f"{work.room(whole)} tokens left"
        return refused(two, Verdict("no_room", left, count_words(text)), asked=False)
    answer = yield work.ask(one, "extender", messages, ladder.sampling, ladder.new_tokens(room))
    # Its end is thrown away, so it need not end well; all other rules hold.
    lenient = settings.checks.model_copy(update={"sentence_end": False})
    verdict = check(answer, answer.text, lenient, wording)
    start = beginning(answer.text.strip(), settings.extend.keep) if verdict.accepted else None
    if verdict.accepted and start is None:
        verdict = Verdict("no_edge", answer.text[:80], verdict.words, verdict.clean_words)
    if start is None:
        return refused(one, verdict)
    work.judge(one, verdict)
    # --- stage two: the whole text, from the kept beginning
    room = work.room(whole, start.text, enough=max(LEAST_ROOM, ladder.wanted))
    if room < LEAST_ROOM:
        return refused(two, Verdict("no_room", f"{room} tokens left", count_words(text)))
    answer = yield work.ask(two, "extender", whole, ladder.sampling, ladder.new_tokens(room), prefix=start.text)
    longer = join(start, answer.text).strip()
    verdict = check(answer, longer, settings.checks, wording)
    if verdict.accepted and verdict.words <= count_words(text):
        verdict = Verdict("not_longer", f"{verdict.words} words", verdict.words, verdict.clean_words)
    if not verdict.accepted:
        return refused(two, verdict)
    return Round(longer, work.judge(two, verdict), two.step)


def _room(work: Work, messages: Sequence[Message], outline: str, ladder: Ladder) -> int | None:
    """Tokens for the answer, or None when they would not even hold the outline again."""
    most = work.most_tokens(outline)
    room = work.room(messages, enough=max(most + 1, ladder.wanted))
    return room if room > most or room > work.count_tokens(outline) else None


def damaged(text: str, keep: float, seed: int) -> str:
    """A response of which each line stays with probability `keep`: the Extender's outline in training. At least one
    line stays, and of a text without line breaks the sentences are drawn (ours: a single line would always be whole
    or gone)."""
    lines = [line for line in text.split("\n") if line.strip()]
    pieces = lines if len(lines) > 1 else [text[a:b] for a, b in sentence_spans(text)]
    random = named_random(seed, "damage")
    left = [piece for piece in pieces if random.random() < keep] or pieces[:1]
    return ("\n\n" if len(lines) > 1 else "").join(left).strip()
