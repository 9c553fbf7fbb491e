"""Intervals and paired differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.evaluate.statistics import interval, paired


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=60), st.integers(1, 5))
def test_an_interval_holds_its_mean_and_stays_in_range(scores, questions):
    contexts = [f"c{i // questions}" for i in range(len(scores))]
    found = interval(scores, contexts)
    assert found.mean == pytest.approx(np.mean(scores))
    assert 0 <= found.low <= found.mean + 1e-9 and found.mean - 1e-9 <= found.high <= 1
    assert found.n == len(scores) and found.contexts == len(set(contexts))


def test_questions_over_one_context_do_not_count_as_independent():
    scores = [1.0] * 12 + [0.0] * 12
    alone = interval(scores, [f"c{i}" for i in range(24)])
    together = interval(scores, [f"c{i // 4}" for i in range(24)])
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_full_marks_are_not_certainty():
    found = interval([1.0] * 20, [str(i) for i in range(20)])
    assert (found.low, found.high) == (pytest.approx(0.8316, abs=1e-4), 1.0)  # Clopper-Pearson, 20 of 20
    assert interval([0.0] * 5, list("abcde")).high == pytest.approx(0.5218, abs=1e-4)  # 0 of 5


def test_few_contexts_are_never_narrower_than_they_allow():
    """Five texts of four questions: equal shares are no certainty, and a miss never makes an interval narrower."""
    texts = [f"c{i // 4}" for i in range(20)]
    alike = interval([1.0, 1.0, 1.0, 0.0] * 5, texts)
    assert alike.low == pytest.approx(0.75 * 0.4782, abs=1e-3) and alike.high == pytest.approx(0.8804, abs=1e-3)
    perfect, missed = interval([1.0] * 20, texts), interval([1.0] * 19 + [0.0], texts)
    assert perfect.low == pytest.approx(0.4782, abs=1e-3) and missed.low < perfect.low
    two = interval([1.0] * 7 + [0.0], texts[:8])
    assert two.low < interval([1.0] * 8, texts[:8]).low < 0.2


@pytest.mark.parametrize("texts, sure", [(2, False), (5, False), (6, True)])
def test_a_difference_needs_six_contexts(texts, sure):
    for gains in ([1.0] * 4 * texts, [1.0] * (4 * texts - 1) + [0.0]):
        ids = [str(i) for i in range(4 * texts)]
        found = paired(dict.fromkeys(ids, 0.0), dict(zip(ids, gains)), {i: f"c{int(i) // 4}" for i in ids})
        assert found is not None and found.contexts == texts and found.sure is sure


def test_the_bootstrap_covers_the_truth():
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        scores = (generator.random(40) < 0.7).astype(float).tolist()
        found = interval(scores, [str(i) for i in range(40)], seed=trial)
        held += found.low <= 0.7 <= found.high
    assert held >= 180


def test_pairing_sees_what_two_intervals_hide():
    generator = np.random.default_rng(1)
    hard = generator.random(60)
    a = {str(i): float(hard[i] < 0.5) for i in range(60)}
    b = {str(i): float(hard[i] < 0.65) for i in range(60)}
    contexts = {name: name for name in a}
    first, second = (interval(list(x.values()), list(x)) for x in (a, b))
    found = paired(a, b, contexts)
    assert found is not None and found.sure and found.low > 0
    assert first.high > second.low, "alone, the two cannot be told apart"
    assert found.worse == 0 and found.better == sum(b[i] > a[i] for i in a)


def test_only_common_samples_are_paired():
    found = paired({"x": 1.0, "y": 0.0}, {"y": 1.0, "z": 1.0}, {"x": "x", "y": "y", "z": "z"})
    assert found is not None and found.n == 1 and not found.sure
    assert paired({"x": 1.0}, {"z": 1.0}, {}) is None
