"""The scorer of table answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.synthesize.scoring import final_line, normal, score, score_sentence


@pytest.mark.parametrize(
    "output, answer, ordered, expected",
    [
        ("12 + 5 = 17\nThe sum is 17.\n17", ["17"], True, 1.0),
        ("17\nor rather 18", ["17"], True, 0.0),
        ("1,250.50", ["1250.5"], True, 1.0),
        ("１２５０", ["1250"], True, 1.0),
        ("**Amber  Lantern**.", ["amber lantern"], True, 1.0),
        ("amber lanterns", ["amber lantern"], True, 0.0),
        ("b, a", ["a", "b"], False, 1.0),
        ("b, a", ["a", "b"], True, 0.0),
        ("a, a, b", ["a", "b"], False, 0.0),
        ("a, b and c", ["a", "b", "c"], True, 1.0),
        ("甲、乙和丙", ["甲", "乙", "丙"], True, 1.0),
        ("12,250", ["12", "250"], True, 1.0),
        ("12,250", ["12250"], True, 1.0),
        ("1,200, 7", ["1200", "7"], True, 1.0),
        ("是", ["yes"], True, 1.0),
        ("No.", ["no"], True, 1.0),
        ("表中没有", ["absent"], True, 1.0),
        ("Not in the table", ["absent"], True, 1.0),
        ("", ["1"], True, 0.0),
        ("0.50", ["0.5"], True, 1.0),
        ("-5", ["5"], True, 0.0),
        ("2020-02-28", ["2020-02-28"], True, 1.0),
    ],
)
def test_scores(output, answer, ordered, expected):
    assert score(output, answer, ordered=ordered) == expected


def test_final_line_skips_empty_ones():
    assert final_line("a\n b \n\n  \n") == "b" and final_line(" \n") == ""


def test_a_value_in_a_sentence_must_be_whole():
    assert score_sentence("The price is 1234.", ["1234"]) == 1.0
    assert score_sentence("The price is 12345.", ["1234"]) == 0.0
    assert score_sentence("KD-10 and 7", ["KD-10", "7"]) == 1.0
    assert score_sentence("KD-100", ["KD-10"]) == 0.0


@given(st.integers(0, 10**12), st.integers(0, 6))
def test_number_formats_are_made_alike(number, zeros):
    assert normal(f" {number:,} ") == normal(str(number)) == normal(f"{number}.{'0' * zeros}".rstrip("."))


@given(st.lists(st.integers(0, 999), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_sets_ignore_order_and_nothing_else(values, rng):
    answer = [f"k{value}" for value in values]
    shuffled = answer[:]
    rng.shuffle(shuffled)
    assert score(", ".join(shuffled), answer, ordered=False) == 1.0
    assert score(", ".join([*shuffled, "k1000"]), answer, ordered=False) == 0.0
    assert score(", ".join(shuffled[:-1]), answer, ordered=False) == 0.0
