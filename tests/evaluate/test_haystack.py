"""Haystacks of the suites that read them as plain text: too small ones are refused, short ones are noted."""

from __future__ import annotations

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.evaluate.haystack import haystack_text
from lengthen.evaluate.run import make_plan
from lengthen.recipe.stages.evaluate import EvaluateStage
from tests.evaluate.helpers import story


@pytest.mark.parametrize("suite", ["ruler", "helmet", "own"])
def test_a_haystack_that_is_too_small_or_empty_is_refused(suite, model_folder, tmp_path):
    tasks = {"ruler": ["niah_single_2"], "helmet": ["ruler_niah_mv"], "own": ["planted_qa"]}[suite]
    for number, text in enumerate(("", "One short sentence. And another.")):
        source = tmp_path / f"{number}.txt"
        source.write_text(text)
        size = ("0 sentences, 0 words", "2 sentences, 5 words")[number]
        settings = EvaluateStage.model_validate({
            "model": str(model_folder), "haystack": str(source), "suites": [{"suite": suite, "tasks": tasks}],
            "lengths": [8192], "samples": 1,
        })  # fmt: skip
        with pytest.raises(LengthenError, match=f"{number}.txt is too small: {size}"):
            make_plan(settings, StageContext(tmp_path / suite))


@pytest.mark.parametrize(("suite", "task"), [("ruler", "niah_single_2"), ("helmet", "ruler_niah_mv")])
def test_a_haystack_that_repeats_is_noted(suite, task, model_folder, tmp_path):
    (tmp_path / "short.txt").write_text(story(60))
    (tmp_path / "long.txt").write_text(story(3000))
    notes = {}
    for name in ("short", "long"):
        settings = EvaluateStage.model_validate({
            "model": str(model_folder), "haystack": str(tmp_path / f"{name}.txt"), "lengths": [8192], "samples": 1,
            "suites": [{"suite": suite, "tasks": [task]}],
        })  # fmt: skip
        for attempt in ("made", "from the cache"):
            plan = make_plan(settings, StageContext(tmp_path / f"{name} {attempt}"))
            notes.setdefault(name, []).append([n for n in plan.notes if "repeats" in n])
    assert notes["short"] == [[f"{suite} at 8K: the haystack is shorter than the prompt and repeats"]] * 2
    assert notes["long"] == [[], []]


def test_text_without_spaces_counts_its_signs_as_words(tmp_path):
    (tmp_path / "zh.txt").write_text("守灯人每天清晨都要数一遍箱子。" * 40)
    assert haystack_text(str(tmp_path / "zh.txt"))
