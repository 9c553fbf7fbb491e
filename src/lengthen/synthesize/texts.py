"""Stretches of real text to plant facts in: any place of any document, read only when it is drawn."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from lengthen.common.errors import LengthenError

_COMMENTS = {".py": "# ", ".sh": "# ", ".pyi": "# ", ".c": "// ", ".h": "// ", ".cpp": "// ", ".js": "// ",
             ".ts": "// ", ".java": "// ", ".go": "// ", ".rs": "// ", ".sql": "-- ", ".lua": "-- "}  # fmt: skip
_TEXT = (".txt", ".md", ".rst", ".markdown", ".text")
_SENTENCE_END = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+|(?<=[。！？])[”’」』）]*""")
_LONGEST_UNIT = 400
"""Characters; what has no sentence end for so long is cut at a line end or a space."""


@dataclass(frozen=True)
class Text:
    """A document that can be read. comment: how a line of comment begins in it; "" in prose."""

    id: str
    size: int
    read: Callable[[], str]
    comment: str = ""


@dataclass(frozen=True)
class Stretch:
    """Consecutive text of one document, or of several when one is too short. units: sentences (in code: lines) whose
    concatenation is the text."""

    ids: tuple[str, ...]
    units: list[str]
    comment: str


class Library:
    """The documents of several sources, each source drawn with equal chances, each place in it too."""

    def __init__(self, sources: Sequence[Sequence[Text]]) -> None:
        self.sources = [list(source) for source in sources]
        self.ends = [list(accumulate(text.size for text in source)) for source in self.sources]

    def draw(self, rng: random.Random, characters: int) -> Stretch:
        """A stretch of about `characters` characters that begins at a sentence (line) start.

        A document that is long enough is taken where there is one; otherwise documents follow one another in the
        order of their source until there are enough characters.

        Raises:
            LengthenError: the source holds less text than that.
        """
        number = rng.randrange(len(self.sources))
        source = self.sources[number]
        long = [text for text in source if text.size >= 1.2 * characters]
        if long:
            text = rng.choices(long, weights=[text.size for text in long])[0]
            return Stretch((text.id,), _somewhere(rng, text.read(), characters, bool(text.comment)), text.comment)
        if self.ends[number][-1] < characters:
            raise LengthenError(
                f"The documents hold {self.ends[number][-1]:,} bytes of text; one conversation needs {characters:,}.",
                fix="lower max_tokens, or give more documents",
            )
        place = rng.choices(range(len(source)), cum_weights=self.ends[number])[0]
        units, ids, comment = [], [], source[place].comment
        have = 0
        for step in range(len(source)):
            text = source[(place + step) % len(source)]
            if text.comment != comment:
                continue
            part = split_units(text.read().strip() + "\n\n", code=bool(comment))
            units += part
            ids.append(text.id)
            have += sum(map(len, part))
            if have >= characters:
                break
        return Stretch(tuple(ids), units, comment)


def _somewhere(rng: random.Random, text: str, characters: int, code: bool) -> list[str]:
    """Whole units from a random place of a long text; only what is taken is split."""
    begin = rng.randrange(max(1, len(text) - characters))
    end = begin + characters + 2 * _LONGEST_UNIT
    units = split_units(text[begin:end], code=code)
    # The first is cut in the middle, and so is the last.
    return units[int(begin > 0) : len(units) - int(end < len(text))]


def split_units(text: str, *, code: bool) -> list[str]:
    """Sentences of prose (with the white space behind them), lines of code. Their concatenation is the text."""
    if code:
        return [line for line in text.splitlines(keepends=True) if line]
    units = []
    begin = 0
    for match in _SENTENCE_END.finditer(text):
        units.append(text[begin : match.end()])
        begin = match.end()
    if begin < len(text):
        units.append(text[begin:])
    return [piece for unit in units if unit for piece in _pieces(unit)]


def _pieces(unit: str) -> list[str]:
    pieces = []
    while len(unit) > _LONGEST_UNIT:
        cut = max(unit.rfind("\n", 0, _LONGEST_UNIT), unit.rfind("\n\n", 0, _LONGEST_UNIT))
        cut = cut if cut > 0 else unit.rfind(" ", 0, _LONGEST_UNIT)
        cut = cut + 1 if cut > 0 else _LONGEST_UNIT
        pieces.append(unit[:cut])
        unit = unit[cut:]
    return [*pieces, unit]


def clean(text: str) -> str:
    """Line ends of one kind, and no characters that a terminal or tokenizer would not expect."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").replace("\ufeff", "")


@functools.lru_cache(maxsize=64)
def read_file(path: str) -> str:
    """A text file; bytes that are no UTF-8 are read as Latin-1, the usual case in old books."""
    data = Path(path).read_bytes()
    try:
        return clean(data.decode("utf-8"))
    except UnicodeDecodeError:
        return clean(data.decode("latin-1"))


def file_text(path: Path, id: str) -> Text:
    return Text(id, path.stat().st_size, functools.partial(read_file, str(path)), _COMMENTS.get(path.suffix, ""))


def is_text(path: Path) -> bool:
    return path.suffix in _TEXT or path.suffix in _COMMENTS
