"""Rows for the tests of training: written as the data stage writes them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = ["input_ids", "doc_lens", "attend", "sources", "loss_mask", "unit_lens"]
SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "doc_lens": pa.list_(pa.int32()),
        "attend": pa.string(),
        "sources": pa.list_(pa.string()),
        "loss_mask": pa.list_(pa.uint8()),
        "unit_lens": pa.list_(pa.int32()),
    }
)


def make_row(rng: random.Random, doc_lens: list[int], vocabulary: int, *, masked: float = 0.0, attend="isolated"):
    """One row with a learnable text: each token is the one before plus a small step."""
    ids: list[int] = []
    for n in doc_lens:
        start, step = rng.randrange(vocabulary), rng.choice([1, 2, 3])
        ids += [(start + step * i) % vocabulary for i in range(n)]
    return {
        "input_ids": ids,
        "doc_lens": doc_lens,
        "attend": attend,
        "sources": ["test"] * len(doc_lens),
        "loss_mask": [int(rng.random() >= masked) for _ in ids],
        "unit_lens": None,
    }


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """rows/ of a prepare stage."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    half = max(1, len(rows) // 2)
    pq.write_table(table.slice(0, half), folder / "rows" / "00000.parquet")
    if len(rows) > half:
        pq.write_table(table.slice(half), folder / "rows" / "00001.parquet")
    lengths = [len(row["input_ids"]) for row in rows]
    facts = {"schema": 1, "row_length": max(lengths), "rows": len(rows), "tokens": sum(lengths), "columns": COLUMNS}
    (folder / "rows" / "dataset.json").write_text(json.dumps(facts))
    return folder


def ordinary_rows(folder: Path, count: int = 24, vocabulary: int = 300, seed: int = 0) -> Path:
    """Packed rows of 96 tokens, two to four documents each, a third of the tokens not trained."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        cut = sorted(rng.sample(range(8, 88), rng.choice([1, 2, 3])))
        lens = [b - a for a, b in zip([0, *cut], [*cut, 96])]
        rows.append(make_row(rng, lens, vocabulary, masked=0.3))
    return write_rows(folder, rows)
