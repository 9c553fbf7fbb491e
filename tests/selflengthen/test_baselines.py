"""Plan-and-write and back-translation, driven by hand."""

import json

import pytest

from lengthen.common.errors import LengthenError
from lengthen.generate.engine import Answer
from lengthen.selflengthen.baselines import (
    Paragraph,
    _planned,
    _translated,
    distinct_requests,
    documents,
    parse_plan,
    request_of,
)
from lengthen.selflengthen.phases import filters_of
from lengthen.selflengthen.wording import Wording
from tests.selflengthen.parts import drive, new_work, prose

PLAN = "Here is the plan:\n1. The harbour at dawn | 200 words\n**2.** A storm comes up | 1,000\n3) Rescue – 300 words\n"


def test_plans_are_read_line_by_line():
    assert parse_plan(PLAN) == [
        Paragraph("The harbour at dawn", 200), Paragraph("A storm comes up", 1000), Paragraph("Rescue", 300),
    ]  # fmt: skip
    assert parse_plan("1. 清晨的港口 | 300字\n2、风暴来临｜500") == [
        Paragraph("清晨的港口", 300),
        Paragraph("风暴来临", 500),
    ]
    assert parse_plan("I would rather not plan.\n\n1. No number here") == []


@pytest.mark.parametrize(
    "line, point, words",
    [
        ("1. The well-known harbour | 300", "The well-known harbour", 300),
        ("2. Dawn - the boats come in | about 250 words", "Dawn - the boats come in", 250),
        ("3. A storm – and 40 men lost – 300 words", "A storm – and 40 men lost", 300),
        ("4. The year 1900 in a half-empty town | 200-300 words", "The year 1900 in a half-empty town", 300),
        ("5. The keeper's twenty-one crates - 400", "The keeper's twenty-one crates", 400),
        ("6、港口—小镇的清晨｜300至400字", "港口—小镇的清晨", 400),
    ],
)
def test_a_hyphen_is_no_end_of_a_point(line, point, words):
    assert parse_plan(line) == [Paragraph(point, words)]


def test_the_point_stands_on_a_line_of_its_own():
    """Points end without a full stop, so that the next sentence would belong to them."""
    slots = {"instruction": "i", "plan": "p", "text": "t", "words": 300}
    for language, point in (("en", "The harbour at dawn"), ("zh", "清晨的港口")):
        assert point in Wording(language).render("write", {**slots, "point": point}).splitlines()


def test_each_paragraph_is_written_with_the_plan_and_the_text_so_far(tmp_path):
    work = new_work(tmp_path)
    parts = iter([PLAN, prose(60, 1), prose(60, 2), prose(60, 3)])
    asked = drive(work, _planned(work, "i0", "en", "Write about a harbour."), lambda r: next(parts))
    prompts = [r.messages[0]["content"] for r in asked if r.messages]
    assert len(asked) == 4 and "A storm comes up | 1000" in prompts[1] and prose(60, 1) in prompts[2]
    outcome = work.store.outcome(1, "planned", "i0", 0)
    assert outcome is not None and outcome.text == "\n\n".join(prose(60, i) for i in (1, 2, 3))


def test_error_texts_never_enter_the_data(tmp_path):
    work = new_work(tmp_path, respond={"tries": 2})

    def reply(request):
        if "Plan it paragraph" in request.messages[0]["content"]:
            return PLAN
        return Answer(request.id, "", "error", error="HTTP 500: overloaded")

    drive(work, _planned(work, "i0", "en", "Write about a harbour."), lambda r: reply(r))
    outcome = work.store.outcome(1, "planned", "i0", 0)
    assert outcome is not None and outcome.text is None
    assert "overloaded" not in str(work.store.query("SELECT text FROM outcomes"))


def test_a_text_whose_paragraphs_say_the_same_is_refused(tmp_path):
    """Each paragraph is good by itself; the whole text is what the model would be trained on."""
    work = new_work(tmp_path, respond={"tries": 1})
    same = iter([PLAN, prose(60, 1), prose(60, 1), "never asked"])
    assert len(drive(work, _planned(work, "i0", "en", "Write about a harbour."), lambda r: next(same))) == 3
    assert work.store.outcome(1, "planned", "i0", 0).text is None  # type: ignore[union-attr]
    assert work.store.query("SELECT step, rule FROM verdicts WHERE rule!=''") == [("p02", "loop")]


def test_clean_words_of_a_whole_text_are_measured(tmp_path):
    work = new_work(tmp_path, checks={"longest_copy": 999, "repeated_share": 1.0})
    parts = iter([PLAN, prose(60, 1), prose(60, 2), prose(60, 1)])
    drive(work, _planned(work, "i0", "en", "Write about a harbour."), lambda r: next(parts))
    outcome = work.store.outcome(1, "planned", "i0", 0)
    assert outcome is not None and outcome.text is not None
    assert outcome.clean_words == pytest.approx(outcome.words * 2 / 3, abs=2)


def test_a_plan_without_room_is_judged_once(tmp_path):
    work = new_work(tmp_path, window=150, respond={"tries": 20})
    assert drive(work, _planned(work, "i0", "en", "Write about a harbour."), lambda r: "never asked") == []
    assert work.store.query("SELECT rule, COUNT(*) FROM verdicts GROUP BY rule") == [("no_room", 1)]


def test_plans_that_cannot_be_used_are_counted(tmp_path):
    work = new_work(tmp_path, respond={"tries": 3})
    long = "\n".join(f"{i}. point number {i} | 200" for i in range(1, 60))
    replies = iter(["No plan today.", long, Answer("x", PLAN, "length")])
    assert len(drive(work, _planned(work, "i0", "en", "Write."), lambda r: next(replies))) == 3
    rules = dict(work.store.query("SELECT rule, COUNT(*) FROM verdicts GROUP BY rule"))
    assert rules == {"bad_plan": 2, "cut_by_limit": 1}


def test_an_instruction_is_written_for_a_text_that_fits_the_window(tmp_path):
    work = new_work(tmp_path, window=1500)
    text = prose(5000)
    replies = iter(["No.", "Write a log of many days at sea, with boats, gulls and capes."])
    asked = drive(work, _translated(work, "t0", "en", text, filters_of(work, 1, {})), lambda r: next(replies))
    shown = asked[0].messages[0]["content"] if asked[0].messages else ""
    assert len(asked) == 2 and 500 < len(shown.split()) < 1300 and shown.count("sailed home.") > 20
    outcome = work.store.outcome(1, "translated", "t0", 0)
    assert outcome is not None and outcome.text is not None and outcome.text.startswith("Write a log")


# ------------------------------------------------------------------------------------------------ requests for texts
def translate(work, item: str, *replies: str) -> str | None:
    said = iter(replies)
    drive(work, _translated(work, item, "en", prose(60), filters_of(work, 1, {})), lambda r: next(said))
    return work.store.outcome(1, "translated", item, 0).text  # type: ignore[union-attr]


def test_a_request_is_no_refusal_no_talk_and_no_evaluation_prompt(tmp_path):
    file = tmp_path / "eval.jsonl"
    file.write_text('{"prompt": "Write the log of a small boat on a long journey around the northern capes."}\n')
    work = new_work(tmp_path, instruct={"tries": 9, "evaluation_prompts": [str(file)]})
    request = "Tell of many days at sea, with gulls and capes."
    got = translate(
        work, "t0", "I'm sorry, but I cannot help with that.", "Here is the request:", "请写一篇关于大海的长篇小说。",
        "Please write the log of a small boat on a long journey around the northern capes.",
        f'Here is the request:\n\n**Request:** "{request}"\n\nIt asks for a long text.',
    )  # fmt: skip
    assert got == request
    rules = [rule for (rule,) in work.store.query("SELECT rule FROM verdicts ORDER BY attempt")]
    assert rules == ["refusal", "meta", "language", "evaluation_prompt", ""]


def test_announcements_labels_and_quotes_are_taken_off():
    en = Wording("en")
    assert request_of('"Write about the sea."', en) == "Write about the sea."
    assert request_of("Request: Write about the sea.", en) == "Write about the sea."
    assert request_of("Sure! Here is the request.\nWrite about the sea.", en) == "Write about the sea."


def test_equal_requests_are_kept_once_whatever_the_order_of_arrival(tmp_path):
    kept = []
    for order in (1, -1):
        work = new_work(tmp_path / str(order))
        for number in (0, 1, 2)[::order]:
            topic = "glass blowers in Murano" if number == 2 else "the sea and its many boats"
            translate(work, f"t{number}", f"Write a long and loving text about {topic}, please.")
        for _ in range(2):  # a stage that goes on counts nothing twice
            kept.append(list(distinct_requests(work, filters_of(work, 1, {}))))
        rules = work.store.query("SELECT item, rule FROM verdicts WHERE rule!=''")
        assert rules == [("t1", "near_duplicate")]
    assert kept == [["t0", "t2"]] * 4


def test_documents_that_are_left_out_are_counted(tmp_path):
    texts = [
        prose(60, 1),
        "港口比小镇醒得更早。" * 9,
        "Гавань просыпается раньше города. " * 9,
        prose(60, 2),
        prose(60, 3),
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = {"method": "back-translation", "texts": str(file)}
    work = new_work(tmp_path, **made, instruct={"count": 2})
    assert [text for _, text in documents(work).values()] == [texts[0], texts[3]]
    rules = dict(work.store.query("SELECT rule, COUNT(*) FROM verdicts GROUP BY rule"))
    assert rules == {"other_language": 2, "beyond_count": 1}
    file.write_text(json.dumps({"text": texts[2]}) + "\n")
    with pytest.raises(LengthenError, match="no document in en"):
        documents(new_work(tmp_path / "none", **made))
