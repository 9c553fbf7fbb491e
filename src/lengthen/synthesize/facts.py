"""Facts to plant in a text, the question about them, and a second way to the answer: reading them back."""

from __future__ import annotations

import functools
import importlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from lengthen.synthesize.keys import draw_keys
from lengthen.synthesize.query import Redraw
from lengthen.synthesize.vocabulary import Split, Vocabulary, cut, cut_wordings, vocabulary


@dataclass(frozen=True)
class Fact:
    """One planted statement. Facts with equal `parts` say the same thing."""

    text: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Puzzle:
    """Facts and a question about some of them.

    facts: the asked ones first (`asked` of them), then the distractors.
    ask: plain form of the question, enough to answer it from facts read back.
    fields: what the answer sentence needs besides the answer.
    """

    task: str
    facts: tuple[Fact, ...]
    asked: int
    ask: dict[str, Any]
    question: str
    sentence: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Teller:
    """Draws facts and words them: one language, one split, one source of chance, numbers of so many digits."""

    language: str
    split: Split
    rng: random.Random
    digits: tuple[int, int] = (4, 7)

    @property
    def words(self) -> ModuleType:
        return _module(self.language)

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary(self.language, self.split)

    def pick(self, name: str) -> str:
        return self.rng.choice(cut_wordings(getattr(self.words, name), self.split))

    def kinds(self, name: str, count: int) -> list[Any]:
        return self.rng.sample(cut(getattr(self.words, name), self.split), count)

    def subjects(self, count: int) -> list[str]:
        """Different names: things of two words, or persons."""
        found: list[str] = []
        things = draw_keys(self.rng, self.vocabulary, self.split, "pair", count)
        for thing in things:
            person = self.rng.random() < 0.3
            name = self.rng.choice(self.vocabulary.people_names) if person else thing.replace("-", " ")
            if name in found:
                raise Redraw("subjects_alike")
            found.append(name)
        return found

    def values(self, count: int) -> list[str]:
        """Different values, mostly numbers of `digits` digits; none holds another."""
        found: list[str] = []
        for _ in range(count):
            style = self.rng.random()
            if style < 0.75:
                digits = self.rng.randint(*self.digits)
                value = str(self.rng.randrange(10 ** (digits - 1), 10**digits))
            else:
                value = draw_keys(self.rng, self.vocabulary, self.split, "code", 1)[0]
            if any(value in other or other in value for other in found):
                raise Redraw("values_alike")
            found.append(value)
        return found

    def listed(self, items: Sequence[str]) -> str:
        if len(items) < 3:
            return self.words.AND.join(items)
        comma = ", " if self.language == "en" else "、"
        return comma.join(items[:-1]) + self.words.AND + items[-1]


@functools.cache
def _module(language: str) -> ModuleType:
    return importlib.import_module(f"lengthen.synthesize.facts_{language}")


def draw_puzzle(teller: Teller, task: str, count: int) -> Puzzle:
    """A question of this task with about `count` facts in all (more where the task needs them)."""
    return _DRAW[task](teller, task, count)


def further_puzzles(teller: Teller, puzzle: Puzzle, told: Sequence[Fact] = ()) -> list[Puzzle]:
    """Other questions that the same facts answer, in a drawn order: of a stated value each by itself, of holders each
    further subject, of events the other one. Their facts are the puzzle's, those asked for first.

    Args:
        told: facts whose value an earlier answer holds; they are not asked for.
    """
    found: list[Puzzle] = []
    if puzzle.task == "two_hop":
        for holds, of in zip(puzzle.facts[2::2], puzzle.facts[3::2]):
            subject, fields = holds.parts[2], {**puzzle.fields, "subject": holds.parts[2]}
            ask = {**puzzle.ask, "subjects": [subject]}
            del ask["task"]
            found.append(_puzzle(teller, "two_hop", _first(puzzle, (holds, of)), 2, ask, **fields))
    elif puzzle.task == "counting":
        others = tuple(fact for fact in puzzle.facts if fact.parts[1] != puzzle.ask["event"])
        if others:
            event = others[0].parts[1]
            question = dict(teller.words.EVENTS)[event]
            facts = _first(puzzle, others)
            found.append(
                _puzzle(teller, "counting", facts, len(others), {"event": event}, event=event, question=question)
            )
    else:
        for fact in puzzle.facts:
            if fact not in told:
                _, kind, subject, _ = fact.parts
                ask = {"kind": kind, "subjects": [subject]}
                found.append(_puzzle(teller, "single", _first(puzzle, (fact,)), 1, ask, kind=kind, subject=subject))
    teller.rng.shuffle(found)
    return found


def _first(puzzle: Puzzle, facts: Sequence[Fact]) -> list[Fact]:
    return [*facts, *(fact for fact in puzzle.facts if fact not in facts)]


def _statements(t: Teller, kinds: Sequence[str], subjects: Sequence[str], values: Sequence[str]) -> list[Fact]:
    return [
        Fact(t.pick("STATEMENTS").format(kind=k, subject=s, value=v), ("is", k, s, v))
        for k, s, v in zip(kinds, subjects, values)
    ]


def _puzzle(t: Teller, task: str, facts: list[Fact], asked: int, ask: dict[str, Any], **fields: str) -> Puzzle:
    question = t.pick(task.upper()).format(**fields)
    sentence = t.rng.choice(cut_wordings(t.words.SENTENCES[task], t.split))
    return Puzzle(task, tuple(facts), asked, {"task": task, **ask}, question, sentence, fields)


def _single(t: Teller, task: str, count: int) -> Puzzle:
    kinds = t.kinds("KINDS", 2)
    subjects, values = t.subjects(count), t.values(count)
    # Distractors: another thing's value of the same kind, or another kind's value of the same thing.
    of = [kinds[0], *(t.rng.choice(kinds) for _ in range(count - 1))]
    if count > 2 and of[1] == kinds[1]:
        subjects[1] = subjects[0]
    facts = _statements(t, of, subjects, values)
    return _puzzle(t, task, facts, 1, {"kind": of[0], "subjects": subjects[:1]}, kind=of[0], subject=subjects[0])


def _several(t: Teller, task: str, count: int) -> Puzzle:
    asked = t.rng.randint(2, 4)
    count = max(count, asked)
    kind = t.kinds("KINDS", 1)[0]
    subjects, values = t.subjects(count), t.values(count)
    facts = _statements(t, [kind] * count, subjects, values)
    part = t.words.PART
    items = t.listed([part.format(kind=kind, subject=subject) for subject in subjects[:asked]])
    return _puzzle(t, task, facts, asked, {"kind": kind, "subjects": subjects[:asked]}, list=items, kind=kind)


def _two_hop(t: Teller, task: str, count: int) -> Puzzle:
    pairs = max(1, count // 2)
    holder, prop = t.kinds("HOLDERS", 1)[0], t.kinds("PROPERTIES", 1)[0]
    subjects, values = t.subjects(pairs), t.values(pairs)
    places = draw_keys(t.rng, t.vocabulary, t.split, "code", pairs)
    if any(place in value or value in place for place in places for value in values):
        raise Redraw("values_alike")
    facts = []
    for subject, place, value in zip(subjects, places, values):
        words = t.pick("HOLDS").format(subject=subject, holder=holder, place=place)
        facts.append(Fact(words, ("has", holder, subject, place)))
        words = t.pick("PLACE_FACTS").format(holder=holder, place=place, property=prop, value=value)
        facts.append(Fact(words, ("of", holder, place, prop, value)))
    ask = {"holder": holder, "property": prop, "subjects": subjects[:1]}
    return _puzzle(t, task, facts, 2, ask, holder=holder, property=prop, subject=subjects[0])


def _order(t: Teller, task: str, count: int) -> Puzzle:
    asked = t.rng.randint(3, 5)
    count = max(count, asked)
    kind = t.kinds("KINDS", 1)[0]
    subjects, values = t.subjects(count), t.values(count)
    facts = _statements(t, [kind] * count, subjects, values)
    shown = sorted(subjects[:asked])
    return _puzzle(t, task, facts, asked, {"kind": kind, "subjects": shown}, kind=kind, list=t.listed(shown))


def _counting(t: Teller, task: str, count: int) -> Puzzle:
    asked = t.rng.randint(1, max(1, min(8, count)))
    count = max(count, asked)
    events = t.kinds("EVENTS", 2)
    subjects = draw_keys(t.rng, t.vocabulary, t.split, "pair", count)
    facts = []
    for number, subject in enumerate(subject.replace("-", " ") for subject in subjects):
        event = events[number >= asked][0]
        words = t.pick("EVENT_FACTS").format(subject=subject, event=event)
        facts.append(Fact(words, ("when", event, subject)))
    return _puzzle(t, task, facts, asked, {"event": events[0][0]}, event=events[0][0], question=events[0][1])


_DRAW: dict[str, Callable[[Teller, str, int], Puzzle]] = {
    "single": _single, "several": _several, "two_hop": _two_hop, "order": _order, "counting": _counting,
}  # fmt: skip


def planted_answer(puzzle: Puzzle, in_order: Sequence[Fact]) -> tuple[str, ...]:
    """The answer as the program knows it.

    Args:
        in_order: all facts of the puzzle in the order in which they stand in the text.
    """
    asked = puzzle.facts[: puzzle.asked]
    if puzzle.task == "order":
        return tuple(fact.parts[2] for fact in in_order if fact in asked)
    if puzzle.task == "counting":
        return (str(puzzle.asked),)
    if puzzle.task == "two_hop":
        return (asked[1].parts[4],)
    return tuple(fact.parts[3] for fact in asked)


@functools.cache
def _patterns(language: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Regular expressions of all statements of a language."""
    words = _module(language)
    name = r"[\w' ]+?" if language == "en" else r"\w+?"
    one_of = {
        "kind": words.KINDS, "property": words.PROPERTIES, "holder": words.HOLDERS,
        "event": [event for event, _ in words.EVENTS],
    }  # fmt: skip
    groups = {key: f"(?P<{key}>{'|'.join(map(re.escape, values))})" for key, values in one_of.items()}
    groups |= {"subject": f"(?P<subject>{name})", "value": r"(?P<value>[A-Z0-9-]+)", "place": r"(?P<place>[A-Z0-9-]+)"}
    found = []
    for relation, wordings in (("is", words.STATEMENTS), ("has", words.HOLDS), ("of", words.PLACE_FACTS),
                               ("when", words.EVENT_FACTS)):  # fmt: skip
        for wording in wordings:
            pattern = re.escape(wording).replace(r"\{", "{").replace(r"\}", "}").format(**groups)
            found.append((relation, re.compile(pattern)))
    return tuple(found)


_PARTS = {"is": ("kind", "subject", "value"), "has": ("holder", "subject", "place"),
          "of": ("holder", "place", "property", "value"), "when": ("event", "subject")}  # fmt: skip


def read_facts(text: str, language: str) -> list[tuple[str, ...]]:
    """All facts that a text states in any known wording, in the order of their places."""
    found: dict[tuple[str, ...], int] = {}
    for relation, pattern in _patterns(language):
        for match in pattern.finditer(text):
            parts = (relation, *(match[name] for name in _PARTS[relation]))
            found[parts] = min(match.start(), found.get(parts, match.start()))
    return sorted(found, key=lambda parts: found[parts])


def recompute(text: str, language: str, ask: dict[str, Any]) -> tuple[str, ...] | None:
    """The answer from the text alone, or None where it gives no single one."""
    facts = read_facts(text, language)
    subjects = list(ask.get("subjects", ()))
    if ask["task"] == "counting":
        return (str(sum(fact[0] == "when" and fact[1] == ask["event"] for fact in facts)),)
    if ask["task"] == "two_hop":
        places = [fact[3] for fact in facts if fact[:3] == ("has", ask["holder"], subjects[0])]
        values = [fact[4] for fact in facts if fact[:4] == ("of", ask["holder"], *places[:1], ask["property"])]
        return (values[0],) if len(places) == len(values) == 1 else None
    stated = [fact for fact in facts if fact[0] == "is" and fact[1] == ask["kind"] and fact[2] in subjects]
    if sorted(fact[2] for fact in stated) != sorted(subjects):
        return None
    if ask["task"] == "order":
        return tuple(fact[2] for fact in stated)
    return tuple(next(fact[3] for fact in stated if fact[2] == subject) for subject in subjects)
