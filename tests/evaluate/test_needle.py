"""The needle suite and the stage around it, on a tiny random model and a folder of prose."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, read_json_lines
from lengthen.common.manifest import StageContext
from lengthen.evaluate.haystack import haystack
from lengthen.evaluate.needle import KINDS, spread
from lengthen.evaluate.predict import NOT_ASKED_NOW, PREDICTIONS
from lengthen.evaluate.prompts import Prompts
from lengthen.evaluate.run import evaluate, make_plan
from lengthen.models import load_tokenizer
from lengthen.recipe.stages.evaluate import EvaluateStage
from tests.conftest import make_model


@pytest.fixture(scope="session")
def prose_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prose")
    nouns = ["boat", "lamp", "cart", "crate", "rope", "keeper", "stone", "harbour"]
    for part in range(3):
        lines = [
            f"The {nouns[i % 8]} of house {part * 300 + i} stands by the {nouns[(3 * i + part) % 8]}, "
            f"and nobody has moved it since the {nouns[(i + 5) % 8]} came."
            for i in range(300)
        ]
        (folder / f"{part}.txt").write_text(" ".join(lines))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), window=4096)


def stage(model: Path, prose: Path, **more) -> EvaluateStage:
    settings = {"model": str(model), "haystack": str(prose), "lengths": [512, 1024], "samples": 4, "dtype": "float32"}
    return EvaluateStage.model_validate({**settings, **more})


def samples_of(settings: EvaluateStage, folder: Path):
    return [sample for cell in make_plan(settings, StageContext(folder)).cells for sample in cell.samples]


def test_depths_of_any_number_of_samples_are_spread_evenly():
    assert [spread(i) for i in range(9)] == [0, 1, 0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]
    for n in (5, 9, 17, 33, 65):
        depths = sorted(spread(i) for i in range(n))
        assert depths == [i / (n - 1) for i in range(n)]
    many = sorted(spread(i) for i in range(40))
    assert max(b - a for a, b in pairwise(many)) <= 1 / 32


@pytest.mark.parametrize("template", ["on", "off", "raw"])
@pytest.mark.parametrize("task", sorted(KINDS))
def test_prompts_have_an_honest_length(model, prose_folder, tmp_path, task, template):
    settings = stage(
        model, prose_folder, suites=[{"suite": "needle", "tasks": [task]}], template=template,
        lengths=[1024, 2000, 5000], samples=6,
    )  # fmt: skip
    prompts = Prompts(load_tokenizer(model), template)
    samples = samples_of(settings, tmp_path)
    assert len(samples) == 18
    for sample in samples:
        from lengthen.generate.prompt import encode, render

        tokens = len(encode(prompts.tokenizer, render(prompts.tokenizer, prompts.request(sample))))
        assert tokens == sample.tokens
        assert 0.98 * sample.length <= tokens + sample.new_tokens <= sample.length
        assert all(ref in sample.user for ref in sample.refs)


def test_needles_stand_at_sentence_borders_at_their_depth(model, prose_folder, tmp_path):
    for sample in samples_of(stage(model, prose_folder, lengths=["4k"], samples=9), tmp_path):
        at = re.search(r"The lucky number of \w+ is (\d{7})\.", sample.user)
        assert at is not None and at[1] == sample.refs[0]
        before = sample.user[: at.start()]
        assert before.rstrip().endswith((".", "follows it."))
        body_begins = sample.user.index("\n\n") + 2
        body_ends = sample.user.rindex("\n\n")
        depth = (at.start() - body_begins) / (body_ends - len(at[0]) - body_begins)
        assert abs(depth - sample.depth) < 0.02
        assert sample.meta["true_depth"] == pytest.approx(depth, abs=0.01)


def test_several_needles_are_all_there(model, prose_folder, tmp_path):
    for task, facts, wanted in (("multikey", 4, 1), ("multivalue", 4, 4), ("multiquery", 4, 4)):
        settings = stage(model, prose_folder, suites=[{"suite": "needle", "tasks": [task]}], lengths=["2k"], samples=3)
        for sample in samples_of(settings, tmp_path / task):
            found = re.findall(r"The lucky number of (\w+) is (\d{7})\.", sample.user)
            assert len(found) == facts and len(set(v for _, v in found)) == facts
            assert len(sample.refs) == wanted
            assert len({key for key, _ in found}) == (1 if task == "multivalue" else 4)


@pytest.mark.parametrize("task", sorted(KINDS))
def test_questions_over_one_text_share_it_to_the_question(model, prose_folder, tmp_path, task):
    suites = [{"suite": "needle", "tasks": [task], "options": {"questions": 4}}]
    samples = samples_of(stage(model, prose_folder, suites=suites, lengths=["2k"], samples=3), tmp_path)
    assert len(samples) == 12 and len({s.id for s in samples}) == 12 and len({s.context for s in samples}) == 3
    kind = KINDS[task]
    for text in (samples[i : i + 4] for i in (0, 4, 8)):
        assert len({s.user.rpartition("\n\n")[0] for s in text}) == len({s.share for s in text}) == 1
        found = re.findall(r"The lucky number of (\w+) is (\d{7})\.", text[0].user)
        assert len(found) == len(set(found)) == 4 * kind.keys * kind.values
        refs = [ref for s in text for ref in s.refs]
        assert len(set(refs)) == len(refs) == 4 * kind.queries * kind.values
        for sample in text:
            asked = sample.user.rpartition("\n\n")[2]
            assert {value for key, value in found if key in asked} == set(sample.refs)
            assert 0.98 * 2048 <= sample.tokens + sample.new_tokens <= 2048
    depths = sorted(s.depth for s in samples)
    assert depths == sorted(spread(i) for i in range(12))


def test_one_question_over_a_text_asks_what_it_always_asked(model, prose_folder, tmp_path):
    """Samples of an older version: the same bytes, so that its answers can be compared with new ones."""
    suites = [{"suite": "needle", "tasks": sorted(KINDS)}]
    samples = samples_of(stage(model, prose_folder, suites=suites, lengths=[1024], samples=3), tmp_path)
    said = json.dumps([[s.id, s.user, s.prefix, s.refs, s.depth, s.share] for s in samples])
    assert len(samples) == 12
    assert sha256(said.encode()).hexdigest() == "9ff07a0d661c8e4b0c0f07f992407a36b89e58bdf9d815346250d197d7b9afbb"


def test_questions_over_a_text_that_cannot_be(model, prose_folder, tmp_path):
    suites = [{"suite": "needle", "options": {"questions": 4}}]
    with pytest.raises(LengthenError, match="same_haystack and questions: 4 exclude each other"):
        samples_of(stage(model, prose_folder, suites=suites, same_haystack=True), tmp_path / "same")
    settings = stage(
        model, prose_folder, suites=[{"suite": "needle", "options": {"questions": 20}}], lengths=[256], samples=1
    )
    (note,) = make_plan(settings, StageContext(tmp_path / "many")).notes
    assert "256 tokens are too few" in note


def test_given_depths_are_taken_in_turn_by_question(model, prose_folder, tmp_path):
    suites = [{"suite": "needle", "options": {"questions": 4}}]
    settings = stage(model, prose_folder, suites=suites, lengths=["2k"], samples=3, depths=[0, 50, 100])
    assert [s.depth for s in samples_of(settings, tmp_path)] == [0, 0.5, 1.0] * 4


def test_answers_to_what_is_not_asked_now_wait_in_a_file_of_their_own(model, prose_folder, tmp_path):
    """Other options, fewer texts, and back: the file of answers is what the scores tell, and nothing is asked twice."""
    ctx = StageContext(tmp_path)

    def run(questions: int, texts: int) -> tuple[int, set[str]]:
        suites = [{"suite": "needle", "options": {"questions": questions}}]
        settings = stage(model, prose_folder, suites=suites, lengths=[512], samples=texts)
        before = {row["seconds"] for name in files for row in read_json_lines(tmp_path / name)}
        evaluate(settings, ctx)
        rows = list(read_json_lines(tmp_path / PREDICTIONS))
        assert len(rows) == read_json(tmp_path / "scores.json")["rows"][0]["n"] == questions * texts
        return len([row for row in rows if row["seconds"] not in before]), {row["id"] for row in rows}

    files = (PREDICTIONS, NOT_ASKED_NOW)
    new, one = run(1, 3)
    assert new == 3 and not (tmp_path / NOT_ASKED_NOW).exists()
    new, four = run(4, 2)
    assert new == 8 and not one & four
    assert {row["id"] for row in read_json_lines(tmp_path / NOT_ASKED_NOW)} == one
    assert run(4, 1)[0] == 0 and run(1, 3) == (0, one) and run(4, 2) == (0, four)
    assert len(list(read_json_lines(tmp_path / NOT_ASKED_NOW))) == 3


def test_samples_do_not_depend_on_arm_stage_or_number(model, prose_folder, tmp_path):
    few = samples_of(stage(model, prose_folder, samples={512: 2, "1k": 3}), tmp_path / "a")
    ctx = StageContext(tmp_path / "b", seed=99, stage="elsewhere")
    many = make_plan(stage(model, prose_folder, samples=7, arm="trained"), ctx)
    all_of_them = {s.id: s for cell in many.cells for s in cell.samples}
    assert len(few) == 5 and len(all_of_them) == 14
    assert all(all_of_them[s.id] == s for s in few)
    other = samples_of(stage(model, prose_folder, samples_seed=1), tmp_path / "c")
    assert all(s.user != all_of_them[s.id].user for s in other)


def test_the_same_bytes_from_a_fresh_cache(model, prose_folder, tmp_path, monkeypatch):
    names = {}
    for run in "xy":
        monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / run))
        samples_of(stage(model, prose_folder), tmp_path / f"out-{run}")
        names[run] = {p.name: p.read_bytes() for p in (tmp_path / f"out-{run}" / "samples").iterdir()}
    assert names["x"] == names["y"] and len(names["x"]) == 2


def test_depths_of_a_round_share_their_text_when_asked(model, prose_folder, tmp_path):
    settings = stage(
        model, prose_folder, lengths=["1k"], samples=6, depths=[0, 50, 100], same_haystack=True,
    )  # fmt: skip
    samples = samples_of(settings, tmp_path)
    assert [s.depth for s in samples] == [0, 0.5, 1, 0, 0.5, 1]
    assert len({s.share for s in samples}) == 2

    def first_words(sample):
        return sample.user[300:400]

    assert first_words(samples[1]) == first_words(samples[2]) != first_words(samples[4])


def test_a_run_is_complete_and_going_on_asks_nothing_twice(model, prose_folder, tmp_path):
    settings = stage(model, prose_folder, arm="as-is")
    ctx = StageContext(tmp_path / "stage")
    result = evaluate(settings, ctx)
    assert result.counts["samples"] == 8
    scores = read_json(ctx.folder / "scores.json")
    assert [(r["arm"], r["task"], r["length"], r["n"]) for r in scores["rows"]] == [
        ("as-is", "single", 512, 4), ("as-is", "single", 1024, 4),
    ]  # fmt: skip
    assert all(0 <= r["low"] <= r["score"] <= r["high"] <= 1 for r in scores["rows"])
    lines = (ctx.folder / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 8
    assert (ctx.folder / "cells.csv").read_text().count("\n") == 9
    assert "lucky number" in (ctx.folder / "first_prompts" / "needle-single.txt").read_text()

    # As a kill leaves it: three whole lines, half of the fourth.
    (ctx.folder / "predictions.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][: len(lines[3]) // 2])
    evaluate(settings, ctx)
    again = (ctx.folder / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    assert again[:3] == lines[:3]
    ids = [json.loads(line)["id"] for line in again]
    assert len(ids) == len(set(ids)) == 8
    outputs = {r["id"]: r["output"] for r in map(json.loads, lines)}
    assert {r["id"]: r["output"] for r in map(json.loads, again)} == outputs
    assert read_json(ctx.folder / "scores.json") == scores


def test_a_length_beyond_the_window_is_noted_or_refused(model, prose_folder, tmp_path):
    settings = stage(model, prose_folder, lengths=[512, "5k"], samples=1)
    plan = make_plan(settings, StageContext(tmp_path / "a"))
    assert any("5K: beyond the model's window of 4K" in note for note in plan.notes)
    with pytest.raises(LengthenError, match="5K: beyond the model's window of 4K"):
        make_plan(settings.model_copy(update={"beyond_window": "refuse"}), StageContext(tmp_path / "b"))
    stretched = stage(model, prose_folder, lengths=[512, "5k"], samples=1, rope={"type": "yarn", "factor": 4})
    plan = make_plan(stretched, StageContext(tmp_path / "c"))
    assert plan.window == 16384 and not plan.notes
    assert plan.extension.parameters["rope_type"] == "yarn"


def test_a_length_that_does_not_fit_into_memory_ends_and_the_others_stay(model, prose_folder, tmp_path, monkeypatch):
    import torch
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def scarce(self, *args, **kwargs):
        if kwargs["input_ids"].shape[1] > 700:
            torch.empty(1 << 60)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", scarce)
    settings = stage(model, prose_folder, lengths=[512, 1024, 2048], samples=3)
    result = evaluate(settings, StageContext(tmp_path))
    assert [r["length"] for r in read_json(tmp_path / "scores.json")["rows"]] == [512]
    assert any("out of memory" in note and "1K" in note for note in result.notes)
    asked = {r["length"] for r in read_json_lines(tmp_path / "predictions.jsonl")}
    assert asked == {512, 1024}


def test_a_haystack_that_is_too_small_is_refused(model, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "a.txt").write_text("One short sentence. And another.")
    with pytest.raises(LengthenError, match="too small: 2 sentences"):
        haystack(str(tmp_path / "small"), load_tokenizer(model))
    with pytest.raises(LengthenError, match="there is no"):
        haystack(str(tmp_path / "nowhere"), load_tokenizer(model))


def test_a_haystack_shorter_than_the_prompt_repeats_with_a_note(model, tmp_path):
    source = tmp_path / "text.txt"
    source.write_text(" ".join(f"Line {i} of the log names crate {i * 7} and nothing else." for i in range(60)))
    plan = make_plan(stage(model, source, lengths=["4k"], samples=2), StageContext(tmp_path / "out"))
    assert any("repeats" in note for note in plan.notes)
    for cell in plan.cells:
        for sample in cell.samples:
            assert sample.meta["haystack_repeats"] and sample.tokens + sample.new_tokens >= 0.98 * 4096


def test_noise_is_a_haystack(model, tmp_path):
    (sample,) = samples_of(stage(model, Path("noise"), lengths=["1k"], samples=1), tmp_path)
    assert sample.user.count("There and back again.") > 5


def test_unknown_names_get_the_nearest(model, prose_folder, tmp_path):
    with pytest.raises(LengthenError, match="did you mean 'needle'"):
        make_plan(stage(model, prose_folder, suites=["nedle"]), StageContext(tmp_path))
    with pytest.raises(LengthenError, match="did you mean 'multikey'"):
        make_plan(
            stage(model, prose_folder, suites=[{"suite": "needle", "tasks": ["multykey"]}]), StageContext(tmp_path)
        )
    with pytest.raises(LengthenError, match="no such option"):
        make_plan(stage(model, prose_folder, suites=[{"suite": "needle", "options": {"x": 1}}]), StageContext(tmp_path))


def test_a_model_without_chat_template_must_be_asked_without(model, prose_folder, tmp_path):
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = None
    with pytest.raises(LengthenError, match="no chat template"):
        Prompts(tokenizer, "on")
    assert Prompts(tokenizer, "off").frame.before == ""
