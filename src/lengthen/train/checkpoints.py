"""Checkpoints that are whole or absent.

A checkpoint is written into `.part`, sealed with a list of its files, and renamed. Only a sealed folder whose files all
have their recorded size is ever loaded.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, write_json

SEAL = "sealed.json"
PART = ".part"
_YOUNG = {"row_content"}  # keys that older checkpoints do not have: those go on without them


def step_of(folder: Path) -> int:
    """`checkpoint-120` -> 120."""
    return int(folder.name.rsplit("-", 1)[-1])


def whole(folder: Path) -> bool:
    """Sealed, and every file as long as it was when sealed."""
    seal = folder / SEAL
    if not seal.exists():
        return False
    try:
        files = read_json(seal)["files"]
    except (LengthenError, KeyError, TypeError):
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files.items())


def checkpoints(store: Path) -> list[Path]:
    """Whole checkpoints of a folder, oldest first."""
    found = [p for p in store.glob("checkpoint-*") if p.is_dir() and p.name.rsplit("-", 1)[-1].isdigit() and whole(p)]
    return sorted(found, key=step_of)


def last_checkpoint(store: Path, identity: dict[str, Any]) -> Path | None:
    """The newest whole checkpoint, or None.

    Args:
        identity: what decides the run (steps, batch, seed, rows, optimizer ...); it must be as it was when saved.

    Raises:
        LengthenError: the newest checkpoint belongs to another run.
    """
    found = checkpoints(store)
    if not found:
        return None
    saved = read_json(found[-1] / SEAL).get("identity", {})
    known = {*saved, *identity} - (_YOUNG - {*saved} if saved else set())
    different = [key for key in known if saved.get(key) != identity.get(key)]
    if different:
        key = sorted(different)[0]
        raise LengthenError(
            f"{found[-1]} is a checkpoint of another run: {key} was {saved.get(key)!r} and is now "
            f"{identity.get(key)!r}" + (f" (and {len(different) - 1} more)." if len(different) > 1 else "."),
            why="going on from it would give neither run's result",
            fix=f"set it back, or delete {store} to train from the start",
        )
    return found[-1]


def seal_and_publish(part: Path, target: Path, identity: dict[str, Any]) -> None:
    """List the files of a finished folder, flush them to disk, and rename it to its place."""
    files = {p.relative_to(part).as_posix(): p for p in sorted(part.rglob("*")) if p.is_file() and p.name != SEAL}
    for path in files.values():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    write_json(part / SEAL, {"identity": identity, "files": {n: p.stat().st_size for n, p in files.items()}})
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)


def prune(store: Path, keep: int) -> None:
    """Delete all but the newest `keep` whole checkpoints, and whatever is half-written."""
    good = checkpoints(store)
    for folder in [p for p in store.glob("checkpoint-*") if p.is_dir() and p not in good] + good[
        : max(0, len(good) - keep)
    ]:
        # Unseal first: a kill while deleting must not leave a folder that looks whole.
        (folder / SEAL).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(store / PART, ignore_errors=True)


@contextlib.contextmanager
def explain_failed_save(store: Path) -> Iterator[None]:
    """Turn a checkpoint that could not be written (a full disk, mostly) into an error that names the last good one.

    torch and safetensors report a full disk as errors of their own kinds, so all of them are taken.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise _failed(store, error) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise _failed(store, error) from error


def _failed(store: Path, error: Exception) -> LengthenError:
    shutil.rmtree(store / PART, ignore_errors=True)
    return LengthenError(
        f"The checkpoint could not be written: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        why=last_good(store),
        fix=f"{_ADVICE[_is_disk(error)]} and run the same command again; it goes on from there",
    )


_ADVICE = {True: "free some space", False: "mend what the message says"}


def _is_disk(error: Exception) -> bool:
    """torch's writer and safetensors report a full disk as errors of their own kinds."""
    words = ("write", "writing", "space", "enforce fail", "unexpected pos")
    return isinstance(error, OSError) or any(word in str(error).lower() for word in words)


def last_good(store: Path) -> str:
    """A sentence that names the newest whole checkpoint."""
    found = checkpoints(store)
    return f"The last good checkpoint is {found[-1]}." if found else "There is no earlier checkpoint."
