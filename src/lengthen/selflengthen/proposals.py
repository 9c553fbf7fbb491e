"""Self-instruct: the starting model writes instructions after examples, and judges them."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from lengthen.common.errors import LengthenError
from lengthen.common.seeds import named_random
from lengthen.common.words import count_words
from lengthen.selflengthen.checks import Verdict, failure
from lengthen.selflengthen.instruct import ROLE, Filters, tidy
from lengthen.selflengthen.pipeline import Task
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.wording import Wording
from lengthen.selflengthen.work import Work, user

LEAST_ACCEPTED = 0.02
"""With a smaller share of acceptable candidates the phase stops: this model cannot write instructions, or not judge."""


class TooFew(LengthenError):
    """Nearly no candidate is accepted."""


@dataclass
class Proposals:
    """A source of tasks that each propose one instruction.

    Candidates are numbered. Requests and results depend on the seed alone, never on the order in which answers come,
    and a candidate that hangs holds back only what depends on it:

    - Examples. Candidate i of block b draws them, by its number, from the seeds and (with `grow`) from the candidates
      before block b - 1. A drawn candidate that did not pass gives way to a seed. So i needs the ends of at most
      `shown` others, and one that hangs keeps back the few that drew it, while later ones start. Passing means size,
      judge and distance to the evaluation prompts: whether a text is near to an accepted one depends on all before it.
      A block has at least `serve.in_flight` candidates, so that those which are drawn have nearly always ended; its
      size is kept in the state, so that another number of requests at once changes nothing later.
    - Acceptance goes by number, since of two near-duplicates the later one goes. Behind a candidate that hangs, texts
      wait for it, and count as accepted meanwhile; those that failed by themselves are made up for at once.
    - A candidate starts when fewer than `count` of those before it can still be accepted, so that none is in vain. At
      the end of the phase only what makes up for near-duplicates waits for a candidate that hangs.
    """

    work: Work
    iteration: int
    count: int
    seeds: dict[str, list[str]]
    filters: Filters
    accepted: list[tuple[str, str]] = field(default_factory=list)
    block: int = 0
    _texts: dict[int, str | None] = field(default_factory=dict)  # of every candidate that has ended
    _numbered: int = 0
    _settled: int = 0
    _failed: int = 0  # ended without a text, and not settled yet
    _free: list[int] = field(default_factory=list)  # may start; a heap, lowest number first
    _needs: dict[int, set[int]] = field(default_factory=dict)
    _needed_by: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        store, settings, name = self.work.store, self.work.settings, f"block-{self.iteration}"
        self.block = int(store.meta(name) or max(settings.instruct.block, settings.serve.in_flight))
        store.set_meta(name, str(self.block))

    def next_task(self) -> Task | None:
        while not self._free and self._wanted():
            self._number()
        return self._propose(heapq.heappop(self._free)) if self._free else None

    def more(self) -> bool:
        return bool(self._free) or self._settled < self._numbered or self._wanted()

    def _wanted(self) -> bool:
        """Whether one more candidate is needed even if all that are open are accepted."""
        most = int(self.count * self.work.settings.instruct.candidates_per_instruction) + len(self.work.wordings)
        possible = len(self.accepted) + self._numbered - self._settled - self._failed
        return possible < self.count and self._numbered < most

    def _language(self, index: int) -> str:
        languages = list(self.work.wordings)
        return languages[index % len(languages)]

    # ------------------------------------------------------------------------------------------------- examples
    def _number(self) -> None:
        index, self._numbered = self._numbered, self._numbered + 1
        needs = {other for kind, other in self._drawn(index) if kind == "candidate"} - self._texts.keys()
        if not needs:
            heapq.heappush(self._free, index)
            return
        self._needs[index] = needs
        for other in needs:
            self._needed_by.setdefault(other, []).append(index)

    def _drawn(self, index: int) -> list[tuple[str, int]]:
        """What candidate `index` draws: ("seed", place) or ("candidate", number)."""
        settings = self.work.settings.instruct
        seeds, languages = len(self.seeds[self._language(index)]), len(self.work.wordings)
        before = max(0, (index // self.block - 1) * self.block) if settings.grow else 0
        earlier = range(index % languages, before, languages)  # of the same language
        draws = named_random(self.work.seed, "hand", self.iteration, index)
        places = draws.sample(range(seeds + len(earlier)), min(settings.shown, seeds + len(earlier)))
        return [("seed", place) if place < seeds else ("candidate", earlier[place - seeds]) for place in places]

    def _hand(self, index: int) -> list[str]:
        """The examples, all different."""
        seeds, drawn = self.seeds[self._language(index)], self._drawn(index)
        spare = list(seeds)
        named_random(self.work.seed, "spare", self.iteration, index).shuffle(spare)
        hand = [seeds[number] if kind == "seed" else self._texts[number] for kind, number in drawn]
        return list(dict.fromkeys(text for text in [*hand, *spare] if text))[: len(drawn)]

    # ----------------------------------------------------------------------------------------------- candidates
    def _propose(self, index: int) -> Task:
        language = self._language(index)
        hand = self._hand(index)
        text = yield from propose(self.work, self.iteration, index, language, hand, self.seeds[language])
        self._ended(index, text)
        while self._settled in self._texts:
            self._settle(self._settled)
        self._refuse_few()

    def _ended(self, index: int, text: str | None) -> None:
        if text is not None:
            alone = self.filters.alone(text)
            text = text if alone.accepted else None
            if not alone.accepted:
                self.work.judge(self._key(index), alone)
        self._texts[index] = text
        self._failed += text is None
        for other in self._needed_by.pop(index, ()):
            self._needs[other].discard(index)
            if not self._needs[other]:
                del self._needs[other]
                heapq.heappush(self._free, other)

    def _settle(self, index: int) -> None:
        text, self._settled = self._texts[index], index + 1
        if text is None:
            self._failed -= 1
        elif self.work.judge(self._key(index), self.filters.near(text)).accepted:
            self.filters.accept(text)
            self.accepted.append((self._language(index), text))

    def _key(self, index: int) -> Key:
        return Key(self.iteration, ROLE, f"c{index:06}", step="new")

    def _refuse_few(self) -> None:
        """A judge that never says yes must not be asked about every candidate of the phase, ten times each.

        Raises:
            TooFew: of so many candidates nearly none can be accepted.
        """
        ended, work = len(self._texts), self.work
        good = len(self.accepted) + ended - self._settled - self._failed
        if ended < max(100, 2 * work.settings.serve.in_flight) or good >= LEAST_ACCEPTED * ended:
            return
        rules = work.store.query(
            "SELECT rule, COUNT(*) FROM verdicts WHERE iteration=? AND role=? AND rule!='' GROUP BY 1 ORDER BY 2 DESC",
            (self.iteration, ROLE),
        )
        raise TooFew(
            f"Macro-iteration {self.iteration}: {good} of the first {ended:,} proposed instructions can be used.",
            why="refused, by rule: " + ", ".join(f"{rule} {count:,}x" for rule, count in rules),
            fix="set instruct.source to templates or file: a small model can often not judge. What this phase asked is "
            f"put away then; `lengthen inspect {work.store.path}` shows examples",
        )


def propose(work: Work, iteration: int, index: int, language: str, hand: list[str], seeds: list[str]) -> Iterator:
    """Ask for one instruction until one has the right size and the judge says yes. Returns it, or None.

    Args:
        hand: the examples of the first try; later ones draw from these and the seeds.
    """
    settings, wording = work.settings.instruct, work.wordings[language]
    sampling = work.settings.sampling.model_copy(update={"stop": (f"\n{settings.shown + 2}.",)})
    for attempt in range(1, settings.tries + 1):
        key = Key(iteration, ROLE, f"c{index:06}", 0, attempt)
        pool = hand if attempt == 1 else list(dict.fromkeys([*hand, *seeds]))
        draws = named_random(work.seed, "examples", iteration, index, attempt)
        shown = draws.sample(pool, min(settings.shown, len(pool)))
        prefix = "".join(f"{i}. {' '.join(text.split())}\n\n" for i, text in enumerate(shown, 1)) + f"{len(shown) + 1}."
        messages = user(wording.render("instruct", {}))
        room = work.room(messages, prefix, enough=max(32, settings.max_new_tokens))
        if room < 32:
            work.judge(key, Verdict("no_room", f"{room} tokens left"))
            return None
        answer = yield work.ask(key, "base", messages, sampling, min(settings.max_new_tokens, room), prefix)
        text = tidy(answer.text, wording)
        words = count_words(text)
        if (failed := failure(answer)) is not None:
            verdict = failed
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
    if (failed := failure(answer)) is not None:
        return work.judge(key, failed)
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


def checked_seeds(seeds: dict[str, list[str]], shown: int) -> dict[str, list[str]]:
    """Seeds of each language; fewer than are shown at once is refused."""
    for language, texts in seeds.items():
        if len(texts) < shown:
            raise LengthenError(
                f"There are {len(texts)} seed instructions in '{language}', and {shown} are shown at once.",
                fix="give more seeds (instruct.seeds), or lower instruct.shown",
            )
    return seeds
