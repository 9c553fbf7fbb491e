"""Rows for training: opened, looked through, and refused when they cannot be trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from datasets import Dataset, concatenate_datasets

from lengthen.common.errors import LengthenError
from lengthen.data.shards import open_rows, read_facts, read_row
from lengthen.data.tokenize import vocabulary_sha256
from lengthen.train.collate import attended_lengths, row_targets

READ_TOKENS = 2**28  # token ids looked at before training: a gigabyte, some seconds from a disk
HASHED_TOKENS = 2**24  # of a large set, rows with about so many tokens stand for its content
_CONTENT = ("input_ids", "loss_mask", "loss_weights", "unit_lens")
_BLOCKS = 64  # at least so many stretches of a large set are looked at


@dataclass(frozen=True)
class TrainingRows:
    """data: the rows. lengths: tokens of each. costs: sum of squared document lengths of each. reach: tokens of the
    longest piece that attends within itself. units: number of each row's own units, 0 where it has none. whole: the
    rows with units of which no document has more than one."""

    data: Dataset
    lengths: np.ndarray
    costs: np.ndarray
    reach: int
    units: np.ndarray
    whole: int

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @property
    def sha256(self) -> str:
        """Stands for the row set's shape in a checkpoint's identity."""
        return hashlib.sha256(self.lengths.tobytes() + self.costs.tobytes()).hexdigest()

    @property
    def content_sha256(self) -> str:
        """Stands for its tokens, masks and units: of all rows, or of rows spread over a large set."""
        count = min(len(self.data), max(1, HASHED_TOKENS * len(self.data) // max(1, int(self.lengths.sum()))))
        chosen = np.linspace(0, len(self.data) - 1, count).round().astype(int).tolist()
        names = [name for name in _CONTENT if name in self.data.column_names]
        digest = hashlib.sha256()
        picked = self.data.select(chosen).select_columns(names).with_format("arrow")
        for table in cast("Iterator[Any]", picked.iter(batch_size=256)):
            for name in names:
                values = table.column(name).combine_chunks()
                digest.update(values.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False).tobytes())
                digest.update(values.flatten().to_numpy(zero_copy_only=False).tobytes())
        return digest.hexdigest()


def open_training_rows(folders: list[str]) -> TrainingRows:
    """All rows of the folders (or prepare stages), one after the other.

    Raises:
        LengthenError: a folder without rows, no rows at all.
    """
    data = concatenate_datasets([open_rows(folder) for folder in folders])
    if not len(data):
        raise LengthenError(f"There are no rows in {', '.join(folders)}.", fix="check the stage that writes them")
    lengths, costs, reach, units, whole = [], [], 0, [], 0
    columns = data.select_columns([c for c in ("doc_lens", "attend", "unit_lens") if c in data.column_names])
    for batch in cast("Iterator[dict[str, list]]", columns.iter(batch_size=10_000)):
        attends = batch.get("attend") or ["isolated"] * len(batch["doc_lens"])
        own = batch.get("unit_lens") or [None] * len(batch["doc_lens"])
        for docs, attend, mine in zip(batch["doc_lens"], attends, own, strict=True):
            alone = [sum(docs)] if attend == "joined" else docs
            lengths.append(sum(docs))
            costs.append(float(sum(n * n for n in alone)))
            reach = max(reach, *alone)
            units.append(len(mine or ()))
            if mine and (sum(mine) != lengths[-1] or min(mine) < 1):
                raise LengthenError(
                    f"Row {len(lengths) - 1}: its unit_lens do not add up to its doc_lens.", fix="prepare it again"
                )
            whole += 0 < units[-1] <= len(alone)
    sizes = np.asarray(lengths, dtype=np.int64)
    return TrainingRows(data, sizes, np.asarray(costs), reach, np.asarray(units, dtype=np.int64), whole)


def row_of(data: Dataset, index: int) -> dict[str, Any]:
    """One row as the collator takes it, its token columns as numpy arrays over the mapped file."""
    row = read_row(data, index)
    found: dict[str, Any] = {"input_ids": row.ids, "doc_lens": row.doc_lens.tolist(), "attend": row.attend}
    for name in ("loss_mask", "loss_weights", "unit_lens"):
        value = getattr(row, name)
        # Sets put together may lack a column here and there: its rows are null, which reads as an empty array.
        found[name] = value if value is not None and len(value) else None
    return found


def check_tokenizer(folders: list[str], tokenizer: Any) -> None:
    """Refuse rows that were made with another vocabulary than the model's."""
    mine = vocabulary_sha256(tokenizer)
    for folder in folders:
        theirs = read_facts(folder).get("tokenizer_sha256")
        if theirs is not None and theirs != mine:
            raise LengthenError(
                f"The rows in {folder} were made with another tokenizer than this model's.",
                fix="prepare them again with `model` set to the model that is trained",
            )


def check_rows(rows: TrainingRows, *, positions: int, vocabulary: int, whole_rows: bool = False) -> str:
    """Look at the rows before any compute: all lengths, all token ids (of a large set, blocks spread over it), and
    targets until one is found.

    Args:
        positions: how many positions the model has after its extension.
        vocabulary: rows of its embedding.
        whole_rows: positions run on over whole rows instead of restarting at documents.

    Returns: a sentence about what was looked at.

    Raises:
        LengthenError: a row longer than the positions, token ids beyond the vocabulary, nothing to train on.
    """
    reach = rows.longest if whole_rows else rows.reach
    if reach > positions:
        what = "row" if whole_rows or reach == rows.longest else "document"
        raise LengthenError(
            f"The longest {what} has {reach:,} tokens, but the model has {positions:,} positions.",
            fix=f"set the stage's length to {reach} (rope.type auto extends it), or prepare shorter rows",
        )
    read = _check_ids(rows, vocabulary)
    if not _any_target(rows.data):
        raise LengthenError(
            f"No token of the rows is trained: the loss_mask of all {len(rows.data):,} rows is 0.",
            why="mostly a chat template whose assistant turns were not found",
            fix="`lengthen inspect` the rows; check the roles in the chat file",
        )
    part = "all" if read == len(rows.data) else f"{read:,}, spread over the set,"
    return f"checked before training: lengths of all {len(rows.data):,} rows, token ids of {part} of them"


def _check_ids(rows: TrainingRows, vocabulary: int) -> int:
    """Refuse rows whose borders or token ids do not fit. Returns how many rows' ids were read."""
    size = max(1, min(1000, READ_TOKENS // _BLOCKS // max(1, rows.longest)))
    blocks = -(-len(rows.data) // size)
    every = max(1, -(-int(rows.lengths.sum()) // READ_TOKENS))
    chosen = set(np.linspace(0, blocks - 1, -(-blocks // every)).round().astype(int).tolist()) | {0, blocks - 1}
    read = first = 0
    columns = rows.data.select_columns(["input_ids"]).with_format("arrow")
    for number, table in enumerate(cast("Iterator[Any]", columns.iter(batch_size=size))):
        ids = table.column("input_ids").combine_chunks()
        sizes = ids.value_lengths().to_numpy(zero_copy_only=False)
        wrong = np.flatnonzero(sizes != rows.lengths[first : first + len(sizes)])
        if len(wrong):
            raise LengthenError(
                f"Row {first + int(wrong[0])}: its doc_lens do not add up to its tokens.", fix="prepare it again"
            )
        if number in chosen:
            _check_block(ids.flatten().to_numpy(zero_copy_only=False), sizes, first, vocabulary)
            read += len(sizes)
        first += len(sizes)
    return read


def _check_block(ids: np.ndarray, sizes: np.ndarray, first: int, vocabulary: int) -> None:
    if not len(ids) or (ids.max() < vocabulary and ids.min() >= 0):
        return
    at = int(np.flatnonzero((ids >= vocabulary) | (ids < 0))[0])
    row = first + int(np.searchsorted(np.cumsum(sizes), at, side="right"))
    raise LengthenError(
        f"Row {row} holds token {int(ids[at])}, but the model knows {vocabulary:,} tokens.",
        why="the rows were made with another tokenizer",
        fix="prepare them again with this model's tokenizer",
    )


def _any_target(data: Dataset) -> bool:
    """Whether any token is trained. Rows spread over the set come first: mostly the first one answers."""
    spread = np.unique(np.linspace(0, len(data) - 1, 256).astype(int)).tolist()
    if any(_has_target(row_of(data, index)) for index in spread):
        return True
    known = set(spread)
    return any(_has_target(row_of(data, index)) for index in range(len(data)) if index not in known)


def _has_target(row: dict[str, Any]) -> bool:
    return bool(np.count_nonzero(row_targets(row, attended_lengths(row))))
