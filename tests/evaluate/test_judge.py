"""The judge over real HTTP: readable, repairable, broken and missing answers, and none asked twice."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.common.files import read_json_lines
from lengthen.evaluate.judge import LONGBENCH_WRITE, LONGEN, Rubric, judge, quality, read_scores
from lengthen.evaluate.verdicts import FILE, judged
from lengthen.generate import open_engine
from tests.conftest import make_tokenizer
from tests.evaluate.helpers import job

SEVEN = {name: 7 for name in LONGEN.scales}


class Judge:
    """An OpenAI-compatible endpoint whose answers the test writes."""

    def __init__(self, reply):
        self.asked: list[str] = []
        self.keys: list[str | None] = []
        self.lists = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.lists += 1
                self.answer({"object": "list", "data": [{"id": "judge", "object": "model"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
                outer.asked.append(text)
                outer.keys.append(self.headers["Authorization"])
                content = reply(text, sum(t == text for t in outer.asked))
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
                self.answer({"id": "1", "object": "chat.completion", "created": 1, "model": "judge",
                             "choices": [choice], "usage": usage})  # fmt: skip

            def answer(self, value):
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.name = f"http://127.0.0.1:{self.server.server_port}/v1#judge"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    made: list[Judge] = []

    def start(reply):
        made.append(Judge(reply))
        return made[-1]

    yield start
    for judge_ in made:
        judge_.close()


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (f"Fine.\n{json.dumps(SEVEN)}", True),
        (f"```json\n{json.dumps(SEVEN)}\n```", True),
        ("Well: {" + ", ".join(f"{name}: 7" for name in SEVEN), True),
        (json.dumps({k.title(): "7/10" for k in SEVEN}), True),
        (json.dumps({"scores": 3}) + json.dumps(SEVEN), True),
        (json.dumps({**SEVEN, "clarity": 11}), False),
        (json.dumps({k: v for k, v in SEVEN.items() if k != "clarity"}), False),
        ("I give it a seven.", False),
        ("", False),
    ],
)
def test_scores_are_read_or_not(text, good):
    found = read_scores(text, LONGEN.scales)
    assert (found == SEVEN) if good else found is None


@given(st.text(max_size=80))
def test_no_text_breaks_the_reading(text):
    found = read_scores(text, LONGEN.scales)
    assert found is None or set(found) == set(LONGEN.scales)


def test_quality_is_the_scaled_mean():
    assert quality(LONGEN, SEVEN) == pytest.approx(6 / 9)
    assert quality(LONGBENCH_WRITE, {name: 5 for name in LONGBENCH_WRITE.scales}) == 1.0
    assert quality(LONGBENCH_WRITE, {name: 2 for name in LONGBENCH_WRITE.scales}) == pytest.approx((2 - 1) * 25 / 100)


def test_slots_are_filled_in_one_pass():
    rubric = Rubric("r", "Q {query} A {response} {x}", {"a": (0, 1)})
    assert rubric.fill({"query": "{response}", "response": "b{query}"}) == "Q {response} A b{query} {x}"
    assert len({LONGEN.sha256, LONGBENCH_WRITE.sha256, rubric.sha256}) == 3


def test_broken_answers_are_asked_again_and_counted(endpoint):
    def reply(text, times):
        if "alpha" in text:
            return json.dumps(SEVEN)
        if "beta" in text:
            return "broken" if times == 1 else json.dumps(SEVEN)
        return "I cannot say."

    server = endpoint(reply)
    engine = open_engine(server.name)
    items = [(name, {"query": "Write.", "response": name}) for name in ("alpha", "beta", "gamma")]
    found = judge(engine, LONGEN, items)
    engine.close()
    assert found["alpha"].scores == SEVEN and len(found["alpha"].raw) == 1
    assert found["beta"].scores == SEVEN and found["beta"].raw[0] == "broken"
    assert found["gamma"].scores is None and len(found["gamma"].raw) == 2 and found["gamma"].error
    assert len([t for t in server.asked if "gamma" in t]) == 2


def test_judgements_are_kept(endpoint, tmp_path):
    server = endpoint(lambda text, times: json.dumps(SEVEN) if "good" in text else "no")
    _, this = job("longform", make_tokenizer(tmp_path / "t"), tmp_path)
    items = {"a": {"query": "q", "response": "good"}, "b": {"query": "q", "response": "bad"}}
    first = judged(this, server.name, LONGEN, items)
    asked = len(server.asked)
    assert first["a"].scores == SEVEN and first["b"].scores is None
    second = judged(this, server.name, LONGEN, items)
    assert len(server.asked) == asked and second["a"].scores == SEVEN and second["b"].scores is None
    rows = list(read_json_lines(tmp_path / FILE))
    assert {row["prompt_sha256"] for row in rows} == {LONGEN.sha256} and rows[0]["raw"]
    judged(this, server.name, LONGEN, {"a": {"query": "q", "response": "good but changed"}})
    assert len(server.asked) == asked + 1, "another text is another question"


def test_a_judge_is_opened_once_and_gets_the_stages_endpoint_settings(endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server = endpoint(lambda text, times: json.dumps(SEVEN))
    settings = {"key": "JUDGE_KEY", "concurrency": 3, "seconds": 7.0, "api": "completions"}
    _, this = job("longform", make_tokenizer(tmp_path / "t"), tmp_path, endpoint=settings)
    for i in range(4):
        judged(this, server.name, LONGEN, {f"{i}": {"query": "q", "response": f"text {i}"}})
    assert server.lists == 1 and len(server.asked) == 4
    assert set(server.keys) == {"Bearer secret"}
    options = this.judges.get(server.name, this.settings).options
    assert (options.concurrency, options.seconds, options.api) == (3, 7.0, "auto"), "a judge is asked in plain chats"
    this.judges.close()
