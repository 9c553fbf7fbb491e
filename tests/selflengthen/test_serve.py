"""Who answers: names, keys, windows and models of an endpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.generate.listing import KeyRefused, Listed
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.loop import _work
from lengthen.selflengthen.phases import Crew
from lengthen.selflengthen.pipeline import Listed as Tasks
from lengthen.selflengthen.respond import respond
from lengthen.selflengthen.serve import Serving, run_digits, serve_command
from lengthen.selflengthen.served import base_model, same_model
from lengthen.selflengthen.store import Store
from tests.conftest import make_model, make_tokenizer
from tests.selflengthen.endpoints import KEY, RUN, connect, endpoint, lines, names, rows, settings


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), window=8192)


def answer(stage: SelfLengthenStage, folder: Path, count: int = 4) -> Crew:
    """Some first answers into the state of `folder`."""
    store = Store(folder / "state.sqlite")
    serving = Serving(stage, folder, run_digits(store))
    crew = Crew(_work(stage, store, 1), serving, StageContext(folder, seed=1, stage="loop"))
    try:
        tasks = (respond(crew.work, 1, f"i{i}", "en", f"Write a story about the ship {i}.", 0) for i in range(count))
        crew.run(Tasks.of(tasks), 0, ("generator",), "responses", count)
    finally:
        serving.stop()
        store.close()
    return crew


# ------------------------------------------------------------------------------------------------- the command
def test_the_first_server_can_take_every_adapter_of_the_run(tmp_path, model):
    """A server that is left running must have room for the rank that the last macro-iteration will have."""
    plain = {"lora_rank": 8, "lora_alpha": 16}
    stage = settings("http://h:1/v1", model, tmp_path, iterations=3, training=plain)
    command = serve_command(stage, tmp_path, 0, RUN)
    room = ["--enable-lora", "--max-lora-rank", "32", "--max-loras", "2"]
    assert command[command.index("--enable-lora") :][:5] == room
    huge = settings("http://h:1/v1", model, tmp_path, iterations=9, training={"lora_rank": 64, "lora_alpha": 64})
    with pytest.raises(LengthenError, match="rank 576"):
        serve_command(huge, tmp_path, 0, RUN)
    with pytest.raises(ValidationError, match="lora_rank 0"):
        settings("http://h:1/v1", model, tmp_path, training={"lora_rank": 0})


def test_the_command_names_the_run_and_the_window(tmp_path, model):
    stage = settings("http://h:1/v1", model, tmp_path, window=4096)
    command = serve_command(stage, tmp_path, 2, RUN)
    assert command[command.index("--max-model-len") + 1] == "4096"
    assert [part.partition("=")[0] for part in command[command.index("--lora-modules") + 1 :]] == [
        f"generator-2-{RUN}", f"extender-2-{RUN}",
    ]  # fmt: skip
    serve = {"endpoint": "http://h:1/v1", "arguments": ["--max-model-len=2048"]}
    own = settings("", model, tmp_path, serve=serve)
    assert "--max-model-len" not in serve_command(own, tmp_path, 0, RUN), "the user's own is not given twice"
    assert "--max-model-len" not in serve_command(
        settings("http://h:1/v1", model, tmp_path, window=None), tmp_path, 0, RUN
    )


def test_a_run_keeps_its_digits_and_another_run_has_others(tmp_path):
    digits = []
    for name in ("a", "a", "b"):
        store = Store(tmp_path / name / "state.sqlite")
        digits.append(run_digits(store))
        store.close()
    assert digits[0] == digits[1] != digits[2] and all(len(one) == 8 and int(one, 16) >= 0 for one in digits)


# ------------------------------------------------------------------------------------------ the model of an endpoint
def test_which_of_an_endpoints_models_is_the_starting_one():
    url, adapter = "http://h/v1", Listed("x", parent="m")
    other = Listed("generator-1-deadbeef")
    assert base_model(url, "", []).name == "base"
    assert base_model(url, "", [Listed("m"), adapter, other]).name == "m"
    assert base_model(url, "", [Listed("m", "/w"), Listed("alias", "/w")]).name == "m"
    assert base_model(url, "", [Listed("m"), Listed("base", window=9)]).window == 9
    assert base_model(url, "n", [Listed("m"), Listed("n", window=7)]).window == 7
    with pytest.raises(LengthenError, match=r"m, n; none is called 'base'(.|\n)*http://h/v1#NAME"):
        base_model(url, "", [Listed("m"), Listed("n")])
    with pytest.raises(LengthenError, match=r"no model 'mm'(.|\n)*did you mean 'm'"):
        base_model(url, "mm", [Listed("m"), Listed("n")])


def test_models_are_compared_by_what_they_were_loaded_from(tmp_path, model):
    cached = make_tokenizer_folder(tmp_path / "models--Org--Small-1B" / "snapshots" / "0a")
    assert same_model(Listed("base", str(model)), str(model)) is True
    assert same_model(Listed("base", "org/small-1b"), str(cached)) is True
    assert same_model(Listed("Org/Large-70B"), str(cached)) is False
    assert same_model(Listed("base", "/elsewhere/weights"), str(cached)) is None
    assert same_model(Listed("base"), str(model)) is None


def make_tokenizer_folder(folder: Path) -> Path:
    """A model folder without weights, whose tokenizer cuts into other pieces than that of `make_model`."""
    folder.mkdir(parents=True)
    make_tokenizer(folder, size=270)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 8192}))
    return folder


def test_another_model_is_refused_and_the_same_one_elsewhere_is_not(tmp_path, model):
    other = make_tokenizer_folder(tmp_path / "other")
    with endpoint(tmp_path, model, "--model", str(model), "--root", "/elsewhere/weights") as (url, log):
        assert connect(settings(url, model, tmp_path), tmp_path).notes == []
        assert len([row for row in lines(log, "asked") if row["key"] == "None/1"]) >= 2
        with pytest.raises(LengthenError, match="tokenizer is another one"):
            connect(settings(url, other, tmp_path), tmp_path)
    with endpoint(tmp_path, model, "--model", str(model), "--root", "org/large-70b", "--names", "m") as (url, _):
        hub = make_tokenizer_folder(tmp_path / "models--Org--Small-1B" / "snapshots" / "0a")
        with pytest.raises(LengthenError, match=r"serves 'org/large-70b'(.|\n)*another model than the one that is tra"):
            connect(settings(url, hub, tmp_path), tmp_path)
        with pytest.raises(LengthenError, match="tokenizer is another one"):
            connect(settings(f"{url}#m", hub, tmp_path), tmp_path)
        for file in ("tokenizer.json", "chat_template.jinja"):  # a copy under another name
            (hub / file).write_text((model / file).read_text())
        (note,) = connect(settings(f"{url}#m", hub, tmp_path), tmp_path).notes
        assert "taken for the same model" in note


def test_several_models_need_a_name(tmp_path, model):
    with endpoint(tmp_path, model, "--names", "small", "large") as (url, log):
        with pytest.raises(LengthenError, match="it lists small, large"):
            connect(settings(url, model, tmp_path), tmp_path)
        connect(settings(f"{url}#small", model, tmp_path), tmp_path)
        assert {row["model"] for row in lines(log, "asked")} == {"small"}


# -------------------------------------------------------------------------------------------------------------- keys
def test_a_key_opens_every_path(tmp_path, model, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    with endpoint(tmp_path, model, "--key", "sesame") as (url, log):
        stage = settings(url, model, tmp_path)
        with pytest.raises(KeyRefused, match=r"refuses the key \(401\)"):
            connect(stage, tmp_path)
        assert len(lines(log, "locked")) == 1 and not lines(log, "asked"), "refused at once, at the first request"
        monkeypatch.setenv("MY_KEY", "sesame")
        stage = settings(url, model, tmp_path, serve={"endpoint": url, "key": "MY_KEY"})
        connect(stage, tmp_path, after=1)
        assert len(lines(log, "locked")) == 1
        monkeypatch.setenv(KEY, "sesame")
        assert names(url) == ["base", f"extender-1-{RUN}", f"generator-1-{RUN}"]


def test_another_runs_adapters_are_not_used(tmp_path, model):
    with endpoint(tmp_path, model, "--adapters", "generator-1", "extender-1", "generator-1-ffffffff") as (url, _):
        connect(settings(url, model, tmp_path), tmp_path, after=1)
        assert set(names(url)) >= {f"generator-1-{RUN}", f"extender-1-{RUN}"}


def test_a_server_that_forbids_adapters_gets_the_command(tmp_path, model):
    """Its list is open to us, so that the key is not what is wrong."""
    for status in ("401", "403"):
        said = rf"(?s)does not serve.*: {status} .*vllm serve .*--lora-modules"
        more = ("--no-runtime-adapters", "--adapters-status", status)
        with endpoint(tmp_path, model, *more) as (url, _), pytest.raises(LengthenError, match=said):
            connect(settings(url, model, tmp_path), tmp_path, after=1)


def test_an_endpoint_without_a_list_is_used_and_that_is_said(tmp_path, model):
    with endpoint(tmp_path, model, "--model", str(model), "--no-list") as (url, _):
        notes = connect(settings(url, model, tmp_path), tmp_path).notes
        assert notes == [f"{url} does not list its models: their names and their window are not checked."]


# ---------------------------------------------------------------------------------------------- windows and tries
def test_requests_fit_the_servers_window(tmp_path, model):
    """The server counts with the model's tokenizer and refuses what is too long."""
    with endpoint(tmp_path, model, "--model", str(model), "--max-model-len", "3000") as (url, log):
        crew = answer(settings(url, model, tmp_path), tmp_path / "run")
        assert crew.work.window == 3000 and any("3,000 tokens" in note for note in crew.serving.notes)
        assert len(lines(log, "asked")) > 4 and not lines(log, "too_long")
    assert rows(tmp_path / "run", "SELECT SUM(errors), COUNT(*) - COUNT(finish_reason) FROM requests") == [(0, 0)]
    most = max(json.loads(text)["max_new_tokens"] for (text,) in rows(tmp_path / "run", "SELECT request FROM requests"))
    assert 2500 < most < 3000


def test_a_window_that_is_not_told_is_a_rule_and_is_asked_for_once(tmp_path, model):
    serve = ("--model", str(model), "--max-model-len", "3000", "--no-list")
    with endpoint(tmp_path, model, *serve) as (url, log):
        stage = settings(url, model, tmp_path)
        answer(stage, tmp_path / "run")
        assert len(lines(log, "too_long")) == 4
        answer(stage, tmp_path / "run", count=5)  # goes on: only the fifth is asked
        assert len(lines(log, "too_long")) == 5
    found = rows(tmp_path / "run", "SELECT DISTINCT rule, detail FROM verdicts")
    assert {rule for rule, _ in found} == {"no_room"} and all("context length is 3000" in said for _, said in found)
    assert rows(tmp_path / "run", "SELECT SUM(sends), SUM(errors), COUNT(finish_reason) FROM requests") == [(5, 5, 5)]


def test_every_try_on_the_wire_is_counted(tmp_path, model):
    with endpoint(tmp_path, model, "--broken", "1", "--latency", "0.01") as (url, log):
        answer(settings(url, model, tmp_path), tmp_path / "run")
        asked = [row for row in lines(log, "asked") if row["seed"] is not None]
    ((sends, errors, requests),) = rows(tmp_path / "run", "SELECT SUM(sends), SUM(errors), COUNT(*) FROM requests")
    assert sends == len(asked) == 2 * requests and errors == 0


def test_a_time_out_is_heard_after_one_try(tmp_path, model):
    quick = {"in_flight": 16, "base_seconds": 1.5, "slowest_tokens_per_second": 1e6}
    with endpoint(tmp_path, model, "--hanging", "1", "--hang-seconds", "60", "--latency", "0.01") as (url, log):
        once = {"respond": {"tries": 1}, "retry": {"error_tries": 1}, "serve": {"endpoint": url, **quick}}
        # The server's first answer to each question hangs, the probes' too: these are asked again.
        answer(settings(url, model, tmp_path, **once), tmp_path / "run")
        asked = [row for row in lines(log, "asked") if row["seed"] is not None]
    assert len(asked) == 4
    assert rows(tmp_path / "run", "SELECT DISTINCT rule, detail FROM verdicts") == [
        ("endpoint_error", "TimeoutError: no answer within 1.5041 s")
    ]


# ------------------------------------------------------------------------------------------------------- thinking
def test_thinking_is_refused_by_name_and_switched_off_by_the_templates_options(tmp_path, model):
    with endpoint(tmp_path, model, "--thinks", "--latency", "0.01") as (url, log):
        answer(settings(url, model, tmp_path, respond={"tries": 2}), tmp_path / "thinks")
        off = {"template_options": {"enable_thinking": False}, "respond": {"tries": 6}}
        answer(settings(url, model, tmp_path, **off), tmp_path / "silent")
        assert {"enable_thinking": False} in [row["options"] for row in lines(log, "asked")]
    assert rows(tmp_path / "thinks", "SELECT DISTINCT rule FROM verdicts") == [("thinking",)]
    rules = {rule for (rule,) in rows(tmp_path / "silent", "SELECT rule FROM verdicts")}
    assert "" in rules and "thinking" not in rules


def test_the_templates_options_reach_the_model_in_this_process(tmp_path, model):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with open(folder / "chat_template.jinja", "a") as template:
        template.write("{% if enable_thinking is defined %}{{ 'thinking ' ~ enable_thinking }}{% endif %}")
    stage = settings("", folder, tmp_path, template_options={"enable_thinking": False}, serve={})
    serving = Serving(stage, tmp_path, RUN)
    from lengthen.generate import Request

    try:
        engine = serving.engines(0, ("base",))["base"]
        request = Request("r", messages=({"role": "user", "content": "Hello."},))
        assert engine.render(request).endswith("thinking False")  # type: ignore[union-attr]
    finally:
        serving.stop()
