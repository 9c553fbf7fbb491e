"""Instructions: written and judged by the starting model after seeds, made of templates, or read from a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from lengthen.common.errors import LengthenError
from lengthen.common.seeds import named_random
from lengthen.common.words import count_words, is_cjk
from lengthen.selflengthen.checks import Verdict
from lengthen.selflengthen.distinct import Pool
from lengthen.selflengthen.pipeline import Task
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.wording import Wording, prompt_of, rows_of
from lengthen.selflengthen.work import Work, user

ROLE = "instruct"
HELD_OUT_EVERY = 6
"""Every sixth topic of the templates is kept for held-out prompts and never trained on."""


# ------------------------------------------------------------------------------------------- templates and files
def from_templates(wording: Wording, seed: int, *, held_out: bool = False) -> list[str]:
    """Instructions made of topics and forms, shuffled; each topic once before any topic comes again.

    Args:
        held_out: those of the topics that are kept out of training, each in one form, then in a second one.
    """
    rounds: dict[int, list[str]] = {}
    for number, group in enumerate(wording.templates["groups"]):
        forms = group["forms"]
        for i, topic in enumerate(group["topics"]):
            if (i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) != held_out:
                continue
            start = named_random(seed, "form", number, i).randrange(len(forms))
            for turn in range(min(2, len(forms)) if held_out else len(forms)):
                rounds.setdefault(turn, []).append(forms[(start + turn) % len(forms)].replace("{}", topic))
    made: list[str] = []
    for turn in sorted(rounds):
        named_random(seed, "templates", turn).shuffle(rounds[turn])
        made += rounds[turn]
    return made


def listed(work: Work) -> list[tuple[str, str]]:
    """(language, instruction) of the templates or of the file, languages in turn."""
    settings = work.settings.instruct
    columns: list[list[tuple[str, str]]] = []
    if settings.source == "templates":
        columns = [[(name, t) for t in from_templates(w, work.seed)] for name, w in work.wordings.items()]
    else:
        path = settings.file or ""
        rows = [(row, prompt_of(row, path, i)) for i, row in enumerate(rows_of(path, "instruct.file"), 1)]
        tagged = [(row.get("language") or ("zh" if is_cjk(text) else "en"), text) for row, text in rows]
        columns = [[pair for pair in tagged if pair[0] == name] for name in work.wordings]
        for number, (language, text) in enumerate(tagged, 1):
            if language not in work.wordings:
                work.judge(Key(0, ROLE, f"row{number:06}"), Verdict("other_language", f"{language}: {text[:120]}"))
    longest = max((len(column) for column in columns), default=0)
    return [column[i] for i in range(longest) for column in columns if i < len(column)]


def take_listed(
    work: Work, iteration: int, first: int, count: int, filters: Filters
) -> tuple[list[tuple[str, str]], int]:
    """The next `count` instructions of the list, beginning at index `first`, that are new.

    Returns:
        (language, instruction) pairs, and the index after the last one looked at.
    """
    candidates = listed(work)
    taken: list[tuple[str, str]] = []
    index = first
    while index < len(candidates) and len(taken) < count:
        language, text = candidates[index]
        key = Key(iteration, ROLE, f"l{index:06}")
        if work.judge(key, filters.verdict(text)).accepted:
            filters.accept(text)
            taken.append((language, text))
        index += 1
    return taken, index


@dataclass
class Filters:
    """Size, near-duplicates of what is there, nearness to evaluation prompts."""

    above: int
    below: int
    there: Pool
    evaluation: Pool

    def verdict(self, text: str) -> Verdict:
        words = count_words(text)
        if not self.above < words < self.below:
            return Verdict("out_of_size", f"{words} words: {text[:120]}", words)
        near = self.evaluation.nearest(text)
        if near is not None:
            return Verdict("evaluation_prompt", f"{text[:120]} ~ {near[0][:120]} ({near[1]:.2f})", words)
        near = self.there.nearest(text)
        if near is not None:
            return Verdict("near_duplicate", f"{text[:120]} ~ {near[0][:120]} ({near[1]:.2f})", words)
        return Verdict("", "", words)

    def accept(self, text: str) -> None:
        self.there.add(text)


def evaluation_pool(paths: list[str], more: list[str], threshold: float, ngram: int) -> Pool:
    """All evaluation prompts that instructions must keep away from."""
    pool = Pool(threshold, ngram)
    for path in paths:
        for number, row in enumerate(rows_of(path, "instruct.evaluation_prompts"), 1):
            pool.add(prompt_of(row, path, number))
    for text in more:
        pool.add(text)
    return pool


# ------------------------------------------------------------------------------------------------- self-instruct
@dataclass
class Proposals:
    """A source of tasks that each propose one instruction.

    Candidates are numbered and accepted in that order, whatever the order of arrival. Examples for block b come from
    the seeds and (with `grow`) from what blocks up to b - 2 gave, so that a slow answer never holds up its own block
    and the same seed gives the same requests.
    """

    work: Work
    iteration: int
    count: int
    seeds: dict[str, list[str]]
    filters: Filters
    accepted: list[tuple[str, str]] = field(default_factory=list)
    _results: dict[int, str | None] = field(default_factory=dict)
    _origin: list[int] = field(default_factory=list)
    _started: int = 0
    _settled: int = 0

    def next_task(self) -> Task | None:
        settings = self.work.settings.instruct
        if not self.more():
            return None
        if self._settled < (self._started // settings.block - 1) * settings.block:
            return None
        if len(self.accepted) + self._started - self._settled >= self.count:
            return None
        index, self._started = self._started, self._started + 1
        languages = list(self.work.wordings)
        return self._propose(index, languages[index % len(languages)])

    def more(self) -> bool:
        limit = int(self.count * self.work.settings.instruct.candidates_per_instruction) + len(self.work.wordings)
        return len(self.accepted) < self.count and self._started < limit

    def _pool(self, index: int, language: str) -> list[str]:
        settings = self.work.settings.instruct
        if not settings.grow:
            return self.seeds[language]
        before = (index // settings.block - 1) * settings.block
        grown = [text for (name, text), at in zip(self.accepted, self._origin) if name == language and at < before]
        return self.seeds[language] + grown

    def _propose(self, index: int, language: str) -> Task:
        text = yield from propose(self.work, self.iteration, index, language, self._pool(index, language))
        self._results[index] = text
        languages = list(self.work.wordings)
        while self._settled in self._results:
            text, at = self._results.pop(self._settled), self._settled
            self._settled += 1
            if text is None or len(self.accepted) >= self.count:
                continue
            key = Key(self.iteration, ROLE, f"c{at:06}", step="new")
            if self.work.judge(key, self.filters.verdict(text)).accepted:
                self.filters.accept(text)
                self.accepted.append((languages[at % len(languages)], text))
                self._origin.append(at)


def propose(work: Work, iteration: int, index: int, language: str, pool: list[str]) -> Iterator:
    """Ask for one instruction until one has the right size and the judge says yes. Returns it, or None."""
    settings, wording = work.settings.instruct, work.wordings[language]
    sampling = work.settings.sampling.model_copy(update={"stop": (f"\n{settings.shown + 2}.",)})
    for attempt in range(1, settings.tries + 1):
        key = Key(iteration, ROLE, f"c{index:06}", 0, attempt)
        shown = named_random(work.seed, "examples", iteration, index, attempt).sample(
            pool, min(settings.shown, len(pool))
        )
        prefix = "".join(f"{i}. {' '.join(text.split())}\n\n" for i, text in enumerate(shown, 1)) + f"{len(shown) + 1}."
        messages = user(wording.render("instruct", {}))
        room = work.room(messages, prefix)
        if room < 32:
            work.judge(key, Verdict("no_room", f"{room} tokens left"))
            return None
        answer = yield work.ask(key, "base", messages, sampling, min(settings.max_new_tokens, room), prefix)
        text = tidy(answer.text, wording)
        words = count_words(text)
        if answer.finish_reason == "error":
            verdict = Verdict("endpoint_error", (answer.error or "")[:300])
        elif answer.finish_reason == "length" and "\n" not in answer.text.strip():
            verdict = Verdict("cut_by_limit", text[:120], words)
        elif not text:
            verdict = Verdict("empty")
        elif not settings.above_words < words < settings.below_words:
            verdict = Verdict("out_of_size", f"{words} words: {text[:120]}", words)
        else:
            verdict = Verdict("", "", words)
        if not work.judge(key, verdict).accepted:
            continue
        if not settings.judge:
            return text
        verdict = yield from _judged(work, key, wording, text)
        if verdict.accepted:
            return text
    return None


def _judged(work: Work, key: Key, wording: Wording, text: str) -> Iterator:
    key = Key(*key.fields[:5], step="judge")
    sampling = work.settings.sampling.model_copy(update={"temperature": work.settings.instruct.judge_temperature})
    answer = yield work.ask(key, "base", user(wording.render("judge", {"instruction": text})), sampling, 16)
    if answer.finish_reason == "error":
        return work.judge(key, Verdict("endpoint_error", (answer.error or "")[:300]))
    said = yes_or_no(answer.text, wording)
    rule = "" if said else "judged_no" if said is False else "judge_unclear"
    return work.judge(
        key, Verdict(rule, "" if said else f"{answer.text.strip()[:60]!r}: {text[:120]}", count_words(text))
    )


def yes_or_no(answer: str, wording: Wording) -> bool | None:
    """True, False, or None when the judge says neither: the first clause must be exactly one of the known words."""
    first = re.split(r"[\n,.!?:;，。！？：；]", answer.strip().lstrip("*_\"'“「 "), maxsplit=1)[0]
    said = first.strip("*_\"'”」 ").lower()
    if said in wording.phrases["yes"]:
        return True
    return False if said in wording.phrases["no"] else None


def tidy(text: str, wording: Wording) -> str:
    """The instruction alone: up to the next number or blank line, without labels, quotes and emphasis around it."""
    text = re.split(r"\n\s*\d+(?:[.)]\s|、)|\n\s*\n", text.strip(), maxsplit=1)[0].strip()
    text = re.sub(rf"^[*_\s]*{wording.phrases['labels']}[*_\s]*[:：][*_\s]*", "", text, flags=re.IGNORECASE)
    for opening, closing in (('"', '"'), ("“", "”"), ("**", "**"), ("「", "」")):
        inner = text[len(opening) : -len(closing)]
        if len(text) > 4 and text.startswith(opening) and text.endswith(closing) and opening not in inner:
            text = inner
    return text.strip()


def checked_seeds(seeds: dict[str, list[str]], shown: int) -> dict[str, list[str]]:
    """Seeds of each language; fewer than are shown at once is refused."""
    for language, texts in seeds.items():
        if len(texts) < shown:
            raise LengthenError(
                f"There are {len(texts)} seed instructions in '{language}', and {shown} are shown at once.",
                fix="give more seeds (instruct.seeds), or lower instruct.shown",
            )
    return seeds
