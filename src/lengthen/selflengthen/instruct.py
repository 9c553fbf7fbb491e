"""Instructions made of templates or read from a file, and what every instruction must satisfy to be a new one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lengthen.common.seeds import named_random
from lengthen.common.words import count_words
from lengthen.selflengthen.checks import Verdict
from lengthen.selflengthen.distinct import Pool
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.wording import Wording, language_of, prompt_of, rows_of
from lengthen.selflengthen.work import Work

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
        tagged = [(row.get("language") or language_of(text) or "another script", text) for row, text in rows]
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
        alone = self.alone(text)
        return self.near(text) if alone.accepted else alone

    def alone(self, text: str) -> Verdict:
        """What holds of a text whichever others are accepted."""
        words = count_words(text)
        if not self.above < words < self.below:
            return Verdict("out_of_size", f"{words} words: {text[:120]}", words)
        near = self.evaluation.nearest(text)
        if near is not None:
            return Verdict("evaluation_prompt", f"{text[:120]} ~ {near[0][:120]} ({near[1]:.2f})", words)
        return Verdict("", "", words)

    def near(self, text: str) -> Verdict:
        """Whether it is near to one that is accepted."""
        words = count_words(text)
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


def tidy(text: str, wording: Wording) -> str:
    """The instruction alone: up to the next number or blank line, without labels, quotes and emphasis around it."""
    text = re.split(r"\n\s*\d+(?:[.)]\s|、)|\n\s*\n", text.strip(), maxsplit=1)[0].strip()
    text = re.sub(rf"^[*_\s]*{wording.phrases['labels']}[*_\s]*[:：][*_\s]*", "", text, flags=re.IGNORECASE)
    for opening, closing in (('"', '"'), ("“", "”"), ("**", "**"), ("「", "」")):
        inner = text[len(opening) : -len(closing)]
        if len(text) > 4 and text.startswith(opening) and text.endswith(closing) and opening not in inner:
            text = inner
    return text.strip()
