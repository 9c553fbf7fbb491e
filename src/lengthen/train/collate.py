"""Rows to one training batch: tokens, positions, document borders, targets and their weights.

A micro-batch is one long line of tokens, its rows one after the other, so that nothing is padded; `doc_lens` tells the
attention where documents end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lengthen.common.seeds import derive_seed
from lengthen.recipe.stages.train import PositionSettings
from lengthen.train.losses import Rule, target_weights
from lengthen.train.positions import positions_of_row


@dataclass(frozen=True)
class Batch:
    """One micro-batch of T tokens with N targets; `keep` says which positions predict them.

    input_ids, position_ids: (1, T) int64. doc_lens: (D,) int64, sums to T.
    keep: (N,) int64, the position whose output predicts a target. labels: (1, N) int64, the targets.
    weights: (1, N) float32. units: what the weights stand for (`losses`). trained: number of targets.
    padding: tokens of T that only fill up. cost: sum of squared document lengths, the measure of attention's work.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    doc_lens: torch.Tensor
    keep: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    units: float
    trained: int
    padding: int
    cost: float

    @property
    def tokens(self) -> int:
        return int(self.input_ids.shape[1])

    @property
    def content(self) -> int:
        """Tokens without padding."""
        return self.tokens - self.padding

    def model_inputs(self) -> dict[str, torch.Tensor]:
        return {"input_ids": self.input_ids, "position_ids": self.position_ids, "doc_lens": self.doc_lens}

    def chunk(self, index: int, count: int) -> Batch:
        """This rank's equal share of the line (sequence parallel). Document borders stay those of the whole line, and
        so do units, padding and cost, which the group counts once. T must be a multiple of `count` (`pad_to`)."""
        size = self.tokens // count
        low, high = index * size, (index + 1) * size
        mine = (self.keep >= low) & (self.keep < high)
        return replace(
            self,
            input_ids=self.input_ids[:, low:high],
            position_ids=self.position_ids[:, low:high],
            keep=self.keep[mine] - low,
            labels=self.labels[:, mine],
            weights=self.weights[:, mine],
        )


def attended_lengths(row: dict[str, Any]) -> list[int]:
    """Token counts of what attends within itself: each document, or the whole row where `attend` is joined."""
    if row.get("attend", "isolated") == "joined":
        return [len(row["input_ids"])]
    return [int(n) for n in row["doc_lens"]]


def row_cost(row: dict[str, Any]) -> float:
    """Sum of squared document lengths."""
    return float(sum(n * n for n in attended_lengths(row)))


def row_targets(row: dict[str, Any], lengths: Sequence[int]) -> np.ndarray:
    """(T,) float: how much each token counts as a target. `loss_mask[t] = 1` means that token t is predicted from
    t - 1; the first token of a document has nothing to be predicted from and never counts. A joined row is one text,
    so only its very first token is left out."""
    n = len(row["input_ids"])
    raw = np.ones(n)
    if row.get("loss_weights") is not None:
        raw = np.asarray(row["loss_weights"], dtype=np.float64)
    if row.get("loss_mask") is not None:
        raw = raw * (np.asarray(row["loss_mask"]) != 0)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    raw = raw.copy()
    raw[starts[starts < n]] = 0.0
    return raw


@dataclass(frozen=True)
class Collator:
    """Makes batches of rows; a callable for a data loader.

    Positions are drawn from the seed and the row's place in the run (`draw`), never from a process's state: any number
    of loader workers and any restart give the same ones.

    Args:
        rule: what each target weighs (`losses`).
        seed: of the position draws.
        pad_to: the line is filled up to a multiple of this many tokens (1 = never), as a document of its own without
            targets.
        full_labels: for a trainer other than `LongTrainer`: give plain `labels` (1, T) with -100 where nothing is
            trained, and leave the loss to that trainer.
    """

    positions: PositionSettings = field(default_factory=PositionSettings)
    rule: Rule = "token"
    seed: int = 0
    pad_to: int = 1
    pad_id: int = 0
    full_labels: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        parts = [self._row(row) for row in rows]
        ids = np.concatenate([p[0] for p in parts])
        positions = np.concatenate([p[1] for p in parts])
        weights = np.concatenate([p[2] for p in parts])
        lengths = [n for p in parts for n in p[3]]
        cost = float(sum(n * n for n in lengths))
        padding = -len(ids) % self.pad_to
        if padding:
            ids = np.concatenate([ids, np.full(padding, self.pad_id)])
            positions = np.concatenate([positions, np.arange(padding)])
            weights = np.concatenate([weights, np.zeros(padding)])
            lengths.append(padding)
        targets = np.flatnonzero(weights)
        line = {"input_ids": _line(ids), "position_ids": _line(positions), "doc_lens": torch.tensor(lengths)}
        if self.full_labels:
            return {**line, "labels": _line(np.where(weights > 0, ids, -100))}
        return Batch(
            **line,
            keep=torch.from_numpy(targets - 1),
            labels=_line(ids[targets]),
            weights=torch.from_numpy(weights[targets]).float()[None],
            units=sum(p[4] for p in parts),
            trained=len(targets),
            padding=padding,
            cost=cost,
        )

    def _row(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int], float]:
        lengths = attended_lengths(row)
        rng = np.random.default_rng(derive_seed(self.seed, "positions", row.get("draw", 0)))
        positions = positions_of_row(lengths, self.positions, rng, row.get("unit_lens"))
        weights, units = target_weights(row_targets(row, lengths), lengths, self.rule)
        return np.asarray(row["input_ids"], dtype=np.int64), positions, weights, lengths, units


def _line(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))[None]
