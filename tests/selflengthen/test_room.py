"""Room in the window: what a chat template takes of it, what a server takes of it; and answers that are none."""

import pytest

from lengthen.generate.engine import NO_ROOM, Answer, failed
from lengthen.models import load_tokenizer
from lengthen.recipe.stages.self_lengthen import Retry, Sampling
from lengthen.selflengthen.checks import Verdict, failure
from lengthen.selflengthen.extend import extend
from lengthen.selflengthen.respond import respond
from lengthen.selflengthen.work import Ladder, template_tokens, user
from tests.conftest import make_tokenizer
from tests.selflengthen.parts import drive, new_work, prose

ASKED = "Write a story about gulls."
MARKS = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"


def test_the_templates_share_of_the_window_is_measured(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    plain, marks = template_tokens(tokenizer, {}), len(tokenizer(MARKS).input_ids)
    assert marks <= plain <= marks + 8
    whole = tokenizer.apply_chat_template([*user(ASKED, "Be brief.")], add_generation_prompt=True, tokenize=True)
    contents = sum(len(tokenizer(text).input_ids) for text in (ASKED, "Be brief."))
    assert len(whole["input_ids"]) <= contents + plain
    body = tokenizer.chat_template
    tokenizer.chat_template = "{{ 'Nobody counts crates before the town wakes. ' * 20 }}" + body
    assert template_tokens(tokenizer, {}) > plain + 100
    tokenizer.chat_template = "{% if not short %}{{ 'Nobody counts crates. ' * 20 }}{% endif %}" + body
    assert template_tokens(tokenizer, {"short": True}) == plain < template_tokens(tokenizer, {})
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    tokenizer.chat_template = refuses + body
    assert 0 < template_tokens(tokenizer, {}) < plain


def test_a_plain_template_takes_little(model_folder):
    assert template_tokens(load_tokenizer(model_folder), {}) < 64


def test_a_smaller_window_of_the_server_is_taken_over(tmp_path):
    work = new_work(tmp_path, window=8192)
    assert work.narrow(0) is None and work.narrow(9000) is None and work.window == 8192
    note = work.narrow(1000)
    assert note is not None and "1,000 tokens" in note and "8,192" in note
    asked = drive(work, respond(work, 1, "i0", "en", ASKED, 0), lambda request: prose(60))
    assert asked[0].max_new_tokens == 1000 - 5 - work.template_tokens


def test_what_a_server_has_no_room_for_is_asked_for_once(tmp_path):
    work = new_work(tmp_path)
    said = f"{NO_ROOM}: maximum context length is 512"
    assert len(drive(work, respond(work, 1, "i0", "en", ASKED, 0), lambda request: failed(request, said))) == 1
    task = extend(work, 1, "i0~0", "en", ASKED, prose(120), 0)
    assert len(drive(work, task, lambda request: failed(request, said))) == 1
    assert {rule for (rule,) in work.store.query("SELECT rule FROM verdicts")} >= {"no_room"}
    work.store.query("DELETE FROM outcomes")  # killed before the task could end: the answer is in the store
    assert drive(work, respond(work, 1, "i0", "en", ASKED, 0), lambda request: prose(60)) == []
    ladder = Ladder(20, Retry(), Sampling())
    assert ladder.more()
    ladder.rejected(Verdict("no_room", "12 tokens left"))
    assert ladder.more(), "another draw may leave more room"
    ladder.rejected(Verdict("no_room", said))
    assert not ladder.more()


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nThe user wants", "I should begin.\n</think>\n\nIt was night.", "<thinking>So.</thinking> Yes",
        "[THINK]Well[/THINK]Yes", "◁think▷so◁/think▷ yes", "< think >",
    ],
)  # fmt: skip
def test_thinking_aloud_is_no_answer(text):
    verdict = failure(Answer("a", text, "stop"))
    assert verdict is not None and (verdict.rule, verdict.words) == ("thinking", 0)


@pytest.mark.parametrize("text", ["I think so.", "a < b, think of c > d", "The [thinking] man", ""])
def test_a_text_about_thinking_is_one(text):
    assert failure(Answer("a", text, "stop")) is None


def test_errors_are_told_apart():
    rules = [failure(Answer("a", "", "error", error=said)) for said in (f"{NO_ROOM}: 400", "HTTP 500", None)]
    assert [verdict.rule for verdict in rules if verdict] == ["no_room", "endpoint_error", "endpoint_error"]
