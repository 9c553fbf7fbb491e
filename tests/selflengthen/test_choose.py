"""Length-biased selection: the published share, and decisions that do not wait for stragglers."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.recipe.stages.self_lengthen import Select, kept_share
from lengthen.selflengthen.choose import Selection, draw_for, keeps, percentile

SELECT = Select()


@pytest.mark.parametrize("p, share", [(0.2, 0.0), (0.25, 0.156), (0.5, 0.75), (0.75, 0.969), (0.9, 0.998)])
def test_published_probabilities(p, share):
    draws = random.Random(0)
    kept = sum(keeps(p, draws.random(), SELECT) for _ in range(20_000)) / 20_000
    assert kept == pytest.approx(share, abs=0.01)


def test_share_kept_in_all():
    assert kept_share(2, 3) == pytest.approx(0.5953, abs=1e-4)
    selection = Selection(7, SELECT, 0)
    for i in range(4000):
        selection.add(f"i{i}", 0, i)
    kept = [int(item[1:]) for item, _, k in selection.decided() if k]
    assert len(kept) / 4000 == pytest.approx(0.5953, abs=0.02)
    assert sum(kept) / len(kept) / 4000 == pytest.approx(0.683, abs=0.02)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=40), st.randoms(use_true_random=False)
)
def test_early_decisions_equal_the_decision_over_all(texts, order):
    """Whatever the order of arrival and whichever tasks fail, nothing is decided otherwise than at the end."""
    names = list(range(len(texts)))
    order.shuffle(names)
    early = Selection(3, SELECT, len(texts))
    found: dict[str, bool] = {}
    for name in names:
        words, passes = texts[name]
        if passes:
            early.add(f"i{name}", 0, words)
        early.task_ended()
        found |= {item: kept for item, _, kept in early.decided()}
    ordered = sorted((words, f"i{name}") for name, (words, passes) in enumerate(texts) if passes)
    plain = {
        item: keeps(percentile(rank, len(ordered)), draw_for(3, item, 0), SELECT)
        for rank, (_, item) in enumerate(ordered)
    }
    assert found == plain


def test_one_straggler_holds_back_few():
    selection = Selection(1, SELECT, 1000)
    for i in range(999):
        selection.add(f"i{i}", 0, i)
        selection.task_ended()
    assert len(selection.decided()) >= 990


def test_selection_can_be_switched_off():
    assert keeps(0.0, 0.0, Select(enabled=False))
