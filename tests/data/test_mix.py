"""Budgets: achieved shares stay within half a point, nothing is used more often than allowed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lengthen.data import mix
from lengthen.recipe.stages.prepare import PrepareStage


def mixed(sources: list[dict[str, Any]], lengths: list[list[int]], seed: int = 0, **settings: Any):
    named = [{"kind": "text", "name": f"s{n}", "paths": "x", **source} for n, source in enumerate(sources)]
    stage = PrepareStage.model_validate({"row_length": 64, "sources": named, **settings})
    flat = np.array([n for group in lengths for n in group], dtype=np.int64)
    owner = np.repeat(np.arange(len(lengths)), [len(group) for group in lengths])
    cells = mix.make_cells(stage, flat, owner, np.zeros(len(flat), np.int64), [""])
    mix.set_budgets(stage, cells)
    mix.choose(stage, cells, seed)
    return stage, cells, flat


MANY = st.integers(0, 10**6).map(lambda seed: np.random.default_rng(seed).integers(1, 300, size=350).tolist())


@given(MANY, MANY, st.floats(0.1, 0.9), st.integers(0, 99))
def test_shares_without_a_total_use_as_much_as_they_allow(one, two, share, seed):
    share = round(share, 2)
    stage, cells, _ = mixed([{"share": share}, {"share": round(1 - share, 2)}], [one, two], seed)
    table = mix.mix_table(stage, cells)
    assert all(abs(row["share"] - row["asked_share"]) < 0.005 for row in table)
    assert any(row["tokens"] >= 0.98 * row["available_tokens"] for row in table)
    assert not any(row["dry"] for row in table)


@given(MANY, st.floats(0.2, 6.0), st.integers(0, 99))
def test_repeats_are_bounded_and_even(one, repeat, seed):
    _, [cell], _ = mixed([{"repeat": repeat}], [one], seed)
    uses = Counter(int(d) for chosen in cell.passes for d in chosen)
    assert max(uses.values()) <= int(np.ceil(repeat)) and min([uses[d] for d in range(len(one))]) >= int(repeat)
    assert abs(cell.taken - repeat * sum(one)) <= 300
    assert all(len(set(chosen.tolist())) == len(chosen) for chosen in cell.passes)


@given(MANY, st.integers(1000, 30_000), st.integers(0, 99))
def test_a_budget_is_met_without_cutting(one, budget, seed):
    _, [cell], flat = mixed([{"tokens": budget}], [one], seed)
    assert cell.taken == sum(int(flat[d]) for chosen in cell.passes for d in chosen)
    assert cell.taken <= sum(one)
    if budget <= sum(one):
        assert abs(cell.taken - budget) <= 20


def test_the_same_seed_draws_the_same_documents():
    lengths = [list(range(1, 200))]
    first = mixed([{"tokens": 5000}], lengths, 1)[1][0].passes[0].tolist()
    assert first == mixed([{"tokens": 5000}], lengths, 1)[1][0].passes[0].tolist()
    assert first != mixed([{"tokens": 5000}], lengths, 2)[1][0].passes[0].tolist()
