"""Rows on disk: parquet shards written by tasks, read back memory-mapped through `datasets`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.files import cache_folder, explain_disk, read_json

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

DATASET = "dataset.json"
ROWS = "rows"
_GROUP_TOKENS = 2**22  # tokens of one parquet row group: 16 MB of ids in memory at a time


@dataclass(frozen=True)
class Row:
    """One training row.

    ids: int32 (T,). doc_lens: int32 (D,), adds up to T. attend: `isolated` or `joined`. sources: D names.
    loss_mask: uint8 (T,), 1 where token t is a target; loss_weights: float32 (T,); unit_lens: int32, adds up to T.
    """

    ids: np.ndarray
    doc_lens: np.ndarray
    attend: str
    sources: tuple[str, ...]
    loss_mask: np.ndarray | None = None
    loss_weights: np.ndarray | None = None
    unit_lens: np.ndarray | None = None

    def check(self, row_length: int) -> None:
        """Raise ValueError where the row breaks the schema."""
        tokens = len(self.ids)
        if tokens == 0 or tokens > row_length:
            raise ValueError(f"a row of {tokens} tokens; rows have 1 to {row_length}")
        if int(np.sum(self.doc_lens)) != tokens or np.any(np.asarray(self.doc_lens) <= 0):
            raise ValueError("doc_lens do not add up to the row")
        if len(self.sources) != len(self.doc_lens):
            raise ValueError("one source per document")
        for name in ("loss_mask", "loss_weights"):
            value = getattr(self, name)
            if value is not None and len(value) != tokens:
                raise ValueError(f"{name} is not as long as the row")
        if self.unit_lens is not None and int(np.sum(self.unit_lens)) != tokens:
            raise ValueError("unit_lens do not add up to the row")


def row_schema(columns: Sequence[str]) -> pa.Schema:
    """Arrow schema of rows; `columns` names the optional ones that are present."""
    import pyarrow as pa

    fields = [
        ("input_ids", pa.list_(pa.int32())),
        ("doc_lens", pa.list_(pa.int32())),
        ("attend", pa.string()),
        ("sources", pa.list_(pa.string())),
    ]
    optional = {"loss_mask": pa.uint8(), "loss_weights": pa.float32(), "unit_lens": pa.int32()}
    return pa.schema([*fields, *((name, pa.list_(kind)) for name, kind in optional.items() if name in columns)])


def write_shard(path: Path, rows: Iterator[Row], row_length: int, columns: Sequence[str]) -> None:
    """Write rows to one parquet file, atomically, a few million tokens at a time."""
    import pyarrow.parquet as pq

    schema = row_schema(columns)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explain_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Token ids hardly repeat within a dictionary page; names do.
        names = ["attend", "sources.list.element"]
        with pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=names) as writer:  # pyright: ignore
            held: list[Row] = []
            tokens = 0
            for row in rows:
                row.check(row_length)
                held.append(row)
                tokens += len(row.ids)
                if tokens >= _GROUP_TOKENS:
                    writer.write_table(_table(held, schema))
                    held, tokens = [], 0
            if held:
                writer.write_table(_table(held, schema))
        os.replace(part, path)


def _table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    arrays = []
    for field in schema:
        if field.name == "attend":
            arrays.append(pa.array([row.attend for row in rows], pa.string()))
            continue
        if field.name == "sources":
            arrays.append(pa.array([list(row.sources) for row in rows], field.type))
            continue
        values = [np.asarray(_column(row, field.name)) for row in rows]
        offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int32)
        flat = np.concatenate(values).astype(field.type.value_type.to_pandas_dtype(), copy=False)
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)))
    return pa.Table.from_arrays(arrays, schema=schema)


def _column(row: Row, name: str) -> np.ndarray:
    if name == "input_ids":
        return row.ids
    value = getattr(row, name)
    if value is not None:
        return value
    # A column that some rows have, all have: tokens without a mask or weight are trained in full.
    if name == "unit_lens":
        return np.zeros(0, np.int32)  # unknown
    return np.ones(len(row.ids), np.float32 if name == "loss_weights" else np.uint8)


def rows_folder(path: str | Path) -> Path:
    """The folder with dataset.json: the path itself, or `rows/` of a stage folder."""
    folder = Path(path)
    for candidate in (folder, folder / ROWS):
        if (candidate / DATASET).exists():
            return candidate
    raise LengthenError(
        f"{path} holds no rows (no {DATASET} there or in {ROWS}/).",
        fix="name a finished prepare stage (@name) or its rows folder",
    )


def read_facts(path: str | Path) -> dict[str, Any]:
    """dataset.json of rows."""
    return read_json(rows_folder(path) / DATASET)


def shard_files(path: str | Path) -> list[Path]:
    """Parquet shards of rows, in order, checked against dataset.json."""
    folder = rows_folder(path)
    facts = read_json(folder / DATASET)
    files = sorted(folder.glob("*.parquet"))
    if len(files) != facts.get("shards", len(files)):
        raise LengthenError(
            f"{folder} has {len(files)} shards; {DATASET} speaks of {facts['shards']}.",
            fix="run the prepare stage again (--redo NAME), or copy the missing files",
        )
    return files


def open_rows(path: str | Path) -> Dataset:
    """Rows as a `datasets.Dataset`, memory-mapped. The first opening converts parquet to Arrow in the cache.

    Args:
        path: a prepare stage's folder or its rows/.

    `dataset[i]` gives Python lists, which costs milliseconds for a long row; `read_row` gives arrays without copies.
    """
    files = shard_files(path)
    if not files:
        raise LengthenError(f"{path} has no rows.", fix="look at the drops in its manifest.json")
    from datasets import Dataset, Features
    from datasets.utils import logging

    columns = read_facts(path)["columns"]
    features = Features.from_arrow_schema(row_schema(columns))
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return Dataset.from_parquet(  # pyright: ignore[reportReturnType]
            [str(file) for file in files], features=features, cache_dir=str(cache_folder("rows"))
        )
    finally:
        if bars:
            logging.enable_progress_bar()


def read_row(dataset: Dataset, index: int) -> Row:
    """One row as numpy arrays over the mapped memory (no copy): about a hundred times as fast as `dataset[index]`."""
    place = int(dataset._indices.column(0)[index].as_py()) if dataset._indices is not None else int(index)
    table = dataset.data.fast_slice(place, 1)
    found: Mapping[str, Any] = {name: table.column(name).chunk(0) for name in table.column_names}

    def array(name: str) -> np.ndarray | None:
        return found[name].flatten().to_numpy(zero_copy_only=False) if name in found else None

    ids, doc_lens = array("input_ids"), array("doc_lens")
    assert ids is not None and doc_lens is not None
    units = array("unit_lens")
    return Row(
        ids,
        doc_lens,
        found["attend"][0].as_py(),
        tuple(found["sources"][0].as_py()),
        array("loss_mask"),
        array("loss_weights"),
        units if units is not None and len(units) else None,
    )
