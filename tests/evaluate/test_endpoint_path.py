"""An evaluation over an endpoint that fails in every way: what has no answer is counted, never scored."""

from __future__ import annotations

import re
import shutil

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, read_json_lines, write_json
from lengthen.common.manifest import StageContext
from lengthen.evaluate.run import evaluate, make_plan
from lengthen.recipe.stages.evaluate import EvaluateStage
from lengthen.report.collect import read_arm
from lengthen.report.story import outcomes
from tests.evaluate.helpers import story
from tests.generate.server import Script, serving

FAST = {"retries": 1, "seconds": 2.0, "seconds_per_token": 0.001, "concurrency": 4}


def numbers(prompt: str, body: dict) -> str:
    """A perfect reader of needles: every long number of the text."""
    return " ".join(re.findall(r"\b\d{5,}\b", prompt))


def settings(address: str, model_folder, prose) -> EvaluateStage:
    return EvaluateStage.model_validate({
        "model": f"{address}#test-model", "tokenizer": str(model_folder), "haystack": str(prose),
        "lengths": [512], "samples": 5, "endpoint": FAST,
    })  # fmt: skip


@pytest.fixture
def prose(tmp_path):
    folder = tmp_path / "prose"
    folder.mkdir()
    (folder / "story.txt").write_text(story(400))
    return folder


@pytest.mark.parametrize("trouble", [429, 500, "garbage", "empty", "none", "hang"])
def test_trouble_is_counted_and_asked_again_never_scored(trouble, model_folder, prose, tmp_path):
    bad: list[str] = []

    def fails(number: int, prompt: str):
        if not bad:
            bad.append(prompt)
        return trouble if prompt == bad[0] else None

    script = Script(write=numbers, trouble=fails, continues=True)
    ctx = StageContext(tmp_path / "stage")
    with serving(script) as address:
        stage = settings(address, model_folder, prose)
        result = evaluate(stage, ctx)
        (row,) = read_json(ctx.folder / "scores.json")["rows"]
        assert (row["n"], row["errors"], row["score"], row["empty"]) == (4, 1, 1.0, 0), "the mean is of the answered"
        assert (result.counts["samples"], result.counts["errors"]) == (4, 1)
        (note,) = result.notes
        assert "1 of 5 samples have no answer" in note and "run again to ask them" in note
        found = outcomes(read_arm("x", ctx.folder))
        assert (found.answers, found.empty, found.errors) == (4, 0, 1)

        script.trouble, asked = (lambda number, prompt: None), len(script.asked)
        evaluate(stage, ctx)
        assert len(script.asked) == asked + 1, "the next run asks the one that is missing"
    (row,) = read_json(ctx.folder / "scores.json")["rows"]
    assert (row["n"], row["errors"], row["score"]) == (5, 0, 1.0)
    found = outcomes(read_arm("x", ctx.folder))
    assert (found.answers, found.empty, found.errors) == (5, 0, 0), "an error that was overcome is none"
    answered = [r["id"] for r in read_json_lines(ctx.folder / "predictions.jsonl") if r["finish_reason"] != "error"]
    assert len(answered) == len(set(answered)) == 5


def test_an_empty_answer_is_an_answer_and_counted_apart(model_folder, prose, tmp_path):
    seen: list[str] = []

    def write(prompt: str, body: dict) -> str:
        if "One, two, three" not in prompt:  # the engine's own probe
            seen.append(prompt)
        return "" if prompt in seen[:1] else numbers(prompt, body)

    ctx = StageContext(tmp_path / "stage")
    with serving(Script(write=write, continues=True)) as address:
        evaluate(settings(address, model_folder, prose), ctx)
    (row,) = read_json(ctx.folder / "scores.json")["rows"]
    assert (row["n"], row["errors"], row["empty"]) == (5, 0, 1) and row["score"] == pytest.approx(0.8)
    found = outcomes(read_arm("x", ctx.folder))
    assert (found.answers, found.empty, found.errors) == (5, 1, 0)


def test_a_length_beyond_the_window_of_the_tokenizers_config_is_noted_or_refused(model_folder, prose, tmp_path):
    asked = settings("http://127.0.0.1:9/v1", model_folder, prose).model_copy(update={"lengths": [512, 1024]})
    plan = make_plan(asked, StageContext(tmp_path / "a"))
    (note,) = plan.notes
    assert note.startswith("1K: beyond the model's window of 512 tokens (by the config beside the tokenizer")
    with pytest.raises(LengthenError, match="1K: beyond the model's window of 512 tokens"):
        make_plan(asked.model_copy(update={"beyond_window": "refuse"}), StageContext(tmp_path / "b"))


def test_a_window_that_is_not_known_is_said(model_folder, prose, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model_folder, bare)
    config = read_json(bare / "config.json")
    del config["max_position_embeddings"]
    write_json(bare / "config.json", config)
    plan = make_plan(settings("http://127.0.0.1:9/v1", bare, prose), StageContext(tmp_path / "a"))
    (note,) = plan.notes
    assert "window is not known" in note
