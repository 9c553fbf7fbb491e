"""Rows of each step: each once an epoch, the same for every number of ranks, balanced by cost."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.common.errors import LengthenError
from lengthen.train.sampler import MicroBatches, StepPlan


def plan(costs, batch_rows, **changes) -> StepPlan:
    return StepPlan(costs, [int(c**0.5) for c in costs], batch_rows=batch_rows, **changes)


@given(
    st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4),
    st.sampled_from(["balanced", "sorted", "random"]), st.integers(0, 3),
)  # fmt: skip
def test_every_row_once_before_any_twice(n, dp, micro, accumulation, batching, seed):
    rng = random.Random(seed)
    costs = [float(rng.randrange(1, 100) ** 2) for _ in range(n)]
    batch = dp * micro * accumulation
    made = plan(costs, batch, micro_rows=micro, dp_size=dp, batching=batching, seed=seed)
    steps = 3 * n // batch + 1
    places = []
    for step in range(steps):
        micro_batches = made.micro_batches(step)
        assert len(micro_batches) == accumulation and all(len(side) == dp for side in micro_batches)
        inside = [pick for side in micro_batches for group in side for pick in group]
        assert sorted(inside) == sorted(made.rows(step))
        assert all(len(group) == micro for side in micro_batches for group in side)
        places += sorted(inside, key=lambda pick: pick[1])
    assert [place for _, place in places] == list(range(steps * batch))
    for epoch in range(len(places) // n):
        assert sorted(row for row, _ in places[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_ranks_together_see_the_rows_of_one_process():
    costs = [float(i * i) for i in range(1, 50)]
    alone = plan(costs, 8)
    for dp in (2, 4):
        shared = plan(costs, 8, dp_size=dp)
        for step in range(10):
            assert shared.rows(step) == alone.rows(step)
        mine = [list(MicroBatches(shared, 10, rank)) for rank in range(dp)]
        assert all(len(batches) == len(MicroBatches(shared, 10, 0)) for batches in mine)
        together = sorted(pick for batches in mine for batch in batches for pick in batch)
        assert together == sorted(pick for step in range(10) for pick in alone.rows(step))


def test_balanced_beats_random():
    rng = random.Random(0)
    costs = [float(rng.lognormvariate(7, 0.5)) ** 2 for _ in range(512)]
    waits = {}
    for batching in ("balanced", "random"):
        made = plan(costs, 64, dp_size=8, batching=batching)
        waits[batching] = np.mean([made.imbalance(step) for step in range(8)])
    assert waits["balanced"] < 1.4 and waits["random"] > 1.25 * waits["balanced"]
    even = plan([4.0] * 64, 16, dp_size=8)
    assert even.imbalance(0) == 1.0


def test_sorted_batches_have_neighbours_in_length():
    costs = [float(i * i) for i in range(1, 65)]
    made = plan(costs, 8, dp_size=4, batching="sorted")
    for step in range(8):
        for side in made.micro_batches(step):
            rows = sorted(row for group in side for row, _ in group)
            assert rows == list(range(rows[0], rows[0] + 4))


def test_uneven_batch_is_refused():
    with pytest.raises(LengthenError, match="use 8"):
        plan([1.0] * 9, 6, dp_size=4)
    with pytest.raises(LengthenError, match="no rows"):
        plan([], 1)
