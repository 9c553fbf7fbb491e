"""Facts planted in real long documents and asked for: the natural-text counterpart of the tables."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext, StageResult
from lengthen.common.seeds import named_random
from lengthen.recipe.stages.questions import QuestionsStage
from lengthen.synthesize.documents import open_library
from lengthen.synthesize.facts import Fact, Puzzle, Teller, draw_puzzle, further_puzzles, planted_answer, recompute
from lengthen.synthesize.lengths import decile_of, log_uniform
from lengthen.synthesize.library import Library, Stretch
from lengthen.synthesize.query import Redraw
from lengthen.synthesize.tokens import Counter, Message
from lengthen.synthesize.writer import Build, write_chat

ATTEMPTS = 40
_FEWEST_UNITS = 2


def write_questions(settings: QuestionsStage, ctx: StageContext) -> StageResult:
    """Write `chat.jsonl`: conversations about real documents in which the program planted facts.

    The answers are known, and read back once more from the text; a fact whose value or subject occurs in the document
    anyway is drawn anew and counted by rule. The same settings, documents, tokenizer and seed give the same bytes.

    Raises:
        LengthenError: documents that are not there or hold too little text; a length too short for the facts.
    """
    counter = Counter.of_model(settings.model)
    library = open_library(settings.documents, counter, settings.max_tokens)
    # The shortest conversations fail first; find that out now and not after an hour.
    build(settings, counter, library, ctx.seed, 0, target=settings.min_tokens)
    return write_chat(ctx, settings.count, settings.workers, _builder, settings, ctx.seed)


def _builder(settings: QuestionsStage, seed: int) -> Build:
    counter = Counter.of_model(settings.model)
    return partial(build, settings, counter, open_library(settings.documents, counter, settings.max_tokens), seed)


def build(
    settings: QuestionsStage, counter: Counter, library: Library, seed: int, index: int, *, target: int | None = None
) -> dict[str, Any]:
    """Conversation number `index`, the same for the same settings, documents, tokenizer and seed.

    Raises:
        LengthenError: none of many attempts fits the length, or has a question with one right answer.
    """
    if target is None:
        target = log_uniform(settings.min_tokens, settings.max_tokens, seed, index)
    redrawn: Tally[str] = Tally()
    for attempt in range(ATTEMPTS):
        rng = named_random(seed, "question", index, attempt)
        try:
            return _attempt(settings, counter, library, rng, index, target, decile_of(seed, index), redrawn)
        except Redraw as reason:
            redrawn[reason.rule] += 1
    rule, times = redrawn.most_common(1)[0]
    raise LengthenError(
        f"No conversation of {target:,} tokens came out in {ATTEMPTS} attempts; most often ({times} times) by the rule "
        f"'{rule}'.",
        fix="raise min_tokens, lower max_facts, or allow more tasks; docs/tables.md lists the rules",
    )


@dataclass(frozen=True)
class Draft:
    """Text, and the facts with their depths (0..1, ascending)."""

    language: str
    stretch: Stretch
    puzzle: Puzzle
    placed: list[tuple[float, Fact]]
    introduction: str
    question_first: bool

    @property
    def ends(self) -> list[int]:
        return self.stretch.ends

    def places(self, units: int) -> list[int]:
        """Before which unit each fact stands when the text has so many."""
        total = self.ends[units]
        return [min(units, bisect_right(self.ends, depth * total)) for depth, _ in self.placed]

    def context(self, units: int) -> str:
        """The text with the facts between its sentences (in code: on comment lines of their own)."""
        pieces: list[str] = []
        begin = 0
        for place, (_, fact) in zip(self.places(units), self.placed):
            pieces += self.stretch.units[begin:place]
            pieces.append(self.planted(fact, pieces[-1] if pieces else "\n"))
            begin = place
        return self.introduction + "".join([*pieces, *self.stretch.units[begin:units]]).rstrip()

    def planted(self, fact: Fact, before: str) -> str:
        if self.stretch.comment:
            return ("" if before.endswith("\n") else "\n") + self.stretch.comment + fact.text + "\n"
        return ("" if before[-1:].isspace() else " ") + fact.text + " "


def _attempt(
    settings: QuestionsStage,
    counter: Counter,
    library: Library,
    rng: random.Random,
    index: int,
    target: int,
    decile: int,
    redrawn: Tally[str],
) -> dict[str, Any]:
    teller = Teller(rng.choice(settings.languages), settings.split, rng, (settings.min_digits, settings.max_digits))
    task = rng.choice(settings.tasks)
    puzzle = draw_puzzle(teller, task, rng.randint(settings.min_facts, settings.max_facts))
    draft = _draft(settings, library, teller, puzzle, target, decile)
    in_order = [fact for _, fact in draft.placed]
    puzzles = [puzzle]
    if settings.turns > 1:
        # The answer of `order` names its facts; only steps written out quote their values too.
        told = () if task == "order" and settings.answers == "sentence" else puzzle.facts[: puzzle.asked]
        puzzles += further_puzzles(teller, puzzle, told)[: rng.randint(1, settings.turns) - 1]
    turns = [_turn(settings, teller, puzzle, in_order) for puzzle in puzzles]
    units, total = _fit(counter, draft, turns, target)
    text = draft.context(units)
    _unambiguous(puzzle, text)
    if any(recompute(text, draft.language, turn.puzzle.ask) != turn.values for turn in turns):
        raise Redraw("check_disagreed")
    place = dict(zip((fact for _, fact in draft.placed), draft.places(units)))
    said = [turn.said(lambda fact: draft.ends[place[fact]] / draft.ends[units]) for turn in turns]
    if said[0]["decile"] != decile:
        raise Redraw("depth_moved")
    meta = {
        "split": settings.split, "language": draft.language, "documents": list(draft.stretch.ids), "target": target,
        "tokens": total, "question_first": draft.question_first, "turns": said,
        "redrawn": dict(sorted(redrawn.items())),
    }  # fmt: skip
    messages = _messages(draft, units, turns)
    return {"id": f"questions-{settings.split}-{index:06d}", "messages": messages, "source": "questions", "meta": meta}


@dataclass(frozen=True)
class Turn:
    """A question in words and its answer in words. values: the answer as the program knows it."""

    puzzle: Puzzle
    values: tuple[str, ...]
    question: str
    answer: str

    def said(self, depth_of: Callable[[Fact], float]) -> dict[str, Any]:
        """What a reader of the file finds of it. decile: of the first fact that is asked for."""
        depths = [depth_of(fact) for fact in self.puzzle.facts]
        return {
            "task": self.puzzle.task, "query": self.puzzle.ask, "answer": list(self.values), "ordered": True,
            "facts": len(self.puzzle.facts), "depths": [round(depth, 4) for depth in depths],
            "decile": min(9, int(10 * depths[0])),
        }  # fmt: skip


def _turn(settings: QuestionsStage, teller: Teller, puzzle: Puzzle, in_order: Sequence[Fact]) -> Turn:
    values = planted_answer(puzzle, in_order)
    answer = _answer(settings, teller, puzzle, in_order, values)
    instruct = teller.pick("WORKED") if settings.answers == "worked" else ""
    question = (f"{puzzle.question} {instruct}" if teller.language == "en" else puzzle.question + instruct).strip()
    return Turn(puzzle, values, question, answer)


def _draft(
    settings: QuestionsStage, library: Library, teller: Teller, puzzle: Puzzle, target: int, decile: int
) -> Draft:
    rng = teller.rng
    # The first asked fact stands in the decile that is due, with room at both ends for the depth to round.
    depths = [(decile + rng.uniform(0.1, 0.9)) / 10, *(rng.random() for _ in puzzle.facts[1:])]
    placed = sorted(zip(depths, puzzle.facts), key=lambda pair: pair[0])
    stretch = library.draw(rng, target)
    introduction = teller.pick("INTRODUCTION")
    first = rng.random() < settings.question_first
    return Draft(teller.language, stretch, puzzle, placed, introduction, first)


def _answer(
    settings: QuestionsStage, teller: Teller, puzzle: Puzzle, in_order: Sequence[Fact], values: Sequence[str]
) -> str:
    bare = teller.words.LIST.join(values)
    said = puzzle.sentence.format(answer=bare, **puzzle.fields)
    if settings.answers == "sentence":
        return said
    asked = puzzle.facts[: puzzle.asked]
    # Order and number follow the text; everything else follows the question.
    quoted = [fact for fact in in_order if fact in asked] if puzzle.task in ("order", "counting") else asked
    lines = [*(fact.text for fact in quoted if fact.text != said), said, bare]
    return "\n".join(lines)


def _messages(draft: Draft, units: int, turns: Sequence[Turn]) -> list[Message]:
    context, messages = draft.context(units), list[Message]()
    for turn in turns:
        asked = turn.question
        if not messages:
            asked = f"{asked}\n\n{context}" if draft.question_first else f"{context}\n\n{asked}"
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": turn.answer}]
    return messages


def _fit(counter: Counter, draft: Draft, turns: Sequence[Turn], target: int) -> tuple[int, int]:
    """(units, tokens): as many sentences as leave the whole conversation within the target."""
    facts = " ".join(draft.stretch.comment + fact.text for _, fact in draft.placed)
    first, *others = _messages(draft, 0, turns)
    fixed = {"role": "user", "content": f"{draft.introduction}{facts}\n\n{turns[0].question}"}
    overhead = counter.conversation([{**first, **fixed}, *others])
    for _ in range(8):
        units = bisect_right(draft.ends, target - overhead) - 1
        if units < _FEWEST_UNITS:
            raise Redraw("length_below_facts")
        if units >= len(draft.stretch.units):
            raise Redraw("stretch_too_short")
        total = counter.conversation(_messages(draft, units, turns))
        if total <= target < total + draft.ends[units + 1] - draft.ends[units]:
            return units, total
        overhead = total - draft.ends[units]
    raise Redraw("length_not_met")


def _unambiguous(puzzle: Puzzle, text: str) -> None:
    """Every subject and value stands in the text as often as in the planted facts."""
    said = "\n".join(fact.text for fact in puzzle.facts)
    for fact in puzzle.facts:
        for part in fact.parts[2:]:
            if text.count(part) != said.count(part):
                raise Redraw("value_in_document")
