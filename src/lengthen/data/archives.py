"""Reading archives without unpacking them to disk: no `../` path, link or bomb can do harm."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lengthen.data.document import Ledger

SUFFIXES = (".zip", ".whl", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tbz2", ".txz")
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive or folder: path with forward slashes, declared size, and its first `limit` bytes."""

    path: str
    size: int
    data: bytes


def is_archive(path: str | Path) -> bool:
    return str(path).lower().endswith(SUFFIXES)


def read_archive(path: Path, *, file_limit: int, total_limit: int, ledger: Ledger, name: str = "") -> Iterator[Member]:
    """Members in the archive's order. A member over `file_limit` comes with empty data (its size says so). `name`: what
    problems call the archive (default: its path).

    Unsafe paths (absolute, or with `..`) and links are counted and left out; more than `total_limit` unpacked bytes
    is a problem and ends the reading, as does a broken archive; what came before stays.
    """
    name = name or str(path)
    reader = _read_zip if zipfile.is_zipfile(path) else _read_tar
    total = 0
    try:
        for member in reader(path, file_limit, total_limit, ledger):
            total += member.size
            if total > total_limit:
                ledger.problem(
                    "archive_too_large",
                    name,
                    f"unpacks to more than {total_limit:,} bytes",
                    "raise max_repository_bytes if you trust it",
                )
                return
            if _unsafe(member.path):
                ledger.problem("unsafe_path", f"{name}, member {member.path}", "the path leaves the archive")
                continue
            yield member
    except BROKEN as error:
        ledger.problem("broken_archive", name, f"the archive is broken ({error or type(error).__name__})")


def _unsafe(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/") or (len(name) > 1 and name[1] == ":")


def _read_zip(path: Path, file_limit: int, total_limit: int, ledger: Ledger) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            name = info.filename.replace("\\", "/")
            if (info.external_attr >> 16) & 0o170000 == 0o120000:
                ledger.drops.add("file_link")
                continue
            if info.file_size > file_limit:
                yield Member(name, info.file_size, b"")
                continue
            with archive.open(info) as file:
                # The declared size may lie; never read more than the limit.
                data = file.read(file_limit + 1)
            yield Member(name, max(len(data), info.file_size), data if len(data) <= file_limit else b"")


def _read_tar(path: Path, file_limit: int, total_limit: int, ledger: Ledger) -> Iterator[Member]:
    with tarfile.open(path, mode="r:*") as archive:
        for info in archive:
            if info.isdir():
                continue
            if not info.isfile():
                ledger.drops.add("file_link")
                continue
            # Skipping a member still unpacks it, so a bomb is refused by its declared size before that.
            if info.size > min(file_limit, total_limit):
                yield Member(info.name, info.size, b"")
                continue
            file = archive.extractfile(info)
            yield Member(info.name, info.size, file.read() if file else b"")
