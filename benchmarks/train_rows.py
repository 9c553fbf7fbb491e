"""Rows for the training benchmark: real text in documents of chosen lengths, as our rows and as TRL's packed data set.

The text is the Python standard library's source, which every machine has: a measured loss then means something (a
document that sees another one would change it), and nothing is downloaded.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def document_lengths(row: int, documents: int, seed: int = 0) -> list[int]:
    """Lengths that add up to `row`, spread as those of web documents are: log-normal, sigma 0.8."""
    share = np.random.default_rng(seed).lognormal(0.0, 0.8, documents)
    lengths = np.maximum(8, (share / share.sum() * row).astype(int))
    lengths[int(lengths.argmax())] += row - int(lengths.sum())
    return [int(n) for n in lengths]


def token_rows(model: str, rows: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Token ids of each document of each row; every document is the beginning of another source file, or of several
    one after the other where one is too short."""
    from lengthen.models import load_tokenizer

    stream = _files(load_tokenizer(model))

    def document(length: int) -> list[int]:
        ids: list[int] = []
        while len(ids) < length:
            ids += next(stream)
        return ids[:length]

    return [[document(length) for length in row] for row in rows]


def _files(tokenizer: Any) -> Iterator[list[int]]:
    folder = Path(sysconfig.get_path("stdlib"))
    while True:
        for path in sorted(folder.glob("*.py")):
            yield tokenizer(path.read_text(errors="replace"), add_special_tokens=False)["input_ids"]


def write_ours(folder: Path, rows: Sequence[Sequence[Sequence[int]]]) -> Path:
    """rows/ of a prepare stage."""
    from lengthen.common.files import write_json
    from lengthen.data.shards import Row, write_shard

    made = [
        Row(np.concatenate(row).astype(np.int32), np.array([len(d) for d in row], np.int32), "isolated",
            tuple("stdlib" for _ in row))
        for row in rows
    ]  # fmt: skip
    longest = max(len(row.ids) for row in made)
    columns = ["input_ids", "doc_lens", "attend", "sources"]
    write_shard(folder / "rows" / "00000.parquet", iter(made), longest, columns)
    facts = {"schema": 1, "row_length": longest, "rows": len(made), "tokens": sum(len(row.ids) for row in made)}
    write_json(folder / "rows" / "dataset.json", {**facts, "columns": columns})
    return folder / "rows"


def write_theirs(path: Path, rows: Sequence[Sequence[Sequence[int]]], *, packed: bool) -> Path:
    """The same documents as a parquet file for TRL.

    Each row is packed by TRL's own function, alone: packed together, best-fit would mix the documents of the short
    first row with those of the measured ones, and both sides would not do the same work.
    """
    from datasets import Dataset, concatenate_datasets
    from trl.data_utils import pack_dataset

    made = []
    for row in rows:
        if packed:
            one = Dataset.from_dict({"input_ids": [list(d) for d in row]})
            one = pack_dataset(one, sum(len(d) for d in row), "bfd_split")
            if len(one) != 1 or sorted(one[0]["seq_lengths"]) != sorted(len(d) for d in row):
                raise RuntimeError("TRL packed other documents than ours")
        else:
            one = Dataset.from_dict({"input_ids": [[token for d in row for token in d]]})
        made.append(one)
    concatenate_datasets(made).to_parquet(str(path))
    return path
