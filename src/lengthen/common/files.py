"""Files that are whole or absent: atomic writes, hashes, JSON lines that survive a kill."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError


def cache_folder(*parts: str) -> Path:
    """`$LENGTHEN_CACHE`, else `$XDG_CACHE_HOME/lengthen`, else `~/.cache/lengthen`; made if it is not there."""
    base = os.environ.get("LENGTHEN_CACHE")
    root = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lengthen"
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LengthenError(
            f"The cache folder {folder} cannot be made: {error.strerror}.",
            fix="set LENGTHEN_CACHE to a folder that you can write to",
        ) from error
    return folder


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside the target and rename, so that a kill leaves the old file or the new one, never half."""
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explain_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of readable JSON, keys in the order given."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """JSON of a file, with the file named when it is broken."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise LengthenError(
            f"{path} is not JSON: {error}.", fix="delete the file; the stage that writes it makes it anew"
        ) from error


def append_json_line(path: Path, value: Any) -> None:
    """Add one line; O_APPEND and one write keep lines whole when several processes write."""
    line = json.dumps(value, ensure_ascii=False, default=str) + "\n"
    with explain_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(line.encode())


def read_json_lines(path: Path, *, repair: bool = False) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file. With `repair`, a last line without its newline (a kill while writing) is cut off
    the file, so that appending goes on cleanly; any other broken line is an error with its number."""
    if not path.exists():
        return
    if repair:
        _cut_torn_line(path)
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise LengthenError(f"{path}, line {number} is not JSON: {error}.") from error


def _cut_torn_line(path: Path) -> None:
    with open(path, "r+b") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


_HASHES: dict[tuple[str, int, int], str] = {}


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes; remembered in this process by path, size and modification time."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _HASHES:
        with open(path, "rb") as file:
            _HASHES[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _HASHES[key]


def sha256_tree(path: Path) -> str:
    """SHA-256 over the relative names and contents of all files of a folder (or of one file). Hidden files, which
    hold locks and part-written files, do not count."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def explain_disk(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder or missing rights into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LengthenError(
                f"The disk is full: {path} could not be written.",
                fix="free some space and run the same command again; it goes on from what is saved",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise LengthenError(
                f"{path} cannot be written: {error.strerror}.",
                fix="choose another folder with --out, or change the folder's rights",
            ) from error
        raise
