"""Self-instruct: a proposal that hangs holds back only what depends on it; a judge that never says yes is noticed."""

from __future__ import annotations

import random

import pytest

from lengthen.common.errors import LengthenError
from lengthen.generate.engine import Answer, Request
from lengthen.selflengthen.distinct import Pool
from lengthen.selflengthen.instruct import Filters
from lengthen.selflengthen.phases import top_reasons
from lengthen.selflengthen.proposals import Proposals, TooFew
from tests.selflengthen.parts import drive, new_work
from tests.selflengthen.server import SOUNDS

SEEDS = {"en": [f"Write a long essay about harbour number {i}." for i in range(10)]}


def reply(request: Request) -> str:
    """An instruction of made-up words, one in ten the same as others; a judge that says yes to two of three."""
    draws = random.Random(request.seed)
    if request.max_new_tokens == 16:
        return draws.choice(["Yes.", "Yes", "No."])
    if draws.random() < 0.1:
        return f" Describe the customs of village number {draws.randrange(5)} in the hills.\n"
    return f" Write about {' '.join(draws.choice(SOUNDS) + draws.choice(SOUNDS) for _ in range(6))}.\n"


def source_in(folder, count: int, in_flight: int = 8, **instruct) -> Proposals:
    work = new_work(folder, instruct={"count": count, "tries": 2, **instruct}, serve={"in_flight": in_flight})
    return Proposals(work, 1, count, SEEDS, Filters(3, 500, Pool(0.7), Pool(0.7, 8)))


def run(source: Proposals, hanging: int | None = None, order: int = 1, say=reply) -> list:
    """Run all that can run, `order` -1 the newest first; the candidate `hanging` gets no answer. Returns its task."""
    hung, number = [], 0
    while True:
        tasks = []
        while (task := source.next_task()) is not None:
            tasks.append((number, task))
            number += 1
        todo = [task for at, task in tasks if at != hanging]
        hung += [task for at, task in tasks if at == hanging]
        if not todo:
            return hung
        for task in todo[::order]:
            drive(source.work, task, say)


def state(source: Proposals) -> list:
    store = source.work.store
    requests = store.query("SELECT iteration, item, attempt, step, request, text FROM requests ORDER BY 1, 2, 3, 4")
    return [source.accepted, requests, store.query("SELECT * FROM verdicts ORDER BY 1, 2, 3, 4, 5, 6")]


@pytest.mark.parametrize("order", [1, -1])
def test_a_hanging_proposal_holds_back_only_what_depends_on_it(tmp_path, order):
    plain = source_in(tmp_path / "plain", 150, block=20)
    assert run(plain) == [] and len(plain.accepted) == 150
    stuck = source_in(tmp_path / "stuck", 150, block=20)
    hung = run(stuck, hanging=7, order=order)
    # By number it is the eighth of two hundred; without it all others went on, far beyond two blocks of 20.
    assert len(hung) == 1 and len(stuck.accepted) <= 7 and stuck.more()
    known = stuck.work.store.query("SELECT COUNT(DISTINCT item) FROM requests WHERE finish_reason IS NOT NULL")[0][0]
    all_asked = plain.work.store.query("SELECT COUNT(DISTINCT item) FROM requests")[0][0]
    assert known >= 0.8 * all_asked
    drive(stuck.work, hung[0], reply)
    assert run(stuck) == [] and not stuck.more()
    assert state(stuck) == state(plain)  # requests, answers, verdicts and what was accepted


def test_no_more_candidates_are_asked_for_than_are_needed(tmp_path):
    source = source_in(tmp_path, 60, block=500)
    first = []
    while (task := source.next_task()) is not None:
        first.append(task)
    assert len(first) == 60  # all of them could be accepted
    for task in first:
        drive(source.work, task, reply)
    run(source)
    numbers = [int(item[1:]) for (item,) in source.work.store.query("SELECT DISTINCT item FROM requests")]
    assert len(source.accepted) == 60 and sorted(numbers) == list(range(len(numbers)))
    assert source.work.store.query("SELECT rule FROM verdicts WHERE step='new' ORDER BY item DESC LIMIT 1") == [("",)]


def test_all_places_stay_in_use_although_examples_come_from_earlier_answers(tmp_path):
    source = source_in(tmp_path, 1500, in_flight=200, block=50, judge=False)
    draws, out, asked = random.Random(3), [], 0
    while asked < 1200:
        while len(out) < 200 and (task := source.next_task()) is not None:
            out.append(task)
        assert len(out) == 200
        drive(source.work, out.pop(draws.randrange(200)), reply)
        asked += 1


def test_another_number_of_requests_at_once_changes_nothing_later(tmp_path):
    sources = [source_in(tmp_path / "a", 60, in_flight=n, block=10) for n in (20, 30)]
    assert [source.block for source in sources] == [20, 20]
    assert source_in(tmp_path / "b", 60, in_flight=30, block=10).block == 30


def test_instructions_that_passed_become_examples_and_others_do_not(tmp_path):
    source = source_in(tmp_path, 120, block=10)
    run(source)
    store = source.work.store
    good = {text for _, text in source.accepted}
    shown = [text for (text,) in store.query("SELECT request FROM requests WHERE step='' AND item>'c000060'")]
    assert any(text in request for request in shown for text in good)
    told = store.query("SELECT detail FROM verdicts WHERE rule='judged_no' AND detail LIKE '%: Write about%'")
    refused = {detail.split(": ", 1)[1] for (detail,) in told}
    assert len(refused) > 20 and not any(text in request for request in shown for text in refused)


def test_a_judge_that_never_says_yes_stops_the_phase(tmp_path):
    source = source_in(tmp_path, 5000)

    def never(request: Request) -> str:
        return "No." if request.max_new_tokens == 16 else reply(request)

    with pytest.raises(TooFew, match="0 of the first 100 proposed instructions can be used") as caught:
        run(source, say=never)
    assert "judged_no 200x" in str(caught.value) and "templates or file" in str(caught.value)
    asked = source.work.store.query("SELECT COUNT(*) FROM requests")[0][0]
    assert asked == 100 * 2 * 2 and isinstance(caught.value, LengthenError)
    assert "instruct: judged_no 200x" in top_reasons(source.work.store, 1)


def test_a_judge_that_says_yes_now_and_then_goes_on(tmp_path):
    source = source_in(tmp_path, 100, candidates_per_instruction=2.0)

    def rarely(request: Request) -> Answer | str:
        draws = random.Random(request.seed)
        return ("Yes" if draws.random() < 0.05 else "No") if request.max_new_tokens == 16 else reply(request)

    run(source, say=rarely)
    assert 4 <= len(source.accepted) < 100 and not source.more()
