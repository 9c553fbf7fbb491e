"""Documents that are read only when they are drawn, and their sentences or lines."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_COMMENTS = {".py": "# ", ".sh": "# ", ".pyi": "# ", ".c": "// ", ".h": "// ", ".cpp": "// ", ".js": "// ",
             ".ts": "// ", ".java": "// ", ".go": "// ", ".rs": "// ", ".sql": "-- ", ".lua": "-- "}  # fmt: skip
_TEXT = (".txt", ".md", ".rst", ".markdown", ".text")
_SENTENCE_END = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+|(?<=[。！？])[”’」』）]*""")
LONGEST_UNIT = 400
"""Characters; what has no sentence end for so long is cut at a line end or a space."""


@dataclass(frozen=True)
class Text:
    """A document that can be read.

    size: its bytes, or at least in proportion to them within a source (a line of JSON holds more than the text).
    comment: how a line of comment begins in it; "" in prose.
    """

    id: str
    size: int
    read: Callable[[], str]
    comment: str = ""


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
    while len(unit) > LONGEST_UNIT:
        cut = max(unit.rfind("\n", 0, LONGEST_UNIT), unit.rfind("\n\n", 0, LONGEST_UNIT))
        cut = cut if cut > 0 else unit.rfind(" ", 0, LONGEST_UNIT)
        cut = cut + 1 if cut > 0 else LONGEST_UNIT
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
