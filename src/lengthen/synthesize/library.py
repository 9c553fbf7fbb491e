"""Stretches of real text, drawn from the documents of several sources and counted by the target model's tokenizer.

How much a source holds is estimated once, at the start, from a sample; where that is not plainly enough, all of it is
counted. So what cannot be made is refused before anything is.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from lengthen.common.errors import LengthenError
from lengthen.common.seeds import named_random
from lengthen.common.words import is_cjk
from lengthen.synthesize.query import Redraw
from lengthen.synthesize.texts import LONGEST_UNIT, Text, split_units
from lengthen.synthesize.tokens import Counter

_SAMPLES, _SAMPLED = 32, 2000
"""Places of a shelf that are looked at, and characters of each."""
_PLENTY = 2.0
"""An estimate over so many times the need is not counted exactly."""
_DRAWS = 20
OTHER_LANGUAGE = "document_in_other_language"


@dataclass(frozen=True)
class Stretch:
    """Consecutive text of one document, or of several when one is too short.

    units: sentences (in code: lines) whose concatenation is the text.
    ends: tokens of the first n units, for n from 0 to all of them.
    """

    ids: tuple[str, ...]
    units: list[str]
    ends: list[int]
    comment: str


@dataclass(frozen=True)
class Shelf:
    """Texts of one source that may follow one another: prose, or code with one kind of comment.

    holds: tokens of the texts by their language. characters: characters of a token.
    """

    texts: list[Text]
    holds: dict[str, float]
    characters: float

    @property
    def tokens(self) -> float:
        return sum(self.holds.values())

    def within(self, language: str) -> float:
        """Tokens in one language, or ("") in any."""
        return self.holds.get(language, 0.0) if language else self.tokens

    @cached_property
    def _largest_first(self) -> list[int]:
        return sorted(range(len(self.texts)), key=lambda place: -self.texts[place].size)

    @cached_property
    def _sizes(self) -> tuple[list[int], list[int]]:
        """(negative sizes, sums of sizes) of the texts, the largest first."""
        sizes = [self.texts[place].size for place in self._largest_first]
        return [-size for size in sizes], list(accumulate(sizes))

    def long(self, tokens: float) -> int:
        """How many texts are at least so long, judged by their size."""
        return bisect_right(self._sizes[0], -tokens * self._sizes[1][-1] / max(1.0, self.tokens))

    def weight(self, count: int) -> int:
        """Size of the `count` largest texts together."""
        return self._sizes[1][count - 1] if count else 0

    def pick(self, rng: random.Random, count: int) -> int:
        """Place of one of the `count` largest texts, by size."""
        return self._largest_first[bisect_left(self._sizes[1], rng.randrange(self.weight(count)) + 1)]


class Library:
    """The documents of several sources, each source drawn with equal chances, each place in it too.

    Args:
        sources: names and texts of the sources.
        most_tokens: the longest stretch that will be drawn.
        languages: languages that will be asked for (`en`, `zh`); none when it does not matter. Sources with too little
            text in any of them are `left_out` (names and numbers of documents).

    Raises:
        LengthenError: a source with too little text for the longest stretch; no source with enough in these languages.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, Sequence[Text]]],
        counter: Counter,
        most_tokens: int,
        languages: Iterable[str] = (),
    ) -> None:
        self.counter, self.most_tokens = counter, most_tokens
        self.wanted = list(dict.fromkeys(languages)) or [""]
        self.sources: list[list[Shelf]] = []
        self.left_out: dict[str, int] = {}
        for name, texts in sources:
            kinds: dict[str, list[Text]] = {}
            for text in texts:
                kinds.setdefault(text.comment, []).append(text)
            shelves = [self._shelf(kind) for kind in kinds.values()]
            if max(shelf.tokens for shelf in shelves) <= most_tokens:
                raise self._too_little(f"documents: '{name}' holds", max(shelf.tokens for shelf in shelves))
            if any(shelf.within(language) > most_tokens for shelf in shelves for language in self.wanted):
                self.sources.append(shelves)
            else:
                self.left_out[name] = len(texts)
        if not self.sources:
            raise self._too_little("No source of documents holds more than", most_tokens)

    @property
    def languages(self) -> list[str]:
        """Those of the wanted languages in which there is text enough."""
        shelves = [shelf for shelves in self.sources for shelf in shelves]
        return [language for language in self.wanted if any(s.within(language) > self.most_tokens for s in shelves)]

    def draw(self, rng: random.Random, tokens: int, language: str = "", redrawn: Tally[str] | None = None) -> Stretch:
        """A stretch of somewhat more than `tokens` tokens that begins at a sentence (line) start.

        A document that is long enough is taken where there is one; otherwise (or where those are in other languages)
        documents follow one another in the order of their source until there are enough tokens.

        Args:
            tokens: not over the library's `most_tokens`.
            language: only text in this language; what was drawn in another is counted in `redrawn`.

        Raises:
            Redraw: many places were drawn, and none was in the language.
        """
        redrawn = Tally() if redrawn is None else redrawn
        for turn in range(_DRAWS if language else 1):
            stretch = self._drawn(rng, tokens, language, redrawn, whole=turn == _DRAWS - 1)
            if stretch is not None and (not language or language_of("".join(stretch.units)) == language):
                return stretch
            redrawn[OTHER_LANGUAGE] += stretch is not None
        raise Redraw(f"no_text_in_{language}" if language else "too_little_text")

    def _drawn(
        self, rng: random.Random, tokens: int, language: str, redrawn: Tally[str], *, whole: bool
    ) -> Stretch | None:
        """Part of a long document where there is one, unless it shall be `whole` documents."""
        sources = [[shelf for shelf in shelves if shelf.within(language) > tokens] for shelves in self.sources]
        sources = [shelves for shelves in sources if shelves]
        if not sources:
            return None
        shelves = rng.choice(sources)
        long = [0 if whole else shelf.long(1.2 * tokens) for shelf in shelves]
        counts = long if any(long) else [len(shelf.texts) for shelf in shelves]
        number = rng.choices(range(len(shelves)), [shelf.weight(count) for shelf, count in zip(shelves, counts)])[0]
        shelf, place = shelves[number], shelves[number].pick(rng, counts[number])
        if any(long) and language and language_of(shelf.texts[place].read()) != language:
            redrawn[OTHER_LANGUAGE] += 1
            return None
        stretch = self._inside(rng, shelf, shelf.texts[place], tokens) if any(long) else None
        # A text may hold fewer tokens than its size promises.
        return stretch or self._following(shelf, place, tokens, language, redrawn)

    def _inside(self, rng: random.Random, shelf: Shelf, text: Text, tokens: int) -> Stretch | None:
        """Whole units from a random place of a long text; only what is taken is split and counted."""
        whole, place = text.read(), rng.random()
        room = int(1.1 * tokens * shelf.characters) + 2 * LONGEST_UNIT
        while True:
            begin = int(place * max(0, len(whole) - room))
            units = split_units(whole[begin : begin + room], code=bool(text.comment))
            # The first is cut in the middle, and so is the last.
            units = units[int(begin > 0) : len(units) - int(begin + room < len(whole))]
            ends = self._ends(units)
            if ends[-1] > tokens:
                return Stretch((text.id,), units, ends, text.comment)
            if room >= len(whole):
                return None
            room = int(1.3 * room)

    def _following(self, shelf: Shelf, place: int, tokens: int, language: str, redrawn: Tally[str]) -> Stretch | None:
        """Whole documents from this one on, those in another language left out."""
        units: list[str] = []
        ids: list[str] = []
        ends = [0]
        for step in range(len(shelf.texts)):
            text = shelf.texts[(place + step) % len(shelf.texts)]
            whole = text.read()
            if language and language_of(whole) != language:
                redrawn[OTHER_LANGUAGE] += 1
                continue
            part = _units_of(text, whole)
            units += part
            ids.append(text.id)
            ends += [ends[-1] + end for end in self._ends(part)[1:]]
            if ends[-1] > tokens:
                return Stretch(tuple(ids), units, ends, text.comment)
        return None

    def _ends(self, units: Sequence[str]) -> list[int]:
        return [0, *accumulate(self.counter.each(units))]

    def _shelf(self, texts: list[Text]) -> Shelf:
        shelf = self._estimate(texts)
        if any(0 < shelf.within(language) <= _PLENTY * self.most_tokens for language in self.wanted):
            return Shelf(texts, self._counts(texts), shelf.characters)
        return shelf

    def _estimate(self, texts: list[Text]) -> Shelf:
        """What the texts hold, from places drawn evenly over them."""
        rng = named_random(0, "sample", texts[0].comment)
        weights = [text.size for text in texts]
        holds: dict[str, float] = {}
        characters = counted = 0
        for text in rng.choices(texts, weights, k=_SAMPLES):
            whole = text.read()
            begin = rng.randrange(max(1, len(whole) - _SAMPLED))
            piece = whole[begin : begin + _SAMPLED]
            tokens = self.counter.text(piece)
            characters, counted = characters + len(piece), counted + tokens
            # Drawn by size, so that the mean of tokens / size is that of the whole shelf.
            share = tokens * len(whole) / max(1, len(piece)) / text.size / _SAMPLES
            language = language_of(piece)
            holds[language] = holds.get(language, 0.0) + share * sum(weights)
        return Shelf(texts, holds, characters / max(1, counted))

    def _counts(self, texts: list[Text]) -> dict[str, float]:
        """All tokens by language, as `draw` will count them."""
        holds: dict[str, float] = {}
        for text in texts:
            whole = text.read()
            language = language_of(whole)
            holds[language] = holds.get(language, 0.0) + sum(self.counter.each(_units_of(text, whole)))
        return holds

    def _too_little(self, holds: str, tokens: float) -> LengthenError:
        spoken = " or ".join(language for language in self.wanted if language and self.left_out)
        return LengthenError(
            f"{holds} {tokens:,.0f} tokens of text{spoken and f' in {spoken}'}; the longest conversation takes more "
            f"than {self.most_tokens:,} (max_tokens).",
            fix="lower max_tokens, or give more documents" + (spoken and ", or allow more languages"),
        )


def _units_of(text: Text, whole: str) -> list[str]:
    """A whole document as one of several that follow one another."""
    return split_units(whole.strip() + "\n\n", code=bool(text.comment))


def language_of(text: str) -> str:
    """`zh` where most words are single signs, as in Chinese, else `en`; judged by some places all over the text."""
    step = max(500, len(text) // 8)
    return "zh" if is_cjk("\n".join(text[begin : begin + 500] for begin in range(0, len(text), step))[:4000]) else "en"
