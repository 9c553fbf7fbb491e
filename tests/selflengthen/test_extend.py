"""What ends an extension: cuts counted where they happen, windows that are full, texts that cannot be extended."""

import pytest

from lengthen.common.words import count_words
from lengthen.generate.engine import Answer
from lengthen.recipe.stages.self_lengthen import Retry, Sampling
from lengthen.selflengthen.checks import Verdict
from lengthen.selflengthen.extend import extend
from lengthen.selflengthen.respond import respond
from lengthen.selflengthen.work import Ladder
from tests.selflengthen.parts import drive, new_work, prose

ASKED = "Write a story about gulls."
CUT = Verdict("cut_by_limit", "still writing", 100, 100)


def extension(work, reply, text=None):
    asked = drive(work, extend(work, 1, "i0~0", "en", ASKED, text or prose(120), 0), reply)
    outcome = work.store.outcome(1, "extension", "i0~0", 0)
    assert outcome is not None
    return asked, outcome


def rules(work) -> dict[str, int]:
    return dict(work.store.query("SELECT rule, COUNT(*) FROM verdicts WHERE rule!='' GROUP BY rule"))


def test_cuts_in_two_places_do_not_end_an_extension(tmp_path):
    """Each of three rounds may be cut once in each stage; what the first round gave counts nevertheless."""
    work = new_work(tmp_path, window=10**6, extend={"rounds": 3, "tries": 2}, sampling={"max_new_tokens": 2000})
    cut = {(1, "a"), (1, "b"), (2, "a"), (2, "b")}  # by try and stage, each for the first time
    seen: set[tuple[int, str]] = set()

    def reply(request):
        _, _, _, _, attempt, step = request.id.split("/")
        place = (int(attempt), step[1])
        if place in cut - seen:
            seen.add(place)
            return Answer(request.id, prose(90, 5), "length")
        return prose(60, 3) if request.prefix else prose(240, 1)

    asked, outcome = extension(work, reply)
    assert outcome.text is not None and outcome.info["tries"] == 1
    assert rules(work) == {"cut_by_limit": 2}
    assert [r.max_new_tokens for r in asked] == [2000, 4000, 4000, 8000, 8000]


def test_two_cuts_in_one_place_end_an_extension(tmp_path):
    work = new_work(tmp_path, window=10**6, extend={"rounds": 1, "tries": 9}, sampling={"max_new_tokens": 2000})
    asked, outcome = extension(work, lambda r: Answer(r.id, prose(90), "length"))
    assert outcome.text is None and [r.max_new_tokens for r in asked] == [2000, 4000]
    assert rules(work) == {"cut_by_limit": 2, "no_growth": 2}


def test_an_accepted_round_counts_cuts_anew(tmp_path):
    ladder = Ladder(9, Retry(), Sampling(max_new_tokens=100))
    for _ in range(3):
        assert ladder.new_tokens(10**6) == 100 * 2 ** (ladder.attempt) and ladder.more()
        ladder.rejected(CUT, "2b")
        ladder.accepted()
        assert not ladder.stopped
    ladder.rejected(CUT, "2b")
    ladder.rejected(CUT, "3b")
    assert not ladder.stopped
    ladder.rejected(CUT, "2b")
    assert ladder.stopped and not ladder.more()


def test_a_text_that_fills_the_window_is_not_asked_for_again(tmp_path):
    """Twice the room would be the same request: the window, not max_new_tokens, cut it."""
    work = new_work(tmp_path, window=1000, extend={"rounds": 3, "tries": 9}, sampling={"max_new_tokens": 5000})
    asked, outcome = extension(work, lambda r: Answer(r.id, prose(90), "length"))
    assert len(asked) == 1 and outcome.text is None and asked[0].max_new_tokens < 1000
    drive(work, respond(work, 1, "i0", "en", ASKED, 0), lambda r: Answer(r.id, prose(90), "length"))
    assert work.store.query("SELECT COUNT(*) FROM requests WHERE role='response'") == [(1,)]
    # One that goes round in circles gets its higher penalty.
    circling = "We go on and on and never stop at all here now. " * 20
    drive(work, respond(work, 1, "i1", "en", ASKED, 0), lambda r: Answer(r.id, circling, "length"))
    assert work.store.query("SELECT COUNT(*) FROM requests WHERE item='i1'") == [(2,)]


def test_what_a_full_window_leaves_is_kept_when_it_has_grown(tmp_path):
    work = new_work(tmp_path, window=1500, extend={"rounds": 3, "tries": 9}, sampling={"max_new_tokens": 5000})
    replies = iter([prose(240, 1), prose(200, 2)])
    asked, outcome = extension(work, lambda r: next(replies, None) or Answer(r.id, prose(600, 4), "length"))
    assert len(asked) == 3 and outcome.text is not None and outcome.info["tries"] == 1
    assert outcome.info["rounds"] == [count_words(outcome.text)]


@pytest.mark.parametrize("text, window, rule, step", [
    ("One sentence alone.", 8192, "no_edge", "1a"), (prose(400), 300, "no_room", "1a"),
    (prose(400), 700, "no_room", "1b"),
])  # fmt: skip
def test_a_text_that_cannot_be_extended_is_judged_once(tmp_path, text, window, rule, step):
    """Neither the text nor the window changes between 20 tries of three rounds."""
    work = new_work(tmp_path, window=window, extend={"rounds": 3, "tries": 20})
    asked, outcome = extension(work, lambda r: "never asked", text)
    assert asked == [] and outcome.text is None and outcome.info["rule"] == rule
    assert work.store.query("SELECT step, rule FROM verdicts") == [(step, rule)]


def test_a_longer_text_without_room_ends_the_rounds_of_its_try(tmp_path):
    work = new_work(tmp_path, window=1010, extend={"rounds": 3, "tries": 3})
    asked, outcome = extension(work, lambda r: prose(250, 2) if r.prefix else prose(300, 1), prose(300))
    assert len(asked) == 2 and outcome.text is not None and outcome.info["tries"] == 1
    assert rules(work) == {"no_room": 1}
