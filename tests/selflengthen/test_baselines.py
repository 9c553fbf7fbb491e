"""Plan-and-write and back-translation, driven by hand."""

from lengthen.generate.engine import Answer
from lengthen.selflengthen.baselines import Paragraph, _planned, _translated, parse_plan
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
    asked = drive(work, _translated(work, "t0", "en", text), lambda r: next(replies))
    shown = asked[0].messages[0]["content"] if asked[0].messages else ""
    assert len(asked) == 2 and 500 < len(shown.split()) < 1300 and shown.count("sailed home.") > 20
    outcome = work.store.outcome(1, "translated", "t0", 0)
    assert outcome is not None and outcome.text is not None and outcome.text.startswith("Write a log")
