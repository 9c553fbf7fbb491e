"""Questions and answers in words, in any language that has a `wording_XX` module."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from lengthen.synthesize.query import Answer, Condition, Query
from lengthen.synthesize.vocabulary import Noun, Split, cut_wordings


@dataclass(frozen=True)
class Speaker:
    """Words for one conversation: one language, one split, one source of chance."""

    language: str
    split: Split
    rng: random.Random
    noun: Noun
    key_title: str

    @property
    def _words(self) -> ModuleType:
        return importlib.import_module(f"lengthen.synthesize.wording_{self.language}")

    def _pick(self, wordings: Sequence[str]) -> str:
        return self.rng.choice(cut_wordings(wordings, self.split))

    def introduction(self) -> str:
        """A line before the table, or nothing."""
        many = self.noun.many.lower()
        return self._pick(self._words.INTRODUCTION).format(items=many)

    def caption(self, number: int, name: str) -> str:
        return self._words.CAPTION.format(number=number, name=name) + "\n"

    def conditions(self, where: Sequence[Condition]) -> str:
        words = self._words
        return words.AND.join(self._pick(words.CONDITION[c.op]).format(column=c.column, value=c.value) for c in where)

    def ask(self, query: Query, *, leave_out: str = "", instruct: str = "") -> tuple[str, str]:
        """(question, a sentence with `{answer}` open).

        Args:
            leave_out: title of a column with missing cells over which the question runs: a sentence says that
                such rows do not count.
            instruct: "worked" or "bare": a sentence says how to write the answer.
        """
        words = self._words
        where = self.conditions(query.where)
        scope = self._pick(words.SOME_ROWS if where else words.ALL_ROWS).format(where=where)
        fields = {
            "items": self.noun.many.lower(), "title": self.key_title, "column": query.column, "by": query.by,
            "linked": query.linked, "where": where, "scope": scope, "k": str(query.k),
            "key": query.keys[0] if query.keys else "", "keys": self._listed(query.keys),
            "first": query.keys[0] if query.keys else "", "second": query.keys[-1] if query.keys else "",
            "most": self._turned(words.MOST, query.most), "side": self._turned(words.SIDE, query.most),
            "order": self._turned(words.ORDER, query.most),
        }  # fmt: skip
        parts = [self._pick(words.QUESTIONS[query.task]).format(**fields)]
        if leave_out:
            parts.append(self._pick(words.LEAVE_OUT).format(column=leave_out))
        if instruct:
            parts.append(self._pick(words.WORKED if instruct == "worked" else words.BARE))
        sentence = self._pick(words.SENTENCES[query.task]).format(answer="{answer}", **fields)
        return (" " if self.language == "en" else "").join(parts), sentence

    def _turned(self, pairs: Sequence[tuple[str, str]], most: bool) -> str:
        pair = self.rng.choice(cut_wordings(pairs, self.split))
        return pair[0] if most else pair[1]

    def _listed(self, keys: Sequence[str]) -> str:
        words = self._words
        if len(keys) < 3:
            return words.KEYS.join(keys)
        comma = ", " if self.language == "en" else "、"
        return comma.join(keys[:-1]) + words.KEYS + keys[-1]

    def bare(self, values: Sequence[str]) -> str:
        """The bare answer: values joined by commas, yes / no / absent in words."""
        words = self._words
        return words.LIST.join(words.WORDS.get(value, value) for value in values)

    def answer(self, answer: Answer, sentence: str, *, worked: bool) -> str:
        """What the assistant says: steps, a sentence and the bare answer, or the sentence alone."""
        bare = self.bare(answer.values)
        said = sentence.format(answer=bare)
        if not worked:
            return said
        steps = [self._words.STEPS[step.kind].format(*step.parts) for step in answer.steps]
        return "\n".join([*steps, said, bare])
