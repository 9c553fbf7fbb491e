"""The endpoint engine against a real HTTP server that behaves well or badly."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from lengthen.common.errors import LengthenError
from lengthen.generate import Request, open_engine
from lengthen.generate.endpoint import EndpointEngine
from lengthen.generate.engine import NO_ROOM
from lengthen.generate.listing import KeyRefused, NoAnswer, list_models
from lengthen.generate.wire import EndpointOptions
from tests.generate.server import Script, serving

FAST = EndpointOptions(concurrency=8, retries=3, seconds=30.0, seconds_per_token=0.01, backoff=0.05)


def ask(i: int, **more) -> Request:
    return Request(f"q{i}", messages=({"role": "user", "content": f"word number-{i}"},), max_new_tokens=20, **more)


def answers(script: Script, requests, *, options: EndpointOptions = FAST, tokenizer: str | None = None):
    with serving(script) as address:
        engine = EndpointEngine(address, tokenizer=tokenizer, options=options)
        return {a.id: a for a in engine.generate(requests)}


def test_all_requests_are_answered_several_at_once():
    script = Script(latency=0.1)
    found = answers(script, [ask(i) for i in range(24)])
    assert {a.text for a in found.values()} == {f"echo number-{i}" for i in range(24)}
    assert 4 <= script.most_at_once <= 8
    assert all(a.finish_reason == "stop" and a.prompt_tokens and a.new_tokens == 2 for a in found.values())


def test_answers_come_as_they_finish():
    script = Script(write=lambda prompt, body: time.sleep(2 * prompt.endswith("-0")) or "x")
    with serving(script) as address:
        engine = EndpointEngine(address, options=FAST)
        assert [a.id for a in engine.generate([ask(0), ask(1)])] == ["q1", "q0"]


@pytest.mark.parametrize("trouble", [429, 500, 503, "garbage", "html", "empty", "none", "drop"])
def test_trouble_that_passes_is_overcome(trouble):
    script = Script(trouble=lambda number, prompt: trouble if number in (0, 1, 4) else None)
    found = answers(script, [ask(i) for i in range(4)])
    assert sorted(a.text for a in found.values()) == [f"echo number-{i}" for i in range(4)]
    assert len(script.asked) == 4 + 3


@pytest.mark.parametrize("trouble", [500, "garbage", "html", "empty", "none"])
def test_trouble_that_stays_is_one_error_and_the_others_go_on(trouble):
    script = Script(trouble=lambda number, prompt: trouble if prompt.endswith("-1") else None)
    found = answers(script, [ask(i) for i in range(3)])
    assert found["q1"].finish_reason == "error" and found["q1"].text == "" and found["q1"].error
    assert found["q0"].text == "echo number-0" and found["q2"].text == "echo number-2"
    assert sum(p.endswith("-1") for p in script.asked) == 1 + FAST.retries, "tries are bounded"


def test_a_request_that_is_wrong_is_not_repeated():
    script = Script(trouble=lambda number, prompt: 400 if prompt.endswith("-1") else None)
    found = answers(script, [ask(0), ask(1)])
    assert "scripted 400" in found["q1"].error
    assert sum(p.endswith("-1") for p in script.asked) == 1


def test_tries_on_the_wire_are_counted():
    script = Script(trouble=lambda number, prompt: 500 if prompt.endswith("-1") or number in (0, 1) else None)
    found = answers(script, [ask(0)])
    assert (found["q0"].text, found["q0"].tries) == ("echo number-0", 3)
    found = answers(script, [ask(1)])
    assert (found["q1"].finish_reason, found["q1"].tries) == ("error", 1 + FAST.retries)


@pytest.mark.parametrize(("again", "tries"), [(False, 1), (True, 2)])
def test_a_time_out_ends_a_request_where_it_shall(again, tries):
    script = Script(trouble=lambda number, prompt: "hang")
    options = replace(FAST, retries=1, seconds=0.3, seconds_per_token=0.0, retry_timeouts=again)
    found = answers(script, [ask(0)], options=options)
    assert "no answer within" in found["q0"].error and found["q0"].tries == tries == len(script.asked)
    script = Script(trouble=lambda number, prompt: 504)  # a gateway's time-out is one too
    assert answers(script, [ask(0)], options=options)["q0"].tries == tries


def test_a_prompt_beyond_the_servers_window_is_told_apart_and_not_repeated():
    script = Script(max_model_len=30, trouble=lambda number, prompt: 400 if prompt.endswith("-2") else None)
    found = answers(script, [ask(0), replace(ask(1), max_new_tokens=28), ask(2)])
    assert found["q0"].text == "echo number-0" and found["q0"].final
    assert found["q1"].error.startswith(NO_ROOM) and "maximum context length is 30" in found["q1"].error
    assert found["q1"].final and found["q1"].tries == 1
    assert not found["q2"].error.startswith(NO_ROOM) and not found["q2"].final, "another 400 is an error as before"


def test_the_key_is_sent_and_a_refused_one_is_told_apart(monkeypatch):
    with serving(Script(key="sesame")) as address:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        with pytest.raises(KeyRefused, match=r"refuses the key \(401\)(.|\n)*OPENAI_API_KEY, which is not set"):
            EndpointEngine(address, options=FAST)
        monkeypatch.setenv("OTHER_KEY", "sesame")
        (answer,) = EndpointEngine(address, options=replace(FAST, key="OTHER_KEY")).generate([ask(0)])
        assert answer.text == "echo number-0"


def test_an_endpoint_without_a_list_and_one_that_is_busy():
    with serving(Script(lists=False)) as address:
        assert list_models(address, "OPENAI_API_KEY") is None
        (answer,) = EndpointEngine(address, "any", options=FAST).generate([ask(0)])
        assert answer.text == "echo number-0"
    for status in (503, 500, 502, 408):
        with serving(Script(busy=1, trouble_status=status)) as address:
            assert [row.name for row in list_models(address, "OPENAI_API_KEY") or []] == ["test-model"]


def test_a_server_that_stays_in_trouble_is_none_without_a_list(monkeypatch):
    monkeypatch.setattr("lengthen.generate.listing.time.sleep", lambda seconds: None)
    for status, times in ((502, 4), (400, 1)):
        script = Script(busy=99, trouble_status=status)
        with serving(script) as address, pytest.raises(NoAnswer, match=str(status)):
            list_models(address, "OPENAI_API_KEY")
        assert script.busy == 99 - times
    with serving(Script(busy=1, trouble_status=501)) as address:
        assert list_models(address, "OPENAI_API_KEY") is None


def test_one_hanging_request_delays_nothing_else():
    script = Script(trouble=lambda number, prompt: "hang" if prompt.endswith("-0") else None)
    options = replace(FAST, concurrency=2, retries=0, seconds=5.0)
    with serving(script) as address:
        found = list(EndpointEngine(address, options=options).generate([ask(i) for i in range(12)]))
    assert len(found) == 12
    assert found[-1].id == "q0" and found[-1].finish_reason == "error"
    assert "no answer within" in found[-1].error
    assert found[-1].seconds < 15


def test_long_answers_get_more_time():
    script = Script(latency=3.0)
    short, long = replace(ask(0), max_new_tokens=5), replace(ask(1), max_new_tokens=200)
    options = replace(FAST, retries=0, seconds=0.5, seconds_per_token=0.2)
    found = answers(script, [short, long], options=options)
    assert found["q0"].finish_reason == "error"
    assert found["q1"].text == "echo number-1"


def test_retry_after_is_heeded():
    script = Script(trouble=lambda number, prompt: 429 if number == 0 else None, retry_after="0.4")
    began = time.monotonic()
    assert answers(script, [ask(0)])["q0"].text == "echo number-0"
    assert time.monotonic() - began > 0.4


def test_a_refused_key_stops_at_once():
    script = Script(trouble=lambda number, prompt: 401)
    with pytest.raises(LengthenError, match="refuses requests for the model 'test-model'"):
        answers(script, [ask(i) for i in range(30)])
    assert len(script.asked) <= 8


def test_an_endpoint_that_dies_stops_the_run_with_a_word():
    script = Script(latency=0.02)
    options = replace(FAST, concurrency=1, retries=1)
    with serving(script) as address:
        engine = EndpointEngine(address, options=options)
        iterator = engine.generate([ask(i) for i in range(40)])
        assert next(iterator).finish_reason == "stop"
        script.trouble = lambda number, prompt: "drop"
        with pytest.raises(LengthenError, match="does not answer"):
            for answer in iterator:
                assert answer.id


def test_no_endpoint_at_all():
    with pytest.raises(LengthenError, match="does not answer"):
        EndpointEngine("http://127.0.0.1:9/v1", "m")


def test_the_models_name_is_checked_and_found():
    with serving(Script(models=("small", "large"))) as address:
        with pytest.raises(LengthenError, match="did you mean 'large'"):
            EndpointEngine(address, "lagre")
        with pytest.raises(LengthenError, match="has 2 models: small, large"):
            EndpointEngine(address)
    with serving(Script(models=("only",))) as address:
        assert open_engine(f"{address}#only").name.endswith("#only")
        assert EndpointEngine(address).model == "only"


def test_length_and_stop_are_told():
    script = Script(write=lambda prompt, body: "one two three END four five six seven")
    found = answers(script, [ask(0, stop=("END",)), replace(ask(1), max_new_tokens=2)])
    assert (found["q0"].text, found["q0"].finish_reason) == ("one two three ", "stop")
    assert (found["q1"].text, found["q1"].finish_reason) == ("one two", "length")


def test_sampling_settings_are_sent_and_silent_ones_are_not():
    script = Script()
    answers(script, [ask(0), ask(1, temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.1, seed=5)])
    bodies = {prompt[-1]: body for prompt, body in script.seen}
    assert set(bodies["0"]) == {"model", "messages", "max_tokens", "temperature"}
    sent = {k: bodies["1"][k] for k in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")}
    assert sent == {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1, "seed": 5}


def test_a_prefix_is_continued_by_chat_where_the_endpoint_can():
    script = Script(continues=True)
    found = answers(script, [ask(0, prefix="The number is")])
    (body,) = [body for prompt, body in script.seen if "number-0" in prompt]
    assert body["continue_final_message"] is True and body["add_generation_prompt"] is False
    assert body["messages"][-1] == {"role": "assistant", "content": "The number is"}
    assert found["q0"].text == "echo is"


def test_an_echoed_prefix_is_not_part_of_the_answer():
    script = Script(continues=True, write=lambda prompt, body: "The number is 42")
    assert answers(script, [ask(0, prefix="The number is")])["q0"].text == " 42"


@pytest.mark.parametrize("strict", [False, True])
def test_a_prefix_goes_to_completions_where_chat_cannot(strict, model_folder):
    script = Script(strict=strict)
    found = answers(script, [ask(0, prefix="The number is")], tokenizer=str(model_folder))
    assert script.asked == ["<|im_start|>user\nword number-0<|im_end|>\n<|im_start|>assistant\nThe number is"]
    assert found["q0"].text == "echo is"


def test_completions_get_token_ids_where_they_are_taken(model_folder):
    from lengthen.models import load_tokenizer

    script = Script(ids=True)
    answers(script, [ask(0, prefix="So")], tokenizer=str(model_folder))
    tokenizer = load_tokenizer(model_folder)
    (prompt,) = [body["prompt"] for text, body in script.seen if isinstance(body.get("prompt"), list)][-1:]
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\nSo")


@pytest.mark.parametrize(
    ("script", "options", "reason"),
    [
        (Script(), FAST, "continue_final_message is ignored"),
        (Script(strict=True), FAST, r"was refused \(422\)"),
        (Script(usage=False), FAST, "no token counts"),
        (Script(completions=False), FAST, "answered 404"),
        (Script(), replace(FAST, api="chat"), "switched off by endpoint.api"),
    ],
)
def test_an_endpoint_that_cannot_continue_is_refused_with_what_it_lacks(script, options, reason):
    with pytest.raises(LengthenError, match=reason):
        answers(script, [ask(0, prefix="The number is")], options=options)
    assert not script.asked


def test_plain_prompts_need_completions():
    request = Request("q0", text="Once upon", max_new_tokens=5)
    assert answers(Script(), [request])["q0"].text == "echo upon"
    with pytest.raises(LengthenError, match="no /v1/completions"):
        answers(Script(completions=False), [request])


def test_requests_of_one_beginning_are_neighbours():
    script = Script()
    requests = [ask(i, share="even" if i % 2 == 0 else None) for i in range(8)]
    answers(script, requests, options=replace(FAST, concurrency=1))
    assert [p[-1] for p in script.asked] == list("02461357")


def test_an_iterator_that_is_closed_asks_no_more():
    script = Script(latency=0.05)
    with serving(script) as address:
        iterator = EndpointEngine(address, options=replace(FAST, concurrency=2)).generate([ask(i) for i in range(50)])
        next(iterator)
        iterator.close()
        asked = len(script.asked)
        time.sleep(0.3)
        assert len(script.asked) <= asked + 2 < 40
