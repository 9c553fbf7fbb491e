"""The pipeline in waves, with engines that fail in ways of their own."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from lengthen.common.errors import LengthenError
from lengthen.generate.engine import Answer, Request, failed
from lengthen.selflengthen.checks import Verdict
from lengthen.selflengthen.phases import Extensions, Responses
from lengthen.selflengthen.pipeline import Pipeline, run_tasks
from lengthen.selflengthen.respond import respond
from lengthen.selflengthen.store import Key
from lengthen.selflengthen.work import tokens_are_bytes
from tests.conftest import make_tokenizer
from tests.selflengthen.parts import new_work, prose
from tests.selflengthen.server import reply as scripted


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


def extended(folder, at_once: int = 64, count: int = 40, **changes):
    """Responses and extensions of some instructions by an engine with good and bad answers; what the state holds."""
    work = replace(new_work(folder, extend={"tries": 2, "rounds": 2}, respond={"tries": 3, "samples": 1}), **changes)

    def reply(request: Request) -> Answer:
        asked = [message["content"] for message in request.messages or ()]
        text, finish = scripted(asked, request.prefix, request.seed, 0.5)
        return Answer(request.id, text, "length" if finish == "length" else "stop", 5, len(text.split()), 0.01)

    engine = Scripted(reply)
    pipeline = Pipeline(work.store, {"generator": engine, "extender": engine}, in_flight=16, at_once=at_once)
    instructions = {f"i{i:03}": ("en", f"Write about boat number {i}.") for i in range(count)}
    responses = Responses.of(work, 1, instructions)
    pipeline.run(Extensions(work, 1, responses))
    tables = ("SELECT iteration, role, item, sample, attempt, step, request, text, finish_reason FROM requests",
              "SELECT * FROM verdicts", "SELECT * FROM outcomes")  # fmt: skip
    return [sorted(work.store.query(sql), key=str) for sql in tables]


def test_many_answers_in_one_transaction_say_the_same_as_one_by_one(tmp_path):
    together = extended(tmp_path / "together")
    assert extended(tmp_path / "single", at_once=1) == together
    assert len(together[1]) > 100 and {row[6] for row in together[1]} > {"", "empty", "cut_by_limit"}


def test_what_the_bytes_show_needs_no_tokenizer_and_changes_nothing(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    counted: list[str] = []

    def tokens(text: str) -> int:
        counted.append(text)
        return len(tokenizer.encode(text, add_special_tokens=False))

    assert tokens_are_bytes(tokenizer)
    found = {}
    for window in (3000, 10**6):
        for bound in (False, True):
            counted.clear()
            how = {"window": window, "count_tokens": tokens, "bytes_bound": bound}
            state = extended(tmp_path / f"{window}-{bound}", count=15, **how)
            found[window, bound] = state, len(counted)
        assert found[window, True][0] == found[window, False][0]
    # With a small window tokens decide (and some texts have no room); with a large one the bytes do.
    assert {row[6] for row in found[3000, True][0][1]} & {"no_room"}
    assert 0 < found[3000, True][1] < found[3000, False][1] and found[10**6, True][1] == 0


def test_answers_are_there_for_another_process_before_a_task_sees_them(tmp_path):
    work, seen = new_work(tmp_path), []

    def task(number: int):
        key = Key(1, "response", f"i{number}")
        request = work.ask(key, "generator", ({"role": "user", "content": "Write."},), work.settings.sampling, 64)
        yield request
        with contextlib.closing(sqlite3.connect(f"file:{work.store.path}?mode=ro", uri=True)) as other:
            found = other.execute("SELECT text FROM requests WHERE item=?", (key.item,)).fetchall()
            seen.append(found == [("Well.",)])
        work.finish(key, "Well.", Verdict(""), None, {})

    class Looking(Scripted):
        def generate(self, requests: Sequence[Request]) -> Iterator[Answer]:
            with contextlib.closing(sqlite3.connect(f"file:{work.store.path}?mode=ro", uri=True)) as other:
                seen.append(other.execute("SELECT COUNT(*) FROM requests").fetchone()[0])  # sent only when written down
            yield from super().generate(requests)

    pipeline = Pipeline(work.store, {"generator": Looking(lambda r: Answer(r.id, "Well.", "stop"))})
    run_tasks(pipeline, (task(i) for i in range(20)))
    assert seen == [20] + [True] * 20


def test_what_a_task_wrote_before_it_failed_stays(tmp_path):
    work = new_work(tmp_path)

    def broken():
        work.judge(Key(1, "response", "i0"), Verdict("loop"))
        raise LengthenError("No.")
        yield

    with pytest.raises(LengthenError, match="No"):
        run_tasks(Pipeline(work.store, {}), [broken()])
    with contextlib.closing(sqlite3.connect(f"file:{work.store.path}?mode=ro", uri=True)) as other:
        assert other.execute("SELECT rule FROM verdicts").fetchall() == [("loop",)]


def test_busy_counts_the_seconds_on_the_wire(tmp_path):
    """An answer that waits in this process, or a task that computes, keeps no place of the endpoint busy."""
    work = new_work(tmp_path)

    def slow(i: int):
        yield from respond(work, 1, f"i{i}", "en", "Write.", 0)
        time.sleep(0.02)

    engine = Scripted(lambda r: Answer(r.id, prose(40, r.seed % 50), "stop", 1, 40, seconds=0.01))
    pipeline = Pipeline(work.store, {"generator": engine}, in_flight=8)
    traffic = run_tasks(pipeline, (slow(i) for i in range(8)))
    assert traffic.wire == pytest.approx(0.08) and traffic.seconds >= 0.16
    assert traffic.busy == pytest.approx(0.08 / (8 * traffic.seconds)) and traffic.busy < 0.07
    facts = traffic.facts()
    assert facts["requests"] == 8 and facts["requests_per_second"] == pytest.approx(8 / traffic.seconds, rel=0.01)
    assert 0 <= facts["processor_seconds"] < 5
    both = traffic + traffic
    assert both.asked == 16 and both.busy == pytest.approx(traffic.busy)


def test_a_request_that_does_not_fit_the_server_is_not_sent_again(tmp_path):
    work = new_work(tmp_path, respond={"tries": 1})
    _, pipeline = run(work, lambda r: failed(r, "no room: 9 tokens"), count=3, error_tries=3, in_a_row=2)
    assert pipeline.traffic.errors == pipeline.traffic.asked == 3
