"""Settings that nothing reads are refused; written-out defaults are not. What the presets evaluate."""

import pytest
from pydantic import ValidationError

from lengthen.recipe.load import load_recipe
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.serve import Serving

URL = {"endpoint": "http://host:8000/v1"}


def stage(**settings) -> SelfLengthenStage:
    return SelfLengthenStage.model_validate({"name": "loop", **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"instruct": {"source": "templates", "seeds": "s.jsonl"}}, "'templates' nothing reads instruct.seeds"),
        ({"instruct": {"source": "templates", "judge": False}}, "instruct.judge=true"),
        ({"instruct": {"source": "templates", "tries": 3, "grow": False}}, r"instruct.grow \(false\), instruct.tries"),
        ({"instruct": {"source": "file", "file": "f.jsonl", "seeds": "s"}}, "'file' nothing reads instruct.seeds"),
        ({"instruct": {"file": "f.jsonl"}}, "'self' nothing reads instruct.file"),
        ({"instruct": {"source": "templates", "file": "f.jsonl"}}, "'templates' nothing reads instruct.file"),
        ({"instruct": {"judge": False, "judge_temperature": 0.1}}, "without instruct.judge"),
        ({"instruct": {"grow": False, "block": 10}}, "without instruct.grow"),
        ({"serve": {**URL, "start_vllm": True}}, "serve.endpoint and serve.start_vllm are both set"),
        ({"texts": "t.jsonl"}, "nothing reads texts"),
        ({"method": "plan-and-write", "iterations": 2}, "'plan-and-write' nothing reads iterations"),
        ({"method": "plan-and-write", "extend": {"tries": 2}}, "nothing reads extend.tries"),
        ({"method": "plan-and-write", "select": {"enabled": False}}, "nothing reads select.enabled"),
        ({"method": "plan-and-write", "constraints": {"low": "auto"}}, "nothing reads constraints.low"),
        ({"method": "plan-and-write", "respond": {"samples": 1}}, "nothing reads respond.samples"),
        ({"method": "plan-and-write", "final": {"count": 9}}, "nothing reads final.count"),
        ({"method": "back-translation", "texts": "t", "instruct": {"source": "templates"}}, "reads instruct.source"),
    ],
)  # fmt: skip
def test_settings_that_nothing_reads_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        stage(**settings)


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        ({**URL, "batch": 8}, ["With a server, which batches by itself, nothing reads serve.batch (8)."]),
        ({"start_vllm": True, "batch": 8}, ["With a server, which batches by itself, nothing reads serve.batch (8)."]),
        ({**URL, "start_minutes": 5}, ["Without serve.start_vllm nothing reads serve.start_minutes (5.0)."]),
        ({"arguments": ["--x"], "base_seconds": 5},
         ["Without a server (serve.endpoint or serve.start_vllm) nothing reads serve.arguments ([\"--x\"]), "
          "serve.base_seconds (5.0)."]),
        ({**URL, "base_seconds": 5, "in_flight": 9}, []), ({"batch": 8}, []),
    ],
)  # fmt: skip
def test_settings_of_the_server_that_nothing_reads_are_told(tmp_path, serve, words):
    assert Serving(stage(serve=serve), tmp_path, "0123abcd").notes == words


def test_a_presets_own_batch_size_does_not_refuse_an_endpoint():
    made = load_recipe("self-lengthen-laptop").stages[0].model_dump()
    made["serve"]["endpoint"] = URL["endpoint"]
    assert SelfLengthenStage.model_validate(made).serve.batch == 32


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"instruct": {"source": "templates", "count": 8}}, {"instruct": {"source": "file", "file": "f.jsonl"}},
        {"instruct": {"seeds": "s.jsonl", "judge": False}}, {"serve": {**URL, "base_seconds": 5, "in_flight": 9}},
        {"serve": {"start_vllm": True, "port": 8001, "start_minutes": 5}}, {"serve": {"batch": 8, "in_flight": 9}},
        {"method": "plan-and-write", "instruct": {"source": "templates", "count": 8}, "respond": {"tries": 3},
         "final": {"train": False}, "evaluate": {"suites": ["short"]}},
        {"method": "back-translation", "texts": "t.jsonl", "instruct": {"tries": 3, "near_duplicate": 0.8}},
    ],
)  # fmt: skip
def test_defaults_written_out_are_no_mistake(settings):
    """As a resolved stage carries them."""
    made = stage(**settings)
    assert SelfLengthenStage.model_validate(made.model_dump()) == made == made.resolved({})


def test_the_held_out_prompts_are_evaluated_where_no_others_are_named():
    longform = {"suite": "longform", "tasks": ["prompts"]}
    suites = [longform, {"suite": "longform", "options": {"longen": "l"}},
              {**longform, "options": {"prompts": "mine.jsonl"}}, "short"]  # fmt: skip
    made = stage(evaluate={"suites": suites}, template_options={"enable_thinking": False})
    evaluation = made.evaluation("m", "held-out.jsonl")
    assert [one.options.get("prompts") for one in evaluation.suites] == ["held-out.jsonl", None, "mine.jsonl", None]
    assert evaluation.template_options == {"enable_thinking": False} and evaluation.model == "m"
    with pytest.raises(ValidationError, match=r"held_out.count is 0"):
        stage(evaluate={"suites": suites}, held_out={"count": 0})


@pytest.mark.parametrize("name", ["self-lengthen", "self-lengthen-laptop"])
def test_the_presets_draw_longform_curves_and_watch_short_tasks(name):
    made = load_recipe(name).stages[0]
    assert isinstance(made, SelfLengthenStage)
    evaluation = made.evaluation("default", "held-out.jsonl")
    longform, short = evaluation.suites
    assert longform.suite == "longform" and longform.options == {"prompts": "held-out.jsonl"} and short.suite == "short"
    assert isinstance(longform.samples, int) and longform.samples <= made.held_out.count
    without = made.model_copy(update={"evaluate": None}).cost()
    assert made.cost() > without  # the planned time includes it
    if name == "self-lengthen-laptop":
        assert made.cost() < 1.2 * without and longform.max_new_tokens == 1024
