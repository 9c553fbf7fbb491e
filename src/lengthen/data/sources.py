"""Sources to parts (units of work whose number depends on the data alone), and parts to documents."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.data import storage
from lengthen.data.archives import is_archive
from lengthen.data.document import Document, Ledger, short_path
from lengthen.data.repository import read_repository
from lengthen.recipe.sources import (
    ChatSource,
    HubSource,
    JsonlSource,
    MdsSource,
    ParquetSource,
    RepositorySource,
    Source,
    TextSource,
)

_JSONL = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.json", "*.json.gz", "*.json.zst", "*.ndjson")


@dataclass(frozen=True)
class Span:
    """A stretch of one input: bytes of a file, row groups of a parquet file, rows of a dataset. end -1: to the end.
    name: what documents of it are called."""

    path: str
    name: str
    start: int = 0
    end: int = -1


@dataclass(frozen=True)
class Part:
    """What one task reads: spans of one source (its index in the stage's list)."""

    source: int
    spans: tuple[Span, ...]

    def as_json(self) -> dict[str, Any]:
        return {"source": self.source, "spans": [asdict(span) for span in self.spans]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Part:
        return cls(data["source"], tuple(Span(**span) for span in data["spans"]))


def plan_parts(sources: Sequence[Source], part_bytes: int, ledger: Ledger) -> list[Part]:
    """Parts of all sources, in order. Worker counts play no role, so they cannot change the result.

    Raises:
        LengthenError: a path that does not exist or holds nothing.
    """
    parts: list[Part] = []
    for index, source in enumerate(sources):
        key = f"sources.{source.name}"
        weighed = list(_weighed_spans(source, key, part_bytes, ledger))
        group: list[Span] = []
        size = 0
        for span, weight in weighed:
            if group and size + weight > part_bytes:
                parts.append(Part(index, tuple(group)))
                group, size = [], 0
            group.append(span)
            size += weight
        if group:
            parts.append(Part(index, tuple(group)))
    return parts


def _weighed_spans(source: Source, key: str, part_bytes: int, ledger: Ledger) -> Iterator[tuple[Span, int]]:
    if isinstance(source, HubSource):
        from lengthen.data.hub import hub_spans

        yield from hub_spans(source, key, part_bytes)
    elif isinstance(source, MdsSource):
        from lengthen.data.mds import mds_spans

        for path in source.paths:
            yield from mds_spans(path, key)
    elif isinstance(source, RepositorySource):
        for path in source.paths:
            if storage.is_remote(path):
                yield from _remote_repositories(path, source, f"{key}.paths")
                continue
            for name, place in _repositories(path, source, f"{key}.paths"):
                yield Span(str(place), name), _weight(place)
    else:
        patterns = {"text": getattr(source, "patterns", ()), "parquet": ("*.parquet",)}.get(source.kind, _JSONL)
        for path in source.paths:
            yield from _file_spans(source, path, patterns, f"{key}.paths", part_bytes, ledger)


def _file_spans(
    source: Source, path: str, patterns: Sequence[str], key: str, part_bytes: int, ledger: Ledger
) -> Iterator[tuple[Span, int]]:
    path = local_path(path, key)
    if isinstance(source, ChatSource) and (Path(path) / "chat.jsonl").exists():
        path = str(Path(path) / "chat.jsonl")
    files, loops = storage.find_files(path, patterns, key)
    for loop in loops:
        ledger.drops.add("link_loop")
        ledger.problems.append({"rule": "link_loop", "where": loop, "why": "a link to a folder that is read anyway"})
    for file in files:
        if source.kind == "parquet":
            yield from _row_groups(file, ledger)
        elif source.kind != "text" and storage.is_splittable(file.path) and file.size > part_bytes:
            for start in range(0, file.size, part_bytes):
                end = min(start + part_bytes, file.size)
                yield Span(file.path, file.name, start, end), end - start
        else:
            # Compressed text unpacks to about four times its size.
            yield Span(file.path, file.name), file.size * (1 if storage.is_splittable(file.path) else 4)


def _row_groups(file: storage.FileRef, ledger: Ledger) -> Iterator[tuple[Span, int]]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    try:
        with storage.open_bytes(file.path) as handle:
            meta = pq.read_metadata(handle)
    except (ArrowException, OSError) as error:
        ledger.problem("broken_file", file.path, f"it is no parquet file ({error})")
        return
    for group in range(meta.num_row_groups):
        yield Span(file.path, file.name, group, group + 1), meta.row_group(group).total_byte_size


def local_path(path: str, key: str) -> str:
    """`package:NAME==VERSION#SHA256` to the folder of its files in the cache, `installed:NAME` to that Python package's
    own folder; other paths as they are."""
    if path.startswith("installed:") and path != "installed:*":
        return str(next(_installed(path.removeprefix("installed:"), key))[1])
    if not path.startswith("package:"):
        return path
    from lengthen.data.packages import package_folder

    requirement, _, sha256 = path.removeprefix("package:").partition("#")
    return str(package_folder(requirement, sha256))


def _repositories(path: str, source: RepositorySource, key: str) -> Iterator[tuple[str, Path]]:
    if path == "python":
        yield "python-standard-library", Path(sysconfig.get_paths()["stdlib"])
        return
    if path.startswith("installed:"):
        yield from _installed(path.removeprefix("installed:"), key)
        return
    place = Path(local_path(path, key)).expanduser()
    if not place.exists():
        raise LengthenError(
            f"{key}: there is no {path}.", fix="give a folder, an archive, package:NAME or installed:NAME"
        )
    if not source.each:
        yield path[8:].split("=")[0] if path.startswith("package:") else short_path(place), place
        return
    found = [p for p in sorted(place.iterdir()) if (p.is_dir() and not p.name.startswith(".")) or is_archive(p)]
    if not found:
        raise LengthenError(
            f"{key}: {path} holds no folders or archives.", fix="leave `each` out if it is one repository"
        )
    for one in found:
        yield one.name, one


def _remote_repositories(url: str, source: RepositorySource, key: str) -> Iterator[tuple[Span, int]]:
    """From one listing of everything below the address."""
    files, _ = storage.find_files(url, ("*",), key)
    if source.each and is_archive(url):
        raise LengthenError(f"{key}: {url} is one archive.", fix="leave `each` out")
    if not source.each:
        yield Span(url, short_path(url)), sum(file.size for file in files) * (4 if is_archive(url) else 1)
        return
    sizes: dict[str, int] = {}
    for file in files:
        top = file.name.split("/")[0]
        if not top.startswith(".") and ("/" in file.name or is_archive(top)):
            sizes[top] = sizes.get(top, 0) + file.size * (1 if "/" in file.name else 4)
    if not sizes:
        raise LengthenError(
            f"{key}: {url} holds no folders or archives.", fix="leave `each` out if it is one repository"
        )
    for top, size in sorted(sizes.items()):
        yield Span(storage.join(url, top), top), size


def _installed(name: str, key: str) -> Iterator[tuple[str, Path]]:
    if name != "*":
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise LengthenError(
                f"{key}: no Python package '{name}' is installed here.",
                fix="use its import name, as in installed:numpy",
            )
        yield name, Path(next(iter(spec.submodule_search_locations)))
        return
    for top in sorted(importlib.metadata.packages_distributions()):
        spec = importlib.util.find_spec(top) if top.isidentifier() else None
        places = list(spec.submodule_search_locations or []) if spec else []
        # A namespace package has several homes and no files of its own.
        if spec and spec.origin and places:
            yield top, Path(places[0])


def _weight(place: Path) -> int:
    if place.is_file():
        return place.stat().st_size * 4
    return sum(p.stat().st_size for p in place.rglob("*.py")) + 1


def read_part(source: Source, part: Part, ledger: Ledger) -> Iterator[Document]:
    """Documents of one part, in order. Broken input is counted or stops the task, as the ledger says."""
    for span in part.spans:
        if isinstance(source, TextSource):
            yield from _read_text(source, span, ledger)
        elif isinstance(source, JsonlSource | ChatSource):
            yield from _read_jsonl(source, span, ledger)
        elif isinstance(source, ParquetSource):
            yield from _read_parquet(source, span, ledger)
        elif isinstance(source, HubSource):
            from lengthen.data.hub import read_hub

            yield from read_hub(source, span, ledger)
        elif isinstance(source, MdsSource):
            from lengthen.data.mds import read_mds_documents

            yield from read_mds_documents(source.name, span.path, span.name, ledger)
        else:
            document = read_repository(span.path, source, ledger, span.name)
            if document is None:
                ledger.problem("empty_repository", span.path, "no file of it is code or prose")
            else:
                yield document


def _read_text(source: TextSource, span: Span, ledger: Ledger) -> Iterator[Document]:
    try:
        with storage.open_bytes(span.path) as file:
            text = file.read().decode(source.encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        why = f"it is not {source.encoding} (byte {error.start})"
        ledger.problem("wrong_encoding", f"{span.path}, line {line}", why, "set `encoding`")
        return
    except storage.READ_ERRORS as error:
        ledger.problem("broken_file", span.path, f"it cannot be read ({error})")
        return
    if not text.strip():
        ledger.problem("empty_file", span.path, "the file is empty")
        return
    domain = span.name.split("/")[0] if source.domain == "folder" and "/" in span.name else ""
    yield Document(span.name, text, source.name, {"domain": domain})


def _read_jsonl(source: JsonlSource | ChatSource, span: Span, ledger: Ledger) -> Iterator[Document]:
    offset = span.start
    lines = storage.read_lines(span.path, span.start, None if span.end < 0 else span.end)
    seen = 0
    while True:
        try:
            offset, line = next(lines)
        except StopIteration:
            break
        except storage.READ_ERRORS as error:
            place = f"{span.path}, after {seen} lines" if not span.start else span.path
            ledger.problem("broken_file", place, f"the file breaks off or is corrupt ({error})")
            return
        seen += 1
        if line.strip():
            document = _document_of_line(source, span, offset, line, ledger)
            if document is not None:
                yield document
    if not seen and not span.start:
        ledger.problem("empty_file", span.path, "the file is empty")


def _document_of_line(
    source: JsonlSource | ChatSource, span: Span, offset: int, line: bytes, ledger: Ledger
) -> Document | None:
    def where() -> str:
        return f"{span.path}, line {storage.line_number(span.path, offset)}"

    try:
        row = json.loads(line.decode(source.encoding).removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        ledger.problem("wrong_encoding", where(), f"it is not {source.encoding} (byte {error.start})", "set `encoding`")
        return None
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith(b"\n") else "; the file's last line has no end, so it may be cut off"
        ledger.problem("broken_line", where(), f"it is not JSON ({error}{cut})")
        return None
    return document_of_row(source, row, f"{span.name}@{offset}", where, ledger)


def document_of_row(source: Any, row: Any, fallback_id: str, where: Any, ledger: Ledger) -> Document | None:
    """A document of one object with a text (or messages). `where()` names the place, for problems."""
    field = getattr(source, "messages_field", None) or source.text_field
    value = _dig(row, field)
    if value is None:
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        ledger.problem("missing_field", where(), f"there is no '{field}' (it has {keys})", "set the field's name")
        return None
    meta = {"domain": _whole(str(_dig(row, getattr(source, "domain_field", "domain")) or ""))}
    name = _whole(str(_dig(row, getattr(source, "id_field", "id")) or fallback_id))
    if getattr(source, "messages_field", None):
        messages = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not _is_text(json.dumps(messages, ensure_ascii=False, default=str)):
            ledger.problem("broken_text", where(), f"'{field}' holds half a surrogate pair, which is no character")
            return None
        return Document(name, "", source.name, meta, messages=messages, where=where)
    if not isinstance(value, str):
        ledger.problem("wrong_type", where(), f"'{field}' is no text but {type(value).__name__}")
        return None
    if not value.strip():
        ledger.drops.add("empty_text")
        return None
    if not _is_text(value):
        ledger.problem("broken_text", where(), f"'{field}' holds half a surrogate pair, which is no character")
        return None
    return Document(name, value, source.name, meta)


def _whole(value: str) -> str:
    """Names go into files; half a character cannot."""
    return value if _is_text(value) else value.encode("utf-8", "replace").decode()


def _is_text(value: str) -> bool:
    """JSON can spell half a UTF-16 surrogate pair; no tokenizer takes it."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _dig(row: Any, path: str) -> Any:
    if isinstance(row, Mapping) and path in row:
        return row[path]
    for key in path.split("."):
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def _read_parquet(source: ParquetSource, span: Span, ledger: Ledger) -> Iterator[Document]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    number = 0
    try:
        with storage.open_bytes(span.path) as handle, pq.ParquetFile(handle) as file:
            wanted = [f for f in (source.text_field, source.id_field, source.domain_field)]
            names = [n for n in file.schema_arrow.names if n in {w.split(".")[0] for w in wanted}]
            for batch in file.iter_batches(batch_size=256, row_groups=[span.start], columns=names):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{span.path}, row group {span.start}, row {number}"
                    found = document_of_row(
                        source, row, f"{span.name}@{span.start}.{number}", lambda w=where: w, ledger
                    )
                    if found is not None:
                        yield found
    except (ArrowException, OSError) as error:
        ledger.problem("broken_file", f"{span.path}, row group {span.start}", f"it cannot be read ({error})")
