"""The pipeline in waves, with engines that fail in ways of their own."""

from collections.abc import Iterator, Sequence

import pytest

from lengthen.common.errors import LengthenError
from lengthen.generate.engine import Answer, Request, failed
from lengthen.selflengthen.pipeline import Pipeline, run_tasks
from lengthen.selflengthen.respond import respond
from tests.selflengthen.parts import new_work, prose


class Scripted:
    """An engine in the sense of the protocol: answers in reverse order, with what `reply` says."""

    name = "scripted"

    def __init__(self, reply) -> None:
        self.reply, self.waves = reply, []

    def generate(self, requests: Sequence[Request]) -> Iterator[Answer]:
        self.waves.append(len(requests))
        for request in reversed(requests):
            answer = self.reply(request)
            if answer is not None:
                yield answer

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def render(self, request: Request) -> str:
        return ""

    def close(self) -> None: ...


def run(work, reply, count: int = 10, **more) -> tuple[Scripted, Pipeline]:
    engine = Scripted(reply)
    pipeline = Pipeline(work.store, {"generator": engine}, **more)
    run_tasks(pipeline, (respond(work, 1, f"i{i}", "en", f"Write about {i}.", 0) for i in range(count)))
    return engine, pipeline


def test_all_that_is_ready_goes_out_as_one_wave(tmp_path):
    work = new_work(tmp_path)
    engine, pipeline = run(work, lambda r: Answer(r.id, prose(40, r.seed % 50), "stop", 1, 40))
    assert engine.waves == [10] and pipeline.traffic.asked == 10 and pipeline.traffic.tokens == 400
    engine, pipeline = run(work, lambda r: failed(r, "never asked"), count=10)
    assert engine.waves == []  # finished tasks end without asking
    work = new_work(tmp_path / "b")
    engine, _ = run(work, lambda r: Answer(r.id, prose(40, r.seed % 50), "stop"), count=10, in_flight=4)
    assert engine.waves == [4, 4, 2]


def test_an_error_is_sent_again_and_then_counts_as_a_try(tmp_path):
    work = new_work(tmp_path, respond={"tries": 2})
    _, pipeline = run(work, lambda r: failed(r, "HTTP 500"), count=3, error_tries=3)
    assert pipeline.traffic.errors == 3 * 2 * 3
    assert work.store.query("SELECT DISTINCT rule, detail FROM verdicts") == [("endpoint_error", "HTTP 500")]
    assert work.store.query("SELECT SUM(sends), SUM(errors) FROM requests") == [(18, 18)]
    assert all(o.text is None for o in work.store.outcomes(1, "response"))


def test_an_answer_that_the_engine_forgets_is_an_error(tmp_path):
    work = new_work(tmp_path, respond={"tries": 1})
    run(work, lambda r: None, count=2, error_tries=1)
    assert work.store.query("SELECT DISTINCT detail FROM verdicts") == [("the engine gave no answer",)]


def test_nothing_but_errors_stops_the_run_before_the_tries_are_used_up(tmp_path):
    work = new_work(tmp_path)
    with pytest.raises(LengthenError, match="last 20 requests all ended in errors; the last one: gone"):
        run(work, lambda r: failed(r, "gone"), count=200, in_a_row=20)
    # The endpoint is back: what was open is asked, nothing has been lost.
    engine, _ = run(work, lambda r: Answer(r.id, prose(40, r.seed % 50), "stop"), count=200)
    assert sum(engine.waves) >= 200 - 20 and len(work.store.outcomes(1, "response")) == 200


def test_an_engine_that_raises_stops_the_run(tmp_path):
    def broken(request):
        raise LengthenError("The model does not fit.")

    with pytest.raises(LengthenError, match="does not fit"):
        run(new_work(tmp_path), broken)
