"""Suites that measure, within a whole evaluation: what fails leaves a note, what can never work is refused at once."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, read_json_lines
from lengthen.common.manifest import StageContext
from lengthen.evaluate.run import evaluate, make_plan
from lengthen.evaluate.short.instructions import INSTRUCTIONS
from lengthen.recipe.stages.evaluate import EvaluateStage
from tests.evaluate.helpers import story
from tests.generate.server import Script, serving


@pytest.fixture
def prose(tmp_path):
    folder = tmp_path / "prose"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.txt").write_text(story(100, i))
    return folder


def stage(model, prose, *suites, **settings) -> EvaluateStage:
    values = {"model": str(model), "haystack": str(prose), "lengths": [400], "samples": 2, "suites": list(suites)}
    return EvaluateStage.model_validate(values | settings)


def perplexity(prose, lengths=(300,), **options):
    return {
        "suite": "perplexity", "lengths": list(lengths),
        "options": {"documents": str(prose), "count": 2, "near": 64, **options},
    }  # fmt: skip


def test_a_length_without_documents_leaves_the_rest_of_the_evaluation(model_folder, prose, tmp_path):
    settings = stage(model_folder, prose, "needle", perplexity(prose, (300, 100_000)))
    for attempt in range(2):
        result = evaluate(settings, StageContext(tmp_path / "stage"))
        rows = read_json(tmp_path / "stage" / "scores.json")["rows"]
        assert {(r["suite"], r["length"]) for r in rows} == {("needle", 400), ("perplexity", 300)}, attempt
        (note,) = [n for n in result.notes if n.startswith("perplexity")]
        assert "at 100,000 was not measured" in note and "gives 0 documents of 100,000" in note and "join: true" in note


def test_a_length_beyond_memory_leaves_the_shorter_ones(model_folder, prose, tmp_path, monkeypatch):
    import torch
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def scarce(self, *args, **kwargs):
        if kwargs["input_ids"].shape[1] > 350:
            torch.empty(1 << 60)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", scarce)
    result = evaluate(stage(model_folder, prose, perplexity(prose, (400, 300))), StageContext(tmp_path / "stage"))
    assert {r["length"] for r in read_json(tmp_path / "stage" / "scores.json")["rows"]} == {300}
    assert "perplexity at 400 was not measured: out of memory" in result.notes


def test_an_error_of_the_program_is_not_taken_for_a_note(model_folder, prose, tmp_path, monkeypatch):
    from transformers import LlamaForCausalLM

    def broken(self, *args, **kwargs):
        raise RuntimeError("sizes do not match")

    monkeypatch.setattr(LlamaForCausalLM, "forward", broken)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        evaluate(stage(model_folder, prose, perplexity(prose)), StageContext(tmp_path / "stage"))


def test_an_evaluation_without_any_row_is_an_error_with_its_reasons(model_folder, prose, tmp_path):
    with pytest.raises(LengthenError, match=r"has no result.(?s:.*)gives 0 documents of 90,000"):
        evaluate(stage(model_folder, prose, perplexity(prose, (90_000,))), StageContext(tmp_path / "stage"))


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        ("perplexity", r"an endpoint gives no token losses(?s:.*)name the model's folder"),
        ("short", r"short: prose, code, chat: loss(?s:.*)tasks: \[classify, instructions\]"),
        ("chat", r"short: chat: loss"),
        ({"suite": "short", "tasks": ["kl"], "options": {"reference": "default"}}, "short: kl: loss"),
        ({"suite": "short", "tasks": [], "options": {"lm_eval": ["piqa"]}}, "in this process only"),
    ],
)
def test_an_endpoint_is_refused_before_anything_is_asked(suite, message, model_folder, prose, tmp_path):
    with serving(Script()) as address:
        settings = stage(f"{address}#test-model", prose, "needle", suite, tokenizer=str(model_folder))
        with pytest.raises(LengthenError, match=message):
            evaluate(settings, StageContext(tmp_path / "stage"))
    assert not (tmp_path / "stage" / "samples").exists()


def test_an_endpoint_answers_what_only_asks(model_folder, prose, tmp_path):
    script = Script(write=lambda prompt, body: "- one\n- two\n- three", continues=True)
    short = {"suite": "short", "tasks": ["instructions"]}
    with serving(script) as address:
        settings = stage(f"{address}#test-model", prose, short, tokenizer=str(model_folder))
        evaluate(settings, StageContext(tmp_path / "stage"))
    (row,) = read_json(tmp_path / "stage" / "scores.json")["rows"]
    assert row["task"] == "instructions" and row["n"] == len(INSTRUCTIONS) and 0 < row["score"] < 0.2


def test_a_question_without_answer_is_noted_and_asked_by_the_next_run(model_folder, prose, tmp_path):
    bad = INSTRUCTIONS[3].text
    script = Script(trouble=lambda number, prompt: 500 if bad in prompt else None, continues=True)
    with serving(script) as address:
        settings = stage(
            f"{address}#test-model", prose, "needle", {"suite": "short", "tasks": ["instructions"]},
            tokenizer=str(model_folder), endpoint={"retries": 0},
        )  # fmt: skip
        result = evaluate(settings, StageContext(tmp_path / "stage"))
        (note,) = [n for n in result.notes if n.startswith("short instructions was not measured")]
        assert f"1 of {len(INSTRUCTIONS)} questions have no answer" in note and "run again" in note
        assert {r["suite"] for r in read_json(tmp_path / "stage" / "scores.json")["rows"]} == {"needle"}
        assert len(list(read_json_lines(tmp_path / "stage" / "short-predictions.jsonl"))) == len(INSTRUCTIONS) - 1
        script.trouble, asked = (lambda number, prompt: None), len(script.asked)
        evaluate(settings, StageContext(tmp_path / "stage"))
        assert len(script.asked) == asked + 1
    assert {r["suite"] for r in read_json(tmp_path / "stage" / "scores.json")["rows"]} == {"needle", "short"}


def test_kl_without_a_starting_model_is_refused_at_once(model_folder, prose, tmp_path):
    with pytest.raises(LengthenError, match="needs the starting model"):
        make_plan(stage(model_folder, prose, "needle", "kl"), StageContext(tmp_path / "stage"))


def test_samples_of_a_measure_are_refused_and_those_of_the_stage_are_not(model_folder, prose, tmp_path):
    settings = stage(model_folder, prose, perplexity(prose) | {"samples": 3})
    with pytest.raises(LengthenError, match=r"suites.perplexity.samples(?s:.*)options.count"):
        make_plan(settings, StageContext(tmp_path / "a"))
    settings = stage(model_folder, prose, {"suite": "short", "tasks": ["instructions"], "samples": 3})
    with pytest.raises(LengthenError, match=r"suites.short.samples(?s:.*)lm_eval_limit"):
        make_plan(settings, StageContext(tmp_path / "b"))
    assert make_plan(stage(model_folder, prose, perplexity(prose)), StageContext(tmp_path / "c")).measures


def test_the_harness_gets_the_positions_of_the_whole_stage(model_folder, prose, tmp_path, monkeypatch):
    seen = {}

    def simple_evaluate(model, tasks, limit, log_samples):
        if tasks == ["piqqa"]:
            raise KeyError("piqqa")
        config = model.pretrained.config
        seen.update(window=config.max_position_embeddings, rope=config.rope_parameters["rope_type"])
        return {"results": {"piqa": {"acc,none": 0.5}}, "n-samples": {"piqa": {"effective": 4}}}

    fake, models = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface")
    fake.simple_evaluate = simple_evaluate  # type: ignore[attr-defined]
    fake.__spec__ = SimpleNamespace(name="lm_eval")  # type: ignore[assignment]
    models.HFLM = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", fake)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", models)
    short = {"suite": "short", "tasks": [], "options": {"lm_eval": ["piqqa", "piqa"]}}
    settings = stage(model_folder, prose, short, lengths=[2048], rope={"type": "yarn"})
    (note,) = evaluate(settings, StageContext(tmp_path / "stage")).notes
    assert note.startswith("short lm_eval:piqqa was not measured: lm-evaluation-harness cannot run 'piqqa'")
    (row,) = read_json(tmp_path / "stage" / "scores.json")["rows"]
    assert row["task"] == "lm_eval:piqa" and row["score"] == 0.5
    assert seen == {"window": 2048, "rope": "yarn"}
