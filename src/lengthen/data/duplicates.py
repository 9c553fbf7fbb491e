"""Exact and near duplicates: fingerprints while texts are at hand, decisions over all documents before mixing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lengthen.common.files import explain_disk
from lengthen.data.document import Document
from lengthen.recipe.sources import Filters

if TYPE_CHECKING:
    from datatrove.pipeline.dedup.minhash import MinhashConfig

_BLOCK = 4096  # shingles hashed at once: 4,096 x 112 hashes of 8 bytes are 3.7 MB, whatever the document's length
_SIMPLE = re.compile(r"\w+")


def minhash_config() -> MinhashConfig:
    """datatrove's setting: 5-grams, 14 buckets of 8 hashes, 64-bit xxhash (similarity of about 0.72 and more)."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    return MinhashConfig()


@lru_cache(maxsize=1)
def _parameters() -> tuple[np.ndarray, np.ndarray, int]:
    """datatrove's permutations for this configuration, drawn as its signature step draws them."""
    config = minhash_config()
    prime = np.uint64((1 << 61) - 1)
    generator = np.random.RandomState(config.seed)
    size = (1, config.num_buckets * config.hashes_per_bucket)
    a = generator.randint(1, prime, dtype=np.uint64, size=size)
    return a, generator.randint(0, prime, dtype=np.uint64, size=size), config.num_buckets


def shingles(text: str, n: int = 5) -> Iterator[np.ndarray]:
    """Hashes (uint64) of the runs of n lower-case words, in blocks; one of the whole text when it has fewer words."""
    import xxhash

    digest = xxhash.xxh64_intdigest
    words: list[str] = []
    block: list[int] = []
    for match in _SIMPLE.finditer(text):
        words.append(match[0].lower())
        if len(words) >= n:
            block.append(digest(" ".join(words[-n:]).encode()))
            if len(block) == _BLOCK:
                yield np.array(block, dtype=np.uint64)
                words, block = words[-n:], []
    if len(words) < n and not block and words:
        block = [digest(" ".join(words).encode())]
    if block:
        yield np.array(block, dtype=np.uint64)


def signature(text: str) -> np.ndarray | None:
    """MinHash signature (buckets, hashes per bucket) uint64 as datatrove computes it, in bounded memory; None for a
    text without words."""
    a, b, buckets = _parameters()
    prime = np.uint64((1 << 61) - 1)
    least = None
    for block in shingles(text):
        hashes = ((block[:, None] * a + b) % prime).min(axis=0)
        least = hashes if least is None else np.minimum(least, hashes)
    return None if least is None else least.reshape(buckets, -1)


class Fingerprints:
    """Collects one part's fingerprints: `NNNNN.exact.npy` (n, 2) uint64, and datatrove's sorted signature files."""

    def __init__(self, folder: Path, part: int, filters: Filters) -> None:
        self.folder, self.part, self.filters = folder, part, filters
        self._exact: list[tuple[int, int]] = []
        self._near: list[tuple[int, np.ndarray]] = []
        self._count = 0

    def add(self, document: Document) -> None:
        """Documents in the order in which they are kept."""
        import xxhash

        text = document.text
        if document.messages is not None:
            text = "\n".join(f"{m['role']}: {m['content']}" for m in document.messages)
        if self.filters.exact_duplicates:
            value = xxhash.xxh3_128_intdigest(text.encode())
            self._exact.append((value >> 64, value & (2**64 - 1)))
        if self.filters.near_duplicates:
            found = signature(text)
            if found is not None:
                self._near.append((self._count, found))
        self._count += 1

    def close(self) -> None:
        with explain_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.filters.exact_duplicates:
                exact = np.array(self._exact, dtype=np.uint64).reshape(-1, 2)
                _save(self.folder / f"{self.part:05d}.exact.npy", exact)
            if self.filters.near_duplicates:
                self._write_signatures()

    def _write_signatures(self) -> None:
        config = minhash_config()
        kind = np.dtype([(f"field{i + 1}", "<u8") for i in range(config.hashes_per_bucket)] + [("document", "<u4")])
        for bucket in range(config.num_buckets):
            records = np.zeros(len(self._near), dtype=kind)
            for row, (number, found) in enumerate(self._near):
                records[row] = (*found[bucket].tolist(), number)
            records.sort(order=kind.names)
            folder = self.folder / f"bucket_{bucket:03d}"
            folder.mkdir(exist_ok=True)
            part = folder / f".{self.part:05d}.part"
            part.write_bytes(records.tobytes())
            part.replace(folder / f"{self.part:05d}.minhash.sig")


def _save(path: Path, array: np.ndarray) -> None:
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        np.save(file, array)
    part.replace(path)


def exact_duplicates(folder: Path, counts: list[int]) -> np.ndarray:
    """True for each document (all parts, in order) whose text an earlier one has.

    Args:
        counts: documents of each part; parts without fingerprints have no duplicates.
    """
    keys, owners, offset = [], [], 0
    for part, count in enumerate(counts):
        path = folder / f"{part:05d}.exact.npy"
        if path.exists() and count:
            keys.append(np.load(path))
            owners.append(np.arange(offset, offset + count))
        offset += count
    repeated = np.zeros(offset, dtype=bool)
    if keys:
        _, first = np.unique(np.concatenate(keys), axis=0, return_index=True)
        owner = np.concatenate(owners)
        repeated[owner] = True
        repeated[owner[first]] = False
    return repeated


def near_duplicates(folder: Path, counts: list[int]) -> np.ndarray:
    """True for each document that is dropped as similar to another: all but one of each cluster, by datatrove's bucket
    and cluster steps over the signature files."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster

    similar = np.zeros(sum(counts), dtype=bool)
    config = minhash_config()
    if not any(folder.glob("bucket_*/*.minhash.sig")):
        return similar
    pairs, clusters = folder / "pairs", folder / "clusters"
    for bucket in range(config.num_buckets):
        step = MinhashDedupBuckets(str(folder), str(pairs), config=config, lines_to_buffer=1000)
        for _ in step.run(None, rank=bucket, world_size=config.num_buckets) or ():
            pass
    for old in clusters.glob("*.remove"):
        old.unlink()
    for _ in MinhashDedupCluster(str(pairs), str(clusters), config=config, lines_to_buffer=1000).run(None, 0, 1) or ():
        pass
    offsets = np.cumsum([0, *counts])
    for file in sorted(clusters.glob("*.remove")):
        similar[offsets[int(file.stem)] + np.fromfile(file, dtype="<u4")] = True
    return similar
