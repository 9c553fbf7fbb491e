"""Which rows make up each optimizer step, and which rank and micro-batch gets them.

The order is a pure function of the seed, the number of rows and the batch: a restart jumps to its step without reading
a row, and any number of loader workers sees the same rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.seeds import derive_seed, named_random

Batching = Literal["balanced", "sorted", "random"]
Pick = tuple[int, int]
"""(index of the row, its place in the whole run); the place seeds the row's position draws."""


@dataclass(frozen=True)
class Ranks:
    """This process's place: data-parallel rank and size, and sequence-parallel rank and size. All ranks of a
    sequence-parallel group read the same rows."""

    dp_rank: int = 0
    dp_size: int = 1
    sp_rank: int = 0
    sp_size: int = 1


class StepPlan:
    """Rows of every optimizer step, shared out to data-parallel ranks and micro-batches.

    Args:
        costs: work of each row (sum of squared document lengths).
        lengths: tokens of each row, for `sorted`.
        batch_rows: rows per optimizer step; a multiple of dp_size x micro_rows.
        batching: see `TrainStage.batching`. The rows of a step are the same for any number of ranks.

    Raises:
        LengthenError: no rows; a batch that the ranks cannot share out, or that `sorted` could gather nothing in.
    """

    def __init__(
        self,
        costs: Sequence[float],
        lengths: Sequence[int],
        *,
        batch_rows: int,
        micro_rows: int = 1,
        dp_size: int = 1,
        batching: Batching = "balanced",
        seed: int = 0,
    ) -> None:
        if not len(costs):
            raise LengthenError("There are no rows to train on.", fix="check the stage that writes them")
        if batch_rows % (dp_size * micro_rows):
            raise LengthenError(
                f"batch_rows {batch_rows} is no multiple of {dp_size} data-parallel ranks x micro_batch {micro_rows}.",
                fix=f"use {-(-batch_rows // (dp_size * micro_rows)) * dp_size * micro_rows}",
            )
        if batching == "sorted" and batch_rows == 1:
            raise LengthenError(
                "batching: sorted has no effect with one row a step (batch_rows is 1).",
                why="it puts rows of like length into one step",
                fix="set batch_rows to 2 or more, or batching to balanced",
            )
        self.costs, self.lengths = np.asarray(costs, dtype=np.float64), np.asarray(lengths)
        self.batch_rows, self.micro_rows, self.dp_size = batch_rows, micro_rows, dp_size
        self.batching, self.seed = batching, seed
        self.accumulation = batch_rows // (dp_size * micro_rows)
        self._orders: dict[int, np.ndarray] = {}

    def rows(self, step: int) -> list[Pick]:
        """The rows of one step, in run order; each row comes once before any comes twice."""
        n, first = len(self.costs), step * self.batch_rows
        return [(int(self._order(place // n)[place % n]), place) for place in range(first, first + self.batch_rows)]

    def micro_batches(self, step: int) -> list[list[list[Pick]]]:
        """[micro-step][data-parallel rank] -> rows of one step.

        balanced: micro-batches of nearly equal cost stand side by side, so that ranks that wait for each other at
        every micro-step wait little (ProLong, arXiv 2410.02660, Table 15: +11.7% tokens/s), and ranks take turns in
        getting the dearer one. sorted: from the shortest row to the longest, so that what runs at once is alike.
        """
        picks, size = self.rows(step), self.micro_rows
        if self.batching == "balanced":
            groups = self._fill(picks)
        else:
            if self.batching == "sorted":
                picks.sort(key=lambda pick: (self.lengths[pick[0]], pick[1]))
            groups = [picks[i : i + size] for i in range(0, len(picks), size)]
        found = []
        for k in range(self.accumulation):
            side = groups[k * self.dp_size : (k + 1) * self.dp_size]
            found.append(side[::-1] if self.batching != "random" and k % 2 else side)
        return found

    def imbalance(self, step: int) -> float:
        """Dearest rank over mean rank, summed over the micro-steps of a step; 1 is perfect."""
        work = np.array([[self._cost(group) for group in side] for side in self.micro_batches(step)])
        return float(work.max(axis=1).sum() / max(work.mean(axis=1).sum(), 1e-9))

    def epoch(self, step: int) -> float:
        """Passes over the rows before this step."""
        return step * self.batch_rows / len(self.costs)

    def _cost(self, picks: Sequence[Pick]) -> float:
        return float(sum(self.costs[row] for row, _ in picks))

    def _fill(self, picks: list[Pick]) -> list[list[Pick]]:
        """Micro-batches of exactly `micro_rows` rows: the dearest row into the cheapest open one; sorted by cost."""
        groups: list[list[Pick]] = [[] for _ in range(len(picks) // self.micro_rows)]
        totals = [0.0] * len(groups)
        open_ = [(0.0, g) for g in range(len(groups))]
        for pick in sorted(picks, key=lambda p: (-self.costs[p[0]], p[1])):
            _, best = heapq.heappop(open_)
            groups[best].append(pick)
            totals[best] += self.costs[pick[0]]
            if len(groups[best]) < self.micro_rows:
                heapq.heappush(open_, (totals[best], best))
        return [groups[g] for g in sorted(range(len(groups)), key=lambda g: (-totals[g], g))]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.default_rng(derive_seed(self.seed, "rows", epoch))
            order = rng.permutation(len(self.costs))
            if self.batching == "sorted":
                order = self._sorted_steps(epoch, order, rng)
            # A step spans at most a few epochs, and old ones do not come back.
            self._orders = {k: v for k, v in self._orders.items() if k >= epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]

    def _sorted_steps(self, epoch: int, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """LongAlign's sorted batching (arXiv 2401.18058, section 3.2): each step takes neighbours in length, the steps
        come in random order.

        The published code takes neighbours for one row per GPU only and drops the remainder. Here the group is the
        step's: its rows must not depend on the number of ranks, and one process with one row at a time has groups too.
        A step that begins in one epoch and ends in the next takes its rows from one place among the lengths of both.
        """
        size, count = self.batch_rows, len(order)
        order = order[np.argsort(self.lengths[order], kind="stable")]
        begun = -epoch * count % size
        if begun >= count:
            return order
        first, order = self._neighbours(order, begun, epoch)
        last, order = self._neighbours(order, len(order) % size, epoch + 1)
        steps = rng.permutation(order.reshape(-1, size))
        return np.concatenate([first, steps.reshape(-1), last])

    def _neighbours(self, order: np.ndarray, count: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(`count` rows that stand side by side, the others); the place is drawn for the beginning of an epoch."""
        place = named_random(self.seed, "shared step", epoch).random()
        begin = int(place * (len(order) - count + 1))
        return order[begin : begin + count], np.delete(order, slice(begin, begin + count))


class MicroBatches:
    """This rank's micro-batches of steps 0..steps-1: a batch sampler for a torch DataLoader."""

    def __init__(self, plan: StepPlan, steps: int, dp_rank: int = 0) -> None:
        self.plan, self.steps, self.dp_rank = plan, steps, dp_rank

    def __len__(self) -> int:
        return self.steps * self.plan.accumulation

    def __iter__(self) -> Iterator[list[Pick]]:
        for step in range(self.steps):
            for side in self.plan.micro_batches(step):
                yield side[self.dp_rank]
