"""Two ways to long texts without a loop, on the same engines, for comparison: plan-and-write and back-translation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lengthen.common.errors import LengthenError
from lengthen.common.words import count_words, is_cjk
from lengthen.selflengthen.checks import Verdict, check
from lengthen.selflengthen.cuts import beginning
from lengthen.selflengthen.phases import Crew, instruct
from lengthen.selflengthen.pipeline import Listed, Task
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.training import chat_row, fitting
from lengthen.selflengthen.wording import rows_of
from lengthen.selflengthen.work import Ladder, Work, user

MOST_LINES = 50
"""Longer plans are skipped (LongWriter, arXiv 2408.07055, published code)."""
_LINE = re.compile(
    r"^\s*[*_-]*\s*\d+\s*[.)、．:：]\s*(?P<point>.+?)\s*[|｜–—-]\s*\D{0,20}(?P<words>\d[\d,]*)\s*(?:words|字)?\W*$"
)


@dataclass(frozen=True)
class Paragraph:
    """One line of a plan."""

    point: str
    words: int


def parse_plan(text: str) -> list[Paragraph]:
    """The paragraphs of a plan, one from each line of the form `1. point | 300`; other lines are passed over."""
    found = [match for line in text.splitlines() if (match := _LINE.match(line.replace("**", "")))]
    return [Paragraph(m["point"].strip(" |｜"), int(m["words"].replace(",", ""))) for m in found]


def plan_and_write(crew: Crew) -> None:
    """AgentWrite (arXiv 2408.07055): one call plans the paragraphs, one call writes each with the plan and the text so
    far. The rows (`final`) pair the bare instruction with the whole text."""
    work = crew.work
    instructions = instruct(crew, 1, work.settings.instruct.count)
    if work.store.begin(1, "plan-and-write"):
        tasks = (_planned(work, item, language, text) for item, (language, text) in instructions.items())
        crew.run(Listed.of(tasks), 0, ("base",), "plan and write", len(instructions))
        work.store.end(1, "plan-and-write", {})
    rows = [
        chat_row(f"plan-{o.item}", instructions[o.item][1], o.text, "plan-and-write",
                 {"language": instructions[o.item][0], "words": o.words})
        for o in work.store.outcomes(1, "planned")
        if o.text is not None
    ]  # fmt: skip
    for row in fitting(work, 1, "final", rows):
        work.store.add_row("final", row)


def _planned(work: Work, item: str, language: str, instruction: str) -> Task:
    settings, wording = work.settings, work.wordings[language]
    if work.store.outcome(1, "planned", item, 0) is not None:
        return
    ladder = Ladder(settings.respond.tries, settings.retry, settings.sampling)
    verdict = Verdict("bad_plan")
    while ladder.more():
        key = Key(1, "planned", item, 0, ladder.attempt)
        plan, verdict = yield from _plan(work, key, wording, instruction, ladder)
        text = ""
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
            # A failed call's error text must never enter the data: only checked paragraphs are joined.
            verdict = work.judge(step, check(answer, answer.text, settings.checks, wording))
            if not verdict.accepted:
                break
            text += answer.text.strip() + "\n\n"
        else:
            if plan:
                whole = count_words(text)
                work.finish(key, text.strip(), Verdict("", "", whole, whole), None, {"paragraphs": len(plan)})
                return
        ladder.rejected(verdict)
    work.finish(Key(1, "planned", item), None, verdict, None, {"rule": verdict.rule})


def _plan(work: Work, key: Key, wording, instruction: str, ladder: Ladder):
    """The plan of one try: (paragraphs, verdict); no paragraphs when the plan cannot be used."""
    messages = user(wording.render("plan", {"instruction": instruction}))
    room = work.room(messages)
    if room < 64:
        return [], work.judge(key, Verdict("no_room", f"{room} tokens left"))
    answer = yield work.ask(key, "base", messages, ladder.sampling, min(4096, ladder.new_tokens(room)))
    if answer.finish_reason == "error":
        return [], work.judge(key, Verdict("endpoint_error", (answer.error or "")[:300]))
    plan = parse_plan(answer.text)
    if answer.finish_reason == "length":
        return [], work.judge(key, Verdict("cut_by_limit", f"{len(plan)} lines", count_words(answer.text)))
    if not 0 < len(plan) <= MOST_LINES:
        return [], work.judge(key, Verdict("bad_plan", f"{len(plan)} lines: {answer.text[:120]}"))
    return plan, work.judge(key, Verdict("", "", count_words(answer.text)))


def back_translation(crew: Crew) -> None:
    """Instructions written for long human texts: the model reads a text (or as much of its beginning as fits) and
    says which request it would answer. The rows (`final`) pair that request with the human text."""
    work = crew.work
    texts = _documents(work)
    if work.store.begin(1, "back-translation"):
        tasks = (_translated(work, item, language, text) for item, (language, text) in texts.items())
        crew.run(Listed.of(tasks), 0, ("base",), "back-translation", len(texts))
        work.store.end(1, "back-translation", {})
    rows = [
        chat_row(f"human-{o.item}", o.text, texts[o.item][1], "back-translation",
                 {"language": texts[o.item][0], "words": count_words(texts[o.item][1])})
        for o in work.store.outcomes(1, "translated")
        if o.text is not None
    ]  # fmt: skip
    for row in fitting(work, 1, "final", rows):
        work.store.add_row("final", row)


def _documents(work: Work) -> dict[str, tuple[str, str]]:
    path = work.settings.texts or ""
    found: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(rows_of(path, "texts"), 1):
        text = row.get("text") or row.get("instruction")
        if not isinstance(text, str) or not text.strip():
            raise LengthenError(f"{path}, row {number} has no `text`.", fix='write rows such as {"text": "..."}')
        language = "zh" if is_cjk(text) else "en"
        if language in work.wordings and len(found) < work.settings.instruct.count:
            found[f"t{number:06}"] = (language, text.strip())
    if not found:
        raise LengthenError(f"texts: {path} holds no document in {', '.join(work.wordings)}.")
    return found


def _translated(work: Work, item: str, language: str, text: str) -> Task:
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
        said = answer.text.strip()
        words = count_words(said)
        if answer.finish_reason == "error":
            verdict = Verdict("endpoint_error", (answer.error or "")[:300])
        elif answer.finish_reason == "length":
            verdict = Verdict("cut_by_limit", said[:120], words)
        elif not settings.above_words < words < settings.below_words:
            verdict = Verdict("out_of_size", f"{words} words: {said[:120]}", words)
        else:
            verdict = Verdict("", "", words)
        if work.judge(key, verdict).accepted:
            work.finish(key, said, verdict, None, {})
            return
    work.finish(Key(1, "translated", item), None, verdict, None, {"rule": verdict.rule})


def _fitting_beginning(work: Work, prompt: str, text: str) -> str:
    """As much of the text's beginning, cut at an edge, as the window holds beside prompt and answer."""
    room = work.window - work.count_tokens(prompt) - 256 - 64
    while text and work.count_tokens(text) > room:
        start = beginning(text, max(0.05, min(0.9, 0.9 * room / max(1, work.count_tokens(text)))))
        text = start.text if start is not None and len(start.text) < len(text) else ""
    return text
