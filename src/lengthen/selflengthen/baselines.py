"""Two ways to long texts without a loop, on the same engines, for comparison: plan-and-write and back-translation."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass, replace

from lengthen.common.errors import LengthenError
from lengthen.common.words import count_words, is_cjk
from lengthen.generate.engine import Answer
from lengthen.selflengthen.checks import Verdict, check, failure, meta_line, refusal
from lengthen.selflengthen.cuts import beginning
from lengthen.selflengthen.distinct import Pool
from lengthen.selflengthen.instruct import Filters
from lengthen.selflengthen.phases import Crew, filters_of, instruct
from lengthen.selflengthen.pipeline import Ask, Listed, Task
from lengthen.selflengthen.proposals import tidy
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.training import chat_row, fitting
from lengthen.selflengthen.wording import Wording, language_of, rows_of
from lengthen.selflengthen.work import Ladder, Work, user

MOST_LINES = 50
"""Longer plans are skipped (LongWriter, arXiv 2408.07055, published code)."""
MOST_TOKENS = 4096
"""A plan is written in so many tokens, or it goes round in circles."""
# The bar that the prompt asks for, else a dash between spaces: "well-known" is one word. Of "200-300 words" the upper.
_LINES = tuple(
    re.compile(
        rf"^\s*[*_-]*\s*\d+\s*[.)、．:：]\s*(?P<point>.+){bar}\D{{0,20}}?(?:\d[\d,]*\s*(?:[-–—~～至到]|to)\s*)?"
        r"(?P<words>\d[\d,]*)\s*(?:words?|字)?\W*$"
    )
    for bar in (r"\s*[|｜]\s*", r"\s[–—-]{1,2}\s")
)


@dataclass(frozen=True)
class Paragraph:
    """One line of a plan."""

    point: str
    words: int


_Planned = tuple[list[Paragraph], Verdict]


def parse_plan(text: str) -> list[Paragraph]:
    """The paragraphs of a plan, one from each line of the form `1. point | 300`; other lines are passed over."""
    lines = [line.replace("**", "") for line in text.splitlines()]
    found = [match for line in lines if (match := next(filter(None, (p.match(line) for p in _LINES)), None))]
    return [Paragraph(m["point"].strip(" |｜"), int(m["words"].replace(",", ""))) for m in found]


def plan_and_write(crew: Crew) -> None:
    """AgentWrite (arXiv 2408.07055): one call plans the paragraphs, one call writes each with the plan and the text so
    far. The rows (`final`) pair the bare instruction with the whole text."""
    work = crew.work
    instructions = instruct(crew, 1, work.settings.instruct.count)
    if work.store.begin(1, "plan-and-write"):
        tasks = (_planned(work, item, language, text) for item, (language, text) in instructions.items())
        traffic = crew.run(Listed.of(tasks), 0, ("base",), "plan and write", len(instructions))
        work.store.end(1, "plan-and-write", traffic.facts())
    rows = [
        chat_row(f"plan-{o.item}", instructions[o.item][1], o.text, "plan-and-write",
                 {"language": instructions[o.item][0], "words": o.words}, work.settings.respond.system)
        for o in work.store.outcomes(1, "planned")
        if o.text is not None
    ]  # fmt: skip
    work.store.set_rows("final", fitting(work, 1, "final", rows))


def _planned(work: Work, item: str, language: str, instruction: str) -> Task:
    settings, wording = work.settings, work.wordings[language]
    if work.store.outcome(1, "planned", item, 0) is not None:
        return
    ladder = Ladder(settings.respond.tries, settings.retry, settings.sampling)
    verdict = Verdict("bad_plan")
    while ladder.more():
        key = Key(1, "planned", item, 0, ladder.attempt)
        plan, verdict = yield from _plan(work, key, wording, instruction, ladder)
        if verdict.rule == "no_room":  # the prompt is the same in every try
            break
        text, whole = "", verdict
        for number, paragraph in enumerate(plan, 1):
            step = Key(*key.fields[:5], step=f"p{number:02}")
            slots = {
                "instruction": instruction, "text": text.strip(), "point": paragraph.point, "words": paragraph.words,
                "plan": "\n".join(f"{i}. {p.point} | {p.words}" for i, p in enumerate(plan, 1)),
            }  # fmt: skip
            messages = user(wording.render("write", slots))
            room = work.room(messages)
            if room < 2 * paragraph.words:
                verdict = work.judge(step, Verdict("no_room", f"{room} tokens left", count_words(text)))
                break
            answer = yield work.ask(step, "base", messages, ladder.sampling, ladder.new_tokens(room))
            # A failed call's error text must never enter the data: only checked paragraphs are joined. The text so far
            # is checked as well: a paragraph that says what an earlier one said is good by itself.
            verdict = check(answer, answer.text, settings.checks, wording)
            if verdict.accepted:
                text += answer.text.strip() + "\n\n"
                verdict = whole = check(answer, text.strip(), settings.checks, wording)
            if not work.judge(step, verdict).accepted:
                break
        else:
            if plan:
                work.finish(key, text.strip(), whole, None, {"paragraphs": len(plan)})
                return
        ladder.rejected(verdict)
    work.finish(Key(1, "planned", item), None, verdict, None, {"rule": verdict.rule})


def _plan(work: Work, key: Key, wording: Wording, instruction: str, ladder: Ladder) -> Generator[Ask, Answer, _Planned]:
    """The plan of one try: (paragraphs, verdict); no paragraphs when the plan cannot be used."""
    messages = user(wording.render("plan", {"instruction": instruction}))
    room = work.room(messages)
    if room < 64:
        return [], work.judge(key, Verdict("no_room", f"{room} tokens left"))
    answer = yield work.ask(key, "base", messages, ladder.sampling, ladder.new_tokens(min(MOST_TOKENS, room)))
    if answer.finish_reason == "length" or failure(answer) is not None:
        return [], work.judge(key, check(answer, answer.text, work.settings.checks, wording))
    plan = parse_plan(answer.text)
    if not 0 < len(plan) <= MOST_LINES:
        return [], work.judge(key, Verdict("bad_plan", f"{len(plan)} lines: {answer.text[:120]}"))
    return plan, work.judge(key, Verdict("", "", count_words(answer.text)))


def back_translation(crew: Crew) -> None:
    """Instructions written for long human texts: the model reads a text (or as much of its beginning as fits) and
    says which request it would answer. The rows (`final`) pair that request with the human text; requests near to an
    evaluation prompt or to an earlier request are left out and counted."""
    work = crew.work
    texts = documents(work)
    filters = filters_of(work, 1, {})
    if work.store.begin(1, "back-translation"):
        tasks = (_translated(work, item, language, text, filters) for item, (language, text) in texts.items())
        traffic = crew.run(Listed.of(tasks), 0, ("base",), "back-translation", len(texts))
        work.store.end(1, "back-translation", traffic.facts())
    rows = [
        chat_row(f"human-{item}", request, texts[item][1], "back-translation",
                 {"language": texts[item][0], "words": count_words(texts[item][1])}, work.settings.respond.system)
        for item, request in distinct_requests(work, filters).items()
    ]  # fmt: skip
    work.store.set_rows("final", fitting(work, 1, "final", rows))


def distinct_requests(work: Work, filters: Filters) -> dict[str, str]:
    """item -> request of every text that got one, without near-duplicates. Told in the order of the texts when all are
    there, so that the order of arrival decides nothing."""
    found: dict[str, str] = {}
    new = replace(filters, there=Pool(filters.there.threshold))
    for outcome in work.store.outcomes(1, "translated"):
        if outcome.text is None:
            continue
        if work.judge(Key(1, "translated", outcome.item, step="new"), new.verdict(outcome.text)).accepted:
            new.accept(outcome.text)
            found[outcome.item] = outcome.text
    return found


def documents(work: Work) -> dict[str, tuple[str, str]]:
    """(language, text) of the first `instruct.count` documents of `texts` in a language of the run; the others are
    counted."""
    path = work.settings.texts or ""
    found: dict[str, tuple[str, str]] = {}
    left_out: list[tuple[Key, Verdict]] = []
    for number, row in enumerate(rows_of(path, "texts"), 1):
        text = row.get("text") or row.get("instruction")
        if not isinstance(text, str) or not text.strip():
            raise LengthenError(f"{path}, row {number} has no `text`.", fix='write rows such as {"text": "..."}')
        language, key = language_of(text), Key(0, "texts", f"t{number:06}")
        if language is None or language not in work.wordings:
            left_out.append((key, Verdict("other_language", text.strip()[:120])))
        elif len(found) == work.settings.instruct.count:
            left_out.append((key, Verdict("beyond_count", text.strip()[:120])))
        else:
            found[key.item] = (language, text.strip())
    with work.store.together():
        for key, verdict in left_out:
            work.judge(key, verdict)
    if not found:
        raise LengthenError(
            f"texts: {path} holds no document in {', '.join(work.wordings)}.",
            fix="give another file, or add their language to `languages`",
        )
    return found


def _translated(work: Work, item: str, language: str, text: str, filters: Filters) -> Task:
    settings, wording = work.settings.instruct, work.wordings[language]
    if work.store.outcome(1, "translated", item, 0) is not None:
        return
    excerpt = _fitting_beginning(work, wording.render("backtranslate", {"text": ""}), text)
    verdict = Verdict("no_room", "not one sentence fits")
    for attempt in range(1, settings.tries + 1):
        key = Key(1, "translated", item, 0, attempt)
        if not excerpt:
            work.judge(key, verdict)
            break
        messages = user(wording.render("backtranslate", {"text": excerpt}))
        answer = yield work.ask(key, "base", messages, work.settings.sampling, 256)
        said = request_of(answer.text, wording)
        verdict = work.judge(key, _request_verdict(work, answer, said, wording, filters))
        if verdict.accepted:
            work.finish(key, said, verdict, None, {})
            return
        if verdict.rule == "no_room":  # the server's word, and the same in every try
            break
    work.finish(Key(1, "translated", item), None, verdict, None, {"rule": verdict.rule})


def request_of(answer: str, wording: Wording) -> str:
    """The request alone, without a line before it that announces it, labels, quotes and emphasis."""
    head, _, rest = answer.strip().partition("\n")
    return tidy(rest if rest.strip() and meta_line(head, wording) else answer, wording)


def _request_verdict(work: Work, answer: Answer, said: str, wording: Wording, filters: Filters) -> Verdict:
    checks, words = work.settings.checks, count_words(said)
    if (failed := failure(answer)) is not None:
        return failed
    if answer.finish_reason == "length":
        return Verdict("cut_by_limit", said[:120], words)
    if checks.refusals and (declined := refusal(said, words, wording)):
        return Verdict("refusal", declined, words)
    if checks.meta and (talk := meta_line(said, wording)):
        return Verdict("meta", talk, words)
    if checks.language and words and is_cjk(said) != (wording.language == "zh"):
        return Verdict("language", said[:120], words)
    return filters.alone(said)


def _fitting_beginning(work: Work, prompt: str, text: str) -> str:
    """As much of the text's beginning, cut at an edge, as the window holds beside prompt and answer."""
    room = work.window - work.count_tokens(prompt) - 256 - work.template_tokens
    while text and work.count_tokens(text) > room:
        start = beginning(text, max(0.05, min(0.9, 0.9 * room / max(1, work.count_tokens(text)))))
        text = start.text if start is not None and len(start.text) < len(text) else ""
    return text
