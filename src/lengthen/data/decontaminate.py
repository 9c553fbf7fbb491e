"""Removing documents that share word n-grams with evaluation texts. Suites write n-gram files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.files import explain_disk

_WORD = re.compile(r"\w+")
_BLOCK = 2**20  # characters hashed at once


def _word_hashes(text: str) -> np.ndarray:
    """64-bit hash of each lower-cased word, in order. Case, spacing and punctuation play no role."""
    import xxhash

    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(word.lower().encode()) for word in _WORD.findall(text)), dtype=np.uint64)


def ngram_hashes(words: np.ndarray, n: int) -> np.ndarray:
    """Hash of every run of n words, from the words' hashes (uint64). Empty when there are fewer than n."""
    count = len(words) - n + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        # A polynomial in an odd number modulo 2**64: order matters, and numpy does it on whole arrays.
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + words[offset : offset + count]
    return mixed


def write_ngrams(texts: Iterable[str], path: Path, n: int = 13) -> int:
    """Write the n-grams of texts (GPT-3's rule: 13 words) to a `.ngrams.npz` file; returns their number."""
    parts = [ngram_hashes(_word_hashes(text), n) for text in texts]
    grams = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)
    with explain_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with open(part, "wb") as file:
            np.savez(file, grams=grams, n=np.array(n))
        part.replace(path)
    return len(grams)


@dataclass(frozen=True)
class Ngrams:
    """N-grams of evaluation texts: n -> sorted hashes (uint64)."""

    by_size: dict[int, np.ndarray]

    def hits(self, text: str, enough: int = 1) -> int:
        """Number of different n-grams of the files that the text holds; counting may stop once `enough` are found."""
        found: dict[int, set[int]] = {n: set() for n in self.by_size}
        longest = max(self.by_size, default=1)
        carried = np.zeros(0, np.uint64)
        for block in _blocks(text):
            words = np.concatenate([carried, _word_hashes(block)])
            for n, grams in self.by_size.items():
                hashes = ngram_hashes(words, n)
                places = np.minimum(np.searchsorted(grams, hashes), max(0, len(grams) - 1))
                if len(grams) and len(hashes):
                    found[n].update(hashes[grams[places] == hashes].tolist())
            if sum(map(len, found.values())) >= enough:
                break
            carried = words[len(words) - (longest - 1) :] if longest > 1 else words[:0]
        return sum(map(len, found.values()))


def _blocks(text: str) -> Iterable[str]:
    """The text in blocks that end between words."""
    start = 0
    while start < len(text):
        stop = min(start + _BLOCK, len(text))
        while stop < len(text) and not text[stop].isspace() and stop < start + 2 * _BLOCK:
            stop += 1
        yield text[start:stop]
        start = stop


def load_ngrams(paths: Sequence[str]) -> Ngrams:
    """Files (or folders of files) named *.ngrams.npz."""
    by_size: dict[int, list[np.ndarray]] = {}
    for name in paths:
        path = Path(name).expanduser()
        files = sorted(path.rglob("*.ngrams.npz")) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise LengthenError(
                f"decontaminate: {name} has no n-gram files.", fix="name a .ngrams.npz file that an evaluation wrote"
            )
        for file in files:
            try:
                with np.load(file) as found:
                    by_size.setdefault(int(found["n"]), []).append(found["grams"])
            except (OSError, ValueError, KeyError) as error:
                raise LengthenError(f"decontaminate: {file} is no n-gram file ({error}).") from error
    return Ngrams({n: np.unique(np.concatenate(parts)) for n, parts in by_size.items()})
