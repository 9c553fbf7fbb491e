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

_LOOK = 256  # rows looked through before training, evenly spread


@dataclass(frozen=True)
class TrainingRows:
    """data: the rows. lengths: tokens of each. costs: sum of squared document lengths of each. reach: tokens of the
    longest piece that attends within itself."""

    data: Dataset
    lengths: np.ndarray
    costs: np.ndarray
    reach: int

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @property
    def sha256(self) -> str:
        """Stands for the row set in a checkpoint's identity."""
        return hashlib.sha256(self.lengths.tobytes() + self.costs.tobytes()).hexdigest()


def open_training_rows(folders: list[str]) -> TrainingRows:
    """All rows of the folders (or prepare stages), one after the other.

    Raises:
        LengthenError: a folder without rows, no rows at all.
    """
    data = concatenate_datasets([open_rows(folder) for folder in folders])
    if not len(data):
        raise LengthenError(f"There are no rows in {', '.join(folders)}.", fix="check the stage that writes them")
    lengths, costs, reach = [], [], 0
    columns = data.select_columns([c for c in ("doc_lens", "attend") if c in data.column_names])
    for batch in cast("Iterator[dict[str, list]]", columns.iter(batch_size=10_000)):
        attends = batch.get("attend") or ["isolated"] * len(batch["doc_lens"])
        for docs, attend in zip(batch["doc_lens"], attends, strict=True):
            alone = [sum(docs)] if attend == "joined" else docs
            lengths.append(sum(docs))
            costs.append(float(sum(n * n for n in alone)))
            reach = max(reach, *alone)
    return TrainingRows(data, np.asarray(lengths, dtype=np.int64), np.asarray(costs), reach)


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


def check_rows(rows: TrainingRows, *, positions: int, vocabulary: int, whole_rows: bool = False) -> None:
    """Look at rows spread over the set, before any compute.

    Args:
        positions: how many positions the model has after its extension.
        vocabulary: rows of its embedding.
        whole_rows: positions run on over whole rows instead of restarting at documents.

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
    targets = 0
    for index in np.unique(np.linspace(0, len(rows.data) - 1, _LOOK).astype(int)):
        row = row_of(rows.data, int(index))
        if sum(row["doc_lens"]) != len(row["input_ids"]):
            raise LengthenError(f"Row {index}: its doc_lens do not add up to its tokens.", fix="prepare it again")
        highest = int(row["input_ids"].max())
        if highest >= vocabulary:
            raise LengthenError(
                f"Row {index} holds token {highest}, but the model knows {vocabulary:,} tokens.",
                why="the rows were made with another tokenizer",
                fix="prepare them again with this model's tokenizer",
            )
        targets += int(np.count_nonzero(row_targets(row, attended_lengths(row))))
    if targets == 0:
        raise LengthenError(
            "No token of the rows is trained: every loss_mask that was looked at is 0.",
            why="mostly a chat template whose assistant turns were not found",
            fix="`lengthen inspect` the rows; check the roles in the chat file",
        )
