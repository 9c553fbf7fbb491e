"""Invariants of the position schedules (LongRecipe and PoSE) and the worked example of the transform."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lengthen.recipe.stages.train import PositionSettings
from lengthen.train import positions as p

units_and_target = st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 4000))


def test_worked_example():
    # Lengths 3, 2, 4 with target 20: 20 - 9 + 3 = 14 slots.
    assert p.from_slots([3, 2, 4], [0, 5, 9]).tolist() == [0, 1, 2, 7, 8, 12, 13, 14, 15]
    assert p.from_slots([3, 2, 4], [0, 1, 13]).tolist() == [0, 1, 2, 3, 4, 16, 17, 18, 19]


@given(units_and_target, st.integers(0, 10))
def test_skip_invariants(drawn, seed):
    units, extra = drawn
    n = sum(units)
    found = p.skip(units, n + extra, np.random.default_rng(seed))
    assert len(found) == n and found[0] == 0
    assert (np.diff(found) >= 1).all()
    assert found[-1] < n + extra or (extra == 0 and found[-1] == n - 1)
    start = 0
    for unit in units:
        assert (np.diff(found[start : start + unit]) == 1).all()
        start += unit
    if extra == 0:
        assert found.tolist() == list(range(n))
    assert (found == p.skip(units, n + extra, np.random.default_rng(seed))).all()


@given(st.integers(1, 400), st.integers(0, 4000), st.integers(0, 10))
def test_pose_invariants(n, extra, seed):
    found = p.pose(n, n + extra, np.random.default_rng(seed))
    assert len(found) == n and found[0] == 0 and found[-1] < n + extra
    steps = np.diff(found)
    assert (steps >= 1).all() and (steps > 1).sum() <= 1


def test_spread_reaches_the_target():
    # 30% of the tokens, as in the paper: the last position is near the target, token pairs are far apart.
    rng = np.random.default_rng(0)
    target, n = 10_000, 3_000
    last, apart, pose_last, pose_apart = [], [], [], []
    for _ in range(300):
        found = p.skip(p.random_units(n, 10, 40, rng), target, rng)
        other = p.pose(n, target, rng)
        pairs = rng.integers(0, n, size=(200, 2))
        last.append(found[-1] / target)
        apart.append(np.abs(found[pairs[:, 0]] - found[pairs[:, 1]]).mean() / target)
        pose_last.append(other[-1] / target)
        pose_apart.append(np.abs(other[pairs[:, 0]] - other[pairs[:, 1]]).mean() / target)
    assert np.mean(last) > 0.95 and abs(np.mean(apart) - 0.33) < 0.03
    assert abs(np.mean(pose_last) - 0.64) < 0.04 and abs(np.mean(pose_apart) - 0.21) < 0.03


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_units_are_cut_at_documents(lengths, units):
    units = [*units, max(0, sum(lengths) - sum(units))]
    found = p.units_within(lengths, units)
    assert [sum(mine) for mine in found] == lengths
    assert all(unit > 0 for mine in found for unit in mine)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.sampled_from(["plain", "continuous", "pose", "skip"]))
def test_each_document_starts_at_zero(lengths, kind):
    targets = [500] if kind in ("pose", "skip") else []
    unit = {"unit": (2, 9)} if kind == "skip" else {}
    settings = PositionSettings(type=kind, targets=targets, **unit)
    found = p.positions_of_row(lengths, settings, np.random.default_rng(1))
    assert len(found) == sum(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int)
    if kind != "continuous":
        assert (found[starts] == 0).all()
    for start, n in zip(starts, lengths):
        assert (np.diff(found[start : start + n]) >= 1).all()


def test_units_of_their_own_and_random_ones():
    settings = PositionSettings(type="skip", targets=[4000])

    def gaps(lengths, unit_lens, kind=settings):
        found = p.positions_of_row(lengths, kind, np.random.default_rng(3), unit_lens)
        return (1 + np.flatnonzero(np.diff(found) > 1)).tolist()

    # Only at the units' borders, and at all of them.
    assert gaps([300], [50, 150, 100]) == [50, 200]
    # One unit has nothing to spread; a text that knows no units is cut at random.
    assert gaps([300], [300]) == []
    assert len(gaps([300], None)) >= 1
    assert gaps([300, 300], [300, 100, 200]) == [400]
    two = PositionSettings(type="pose", targets=[4000])
    assert gaps([300], [50, 150, 100], two)[0] in (50, 200) and gaps([300], [300], two) == []
    assert len(gaps([300], None, two)) == 1
