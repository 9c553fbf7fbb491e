"""Kept answers: asked once, and let go of when their question has changed."""

from __future__ import annotations

from dataclasses import replace

from lengthen.evaluate.predict import Predictions
from lengthen.evaluate.samples import Sample
from lengthen.generate.engine import Answer

QUESTION = Sample(
    "needle/single/512/0", "needle", "single", 512, "needle/single/512/0", "Where?", ("here",), new_tokens=8
)


def test_an_answer_is_kept_for_the_same_question_only(tmp_path):
    Predictions.open(tmp_path).add(QUESTION, Answer(QUESTION.id, "here", "stop"), 1.0)
    assert Predictions.open(tmp_path).open_samples([QUESTION]) == []
    for other in (
        replace(QUESTION, user="When?"),
        replace(QUESTION, prefix="It is"),
        replace(QUESTION, new_tokens=16),
    ):
        kept = Predictions.open(tmp_path)
        assert kept.open_samples([other]) == [other], "the id is the same, the question is not"
        kept.add(other, Answer(other.id, "now", "stop"), 0.0)
        assert Predictions.open(tmp_path).open_samples([other]) == []
