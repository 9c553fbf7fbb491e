"""Tokens between reading and packing: one flat file per task, with the lengths of its documents."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lengthen.common.files import explain_disk, read_json, write_json

TRAINED, UNIT = 1, 2
"""Bits of a mask's bytes: the token is trained; the token begins a unit (conversations only)."""


class PartWriter:
    """Writes one task's documents: `NNNNN.tokens` (int32), `.mask` (uint8 of bits, when there are masks), `.npz`
    (arrays with one entry a document) and, last, `.json` (counts). A part without its `.json` does not exist."""

    def __init__(self, folder: Path, part: int, with_mask: bool) -> None:
        self.folder, self.part = folder, part
        folder.mkdir(parents=True, exist_ok=True)
        self._tokens = open(self._file(".tokens", True), "wb")  # noqa: SIM115
        self._mask = open(self._file(".mask", True), "wb") if with_mask else None  # noqa: SIM115
        self._lengths: list[int] = []
        self._domains: list[str] = []
        self._extra: dict[str, list[Any]] = {}
        self._length = 0

    def add(self, pieces: Iterable[np.ndarray], mask: np.ndarray | None = None) -> int:
        """Write one document's ids, given in pieces. Returns its length; `keep` or `forget` must follow."""
        length = 0
        for piece in pieces:
            self._tokens.write(np.ascontiguousarray(piece, dtype="<i4").data)
            length += len(piece)
        if self._mask is not None:
            self._mask.write(
                np.ones(length, np.uint8).data if mask is None else np.ascontiguousarray(mask, np.uint8).data
            )
        self._length = length
        return length

    def keep(self, domain: str, **extra: Any) -> None:
        """The document just written stays; `extra` values become arrays (the same names for every document)."""
        self._lengths.append(self._length)
        self._domains.append(domain)
        for name, value in extra.items():
            self._extra.setdefault(name, []).append(value)

    def forget(self) -> None:
        """Take the document just written back."""
        for file, width in ((self._tokens, 4), (self._mask, 1)):
            if file is not None:
                file.seek(-self._length * width, os.SEEK_END)
                file.truncate()

    def close(self, record: dict[str, Any]) -> None:
        """Make the part whole. `record`: counts and drops for the report."""
        names = sorted(set(self._domains))
        where = {name: number for number, name in enumerate(names)}
        arrays = {name: np.array(values) for name, values in self._extra.items()}
        arrays["length"] = np.array(self._lengths, dtype=np.int64)
        arrays["domain"] = np.array([where[d] for d in self._domains], dtype=np.int32)
        for file in (self._tokens, self._mask):
            if file is not None:
                with explain_disk(self.folder):
                    file.flush()
                    os.fsync(file.fileno())
                    file.close()
        with explain_disk(self.folder), open(self._file(".npz", True), "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        for suffix in (".tokens", ".npz", *([".mask"] if self._mask else [])):
            os.replace(self._file(suffix, True), self._file(suffix))
        write_json(self._file(".json"), {**record, "domains": names, "documents": len(self._lengths)})

    def _file(self, suffix: str, part: bool = False) -> Path:
        return part_file(self.folder, self.part, suffix + (".part" if part else ""))


def part_file(folder: Path, part: int, suffix: str) -> Path:
    return folder / f"{part:05d}{suffix}"


class TokenStore:
    """All parts of a folder, read-only. Arrays have one entry a document, in the order of parts.

    length (int64): tokens. part (int32). begin (int64): first token inside the part's file. domain: index into
    `domains`. Further arrays by name through `extra`.
    """

    def __init__(self, folder: Path, parts: int) -> None:
        self.folder, self.parts = folder, parts
        self.records = [read_json(part_file(folder, part, ".json")) for part in range(parts)]
        self.domains: list[str] = sorted({name for record in self.records for name in record["domains"]})
        index = {name: number for number, name in enumerate(self.domains)}
        lengths, numbers, begins, domains = [], [], [], []
        self._loaded: list[dict[str, np.ndarray]] = []
        for part, record in enumerate(self.records):
            with np.load(part_file(folder, part, ".npz")) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            self._loaded.append(found)
            length = found.pop("length")
            lengths.append(length)
            numbers.append(np.full(len(length), part, dtype=np.int32))
            begins.append(np.cumsum(length) - length)
            names = np.array([index[name] for name in record["domains"]], dtype=np.int32)
            domain = found.pop("domain")
            domains.append(names[domain] if len(domain) else domain)
        self.length = np.concatenate(lengths)
        self.part = np.concatenate(numbers)
        self.begin = np.concatenate(begins)
        self.domain = np.concatenate(domains)

    def extra(self, name: str, default: float) -> np.ndarray:
        """A further array; documents of parts that lack it get the default."""
        counts = [record["documents"] for record in self.records]
        return np.concatenate([f.get(name, np.full(n, default)) for f, n in zip(self._loaded, counts)])


class TokenReader:
    """Reads tokens and masks of documents. Files are opened when first needed.

    Plain reads, not memory maps: rows draw documents from everywhere, so a map would soon hold the whole of every file
    in this process's memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[tuple[int, str], BinaryIO | None] = {}

    def tokens(self, part: int, begin: int, length: int) -> np.ndarray:
        found = self._read(part, ".tokens", "<i4", begin, length)
        return np.zeros(0, np.int32) if found is None else found

    def mask(self, part: int, begin: int, length: int) -> np.ndarray:
        """uint8 of bits (TRAINED, UNIT); TRAINED where the part has no masks."""
        found = self._read(part, ".mask", "u1", begin, length)
        return np.ones(length, np.uint8) if found is None else found

    def _read(self, part: int, suffix: str, dtype: str, begin: int, length: int) -> np.ndarray | None:
        key = (part, suffix)
        if key not in self._open:
            if len(self._open) >= 512:
                self.close()
            path = part_file(self.folder, part, suffix)
            self._open[key] = open(path, "rb", buffering=0) if path.exists() else None  # noqa: SIM115
        file = self._open[key]
        if file is None:
            return None
        file.seek(begin * np.dtype(dtype).itemsize)
        return np.fromfile(file, dtype, length)

    def close(self) -> None:
        for file in self._open.values():
            if file is not None:
                file.close()
        self._open.clear()
