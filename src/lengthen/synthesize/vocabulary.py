"""Words from which tables and planted facts are drawn, cut into two splits that share none of them."""

from __future__ import annotations

import functools
import importlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Split = Literal["train", "test"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Number:
    """A numeric column's title and the range of its values (integers, or cents for two-decimal numbers)."""

    title: str
    low: int
    high: int


@dataclass(frozen=True)
class Category:
    """A category column's title and all values that it may take."""

    title: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Noun:
    """What a table lists: `item` with the table's name `Items`."""

    one: str
    many: str


@dataclass(frozen=True)
class Vocabulary:
    """Words of one language and one split."""

    language: str
    nouns: tuple[Noun, ...]
    linked: tuple[Noun, ...]
    """What a second table lists; its `one` is also the title of the column that refers to it."""
    references: tuple[str, ...]
    """Titles of columns that refer to another row of the same table."""
    integers: tuple[Number, ...]
    decimals: tuple[Number, ...]
    dates: tuple[str, ...]
    categories: tuple[Category, ...]
    people: tuple[str, ...]
    """Titles of columns of person names."""
    places: tuple[str, ...]
    firsts: tuple[str, ...]
    """First words of two-word keys."""
    lasts: tuple[str, ...]
    given: tuple[str, ...]
    family: tuple[str, ...]
    heads: tuple[str, ...]
    """Beginnings of invented place names."""
    tails: tuple[str, ...]
    key_titles: tuple[str, ...]
    joint: str
    """Between the words of a person's name: a space, or nothing in Chinese."""

    def key_title(self, rng: random.Random) -> str:
        return rng.choice(self.key_titles)

    @functools.cached_property
    def people_names(self) -> tuple[str, ...]:
        """Every given name with every family name, in the language's order."""
        if self.joint:
            return tuple(f"{first}{self.joint}{last}" for first in self.given for last in self.family)
        return tuple(f"{last}{first}" for first in self.given for last in self.family)

    @functools.cached_property
    def place_names(self) -> tuple[str, ...]:
        return tuple(head + tail for head in self.heads for tail in self.tails)


def cut(items: Sequence[Item], split: Split) -> tuple[Item, ...]:
    """Every fourth item belongs to the test split."""
    return tuple(item for index, item in enumerate(items) if (index % 4 == 3) == (split == "test"))


def cut_wordings(wordings: Sequence[Item], split: Split) -> tuple[Item, ...]:
    """The last wording of each list is the test split's."""
    return tuple(wordings[:-1]) if split == "train" else (wordings[-1],)


_CACHE: dict[tuple[str, Split], Vocabulary] = {}


def vocabulary(language: str, split: Split) -> Vocabulary:
    """The words of a language (`vocabulary_en`, `vocabulary_zh`) that belong to a split."""
    key = (language, split)
    if key not in _CACHE:
        words = importlib.import_module(f"lengthen.synthesize.vocabulary_{language}")
        pools = {name.lower(): cut(value, split) for name, value in vars(words).items() if name.isupper()}
        _CACHE[key] = Vocabulary(language=language, joint=words.joint, **pools)
    return _CACHE[key]
