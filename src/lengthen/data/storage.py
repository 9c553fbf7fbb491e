"""Finding and opening input files, local or remote (fsspec), plain, gzip or Zstandard."""

from __future__ import annotations

import fnmatch
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from lengthen.common.errors import LengthenError

READ_ERRORS = (OSError, EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file found: its path or URL, its size in bytes, and its name below the folder that was searched."""

    path: str
    size: int
    name: str


def is_remote(path: str) -> bool:
    return "://" in path and not path.startswith("file://")


def find_files(path: str, patterns: Sequence[str], key: str) -> tuple[list[FileRef], list[str]]:
    """Files of a path, sorted by name, and the links that lead in a circle.

    Args:
        path: a file (taken whatever its name), a folder (searched, names matched against `patterns`), or a URL.
        key: key path in the recipe, for the error when there is nothing.
    """
    found, loops = _remote(path, patterns) if is_remote(path) else _local(Path(path).expanduser(), patterns)
    if not found:
        here = is_remote(path) or Path(path).expanduser().exists()
        raise LengthenError(
            f"{key}: {path} has no files named {', '.join(patterns)}." if here else f"{key}: there is no {path}.",
            fix="check the path" + (", or set other `patterns`" if here else ""),
        )
    return sorted(found, key=lambda ref: ref.name), loops


def _local(path: Path, patterns: Sequence[str]) -> tuple[list[FileRef], list[str]]:
    if path.is_file():
        return [FileRef(str(path), path.stat().st_size, path.name)], []
    found, loops = [], []
    visited = {os.path.realpath(path)}
    for folder, folders, names in os.walk(path, followlinks=True):
        keep = []
        for name in sorted(folders):
            real = os.path.realpath(os.path.join(folder, name))
            # A link to a folder that was visited would repeat its files, or never end.
            if real in visited:
                loops.append(os.path.join(folder, name))
            elif not name.startswith("."):
                visited.add(real)
                keep.append(name)
        folders[:] = keep
        for name in names:
            file = Path(folder, name)
            inside = file.relative_to(path).as_posix()
            if not name.startswith(".") and _matches(inside, patterns) and file.is_file():
                found.append(FileRef(str(file), file.stat().st_size, inside))
    return found, loops


def _remote(path: str, patterns: Sequence[str]) -> tuple[list[FileRef], list[str]]:
    import fsspec

    try:
        fs, inner = fsspec.url_to_fs(path)
        entries = fs.find(inner, detail=True)
    except (ImportError, OSError, ValueError) as error:
        raise LengthenError(
            f"{path} cannot be listed: {error}.",
            fix="check the address and your rights; some need a package of fsspec's",
        ) from error
    entries = cast("dict[str, dict]", entries)
    inner = inner.rstrip("/")
    whole = len(entries) == 1 and next(iter(entries)).rstrip("/") == inner
    return [
        FileRef(fs.unstrip_protocol(name), int(info.get("size") or 0), name.removeprefix(inner).lstrip("/") or name)
        for name, info in entries.items()
        if whole or _matches(name.removeprefix(inner).lstrip("/"), patterns)
    ], []


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """A pattern with a slash speaks of the whole path below the folder, any other of the file's name."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatch(path if "/" in pattern else name, pattern) for pattern in patterns)


def open_bytes(path: str) -> IO[bytes]:
    """The file's content, decompressed by its ending (.gz, .zst). A cut-off stream raises one of READ_ERRORS."""
    raw = _open_raw(path)
    if path.endswith(".gz"):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if path.endswith((".zst", ".zstd")):
        import pyarrow as pa

        # python-zstandard ends a truncated stream silently; pyarrow says that it is truncated.
        return cast("IO[bytes]", io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), 2**16))
    return raw


def _open_raw(path: str) -> IO[bytes]:
    if not is_remote(path):
        return open(path, "rb")
    import fsspec

    return cast("IO[bytes]", fsspec.open(path, "rb").open())  # pyright: ignore[reportAttributeAccessIssue]


def join(folder: str, name: str) -> str:
    """The path or URL of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def read_bytes(path: str, limit: int = -1) -> bytes:
    """The first `limit` bytes of a file (-1: all), local or remote, as they are."""
    with _open_raw(path) as file:
        return file.read(limit)


def download(path: str, folder: Path, limit: int) -> Path:
    """A copy of a remote file, as it is, under its own name in a local folder.

    Raises:
        ValueError: it has more than `limit` bytes.
        LengthenError: it cannot be written here (a full disk is no fault of the file).
        One of READ_ERRORS: it cannot be read.
    """
    target = folder / path.rstrip("/").rsplit("/", 1)[-1]
    with _open_raw(path) as source, open(target, "wb") as file:
        size = 0
        while block := source.read(2**20):
            size += len(block)
            if size > limit:
                raise ValueError(f"it has more than {limit:,} bytes")
            try:
                file.write(block)
                file.flush()  # a full disk must show here, not when the file is closed
            except OSError as error:
                raise LengthenError(
                    f"{path} cannot be copied to {folder}: {error}.", fix="free space there, or set TMPDIR elsewhere"
                ) from error
    return target


def is_splittable(path: str) -> bool:
    """A byte range of the file can be read on its own."""
    return not path.endswith((".gz", ".zst", ".zstd"))


def read_lines(path: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that begin in bytes [start, end). Ranges that touch share no line and miss none."""
    with open_bytes(path) as file:
        offset = 0
        if start:
            # Whether `start` begins a line is known only from the byte before it.
            file.seek(start - 1)
            offset = start - 1 + len(file.readline())
        while end is None or offset < end:
            line = file.readline()
            if not line:
                return
            yield offset, line
            offset += len(line)


def line_number(path: str, offset: int) -> int:
    """Number of the line at a byte offset of the (decompressed) file; reads up to there, so only for errors."""
    count, left = 1, offset
    with open_bytes(path) as file:
        while left > 0 and (block := file.read(min(left, 2**20))):
            count += block.count(b"\n")
            left -= len(block)
    return count
