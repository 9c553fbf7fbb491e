"""The data that a run made, as files for any trainer: chat.jsonl, chat.parquet, and the reasons of what was refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lengthen.common.files import explain_disk, write_atomic, write_json
from lengthen.selflengthen.store import Store
from lengthen.selflengthen.summary import rejections


def write_chat(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """chat.jsonl: {"id", "messages", "source", "meta"} a line. Returns the number of rows."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomic(path, "".join(lines))
    return len(lines)


def write_parquet(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """The same rows as parquet: `id`, `messages` (list of {role, content}), `source`, `meta` (JSON text, since its keys
    differ from row to row). Opens with datasets, polars, and TRL or LLaMA-Factory as ShareGPT-like messages."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [("id", pa.string()), ("messages", pa.list_(message)), ("source", pa.string()), ("meta", pa.string())]
    )
    plain = [{**row, "meta": json.dumps(row["meta"], ensure_ascii=False)} for row in rows]
    part = path.with_name(f".{path.name}.part")
    with explain_disk(path):
        pq.write_table(pa.Table.from_pylist(plain, schema=schema), part)
        part.replace(path)
    return len(plain)


def export(store: Store, folder: Path, purpose: str = "final") -> int:
    """chat.jsonl, chat.parquet and rejections.json into `folder`. Returns the number of rows."""
    rows = list(store.rows(purpose))
    write_chat(rows, folder / "chat.jsonl")
    write_parquet(rows, folder / "chat.parquet")
    write_json(folder / "rejections.json", rejections(store.path))
    return len(rows)
