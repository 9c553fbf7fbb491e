"""Loss rules: the worked numbers of LongAlign's equations, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.train.losses import target_weights

# Sequences A: 10 targets, mean loss 2; B: 2 targets, mean 1; C: 4 targets, mean 3. Packs {A, B} and {C}.
SEQUENCES = {"A": (10, 2.0), "B": (2, 1.0), "C": (4, 3.0)}


def loss_of(packs: list[str], rule) -> float:
    total = units = 0.0
    for pack in packs:
        lengths = [SEQUENCES[s][0] for s in pack]
        token_loss = np.concatenate([np.full(n, mean) for n, mean in (SEQUENCES[s] for s in pack)])
        weights, count = target_weights(np.ones(sum(lengths)), lengths, rule)
        total += float((weights * token_loss).sum())
        units += count
    return total / units


def test_vector_of_the_references():
    assert loss_of(["AB", "C"], "sequence") == pytest.approx(2.0)
    assert loss_of(["AB", "C"], "pack") == pytest.approx(2.41667, abs=1e-5)
    assert loss_of(["AB", "C"], "token") == pytest.approx(2.125)
    weights, _ = target_weights(np.ones(12), [10, 2], "sequence")
    # The paper's factor K / (N_i M), with K = 2 packs and M = 3 sequences.
    assert weights[0] * 2 / 3 == pytest.approx(0.06667, abs=1e-5)
    assert weights[-1] * 2 / 3 == pytest.approx(0.33333, abs=1e-5)


@pytest.mark.parametrize("rule", ["token", "sequence"])
def test_packing_changes_nothing(rule):
    values = {loss_of(packs, rule).__round__(12) for packs in (["ABC"], ["A", "B", "C"], ["CA", "B"], ["AB", "C"])}
    assert len(values) == 1


def test_pack_rule_depends_on_packing():
    assert loss_of(["ABC"], "pack") != pytest.approx(loss_of(["AB", "C"], "pack"))


@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(0, 1)), min_size=1, max_size=8),
    st.sampled_from(["token", "sequence", "pack"]),
    st.integers(0, 5),
)
def test_units_are_the_sum_of_weights(documents, rule, seed):
    rng = np.random.default_rng(seed)
    lengths = [n for n, _ in documents]
    raw = np.concatenate([(rng.random(n) < share).astype(float) for n, share in documents])
    weights, units = target_weights(raw, lengths, rule)
    assert weights.sum() == pytest.approx(units)
    assert ((weights > 0) == (raw > 0)).all()
    assert np.isfinite(weights).all()
