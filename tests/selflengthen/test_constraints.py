"""Length demands: always true of their text, in both languages; woven without losing number or meaning."""

import json
import random

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.words import count_longen, longen_length_score
from lengthen.generate.engine import Answer
from lengthen.recipe.stages.self_lengthen import Constraints
from lengthen.selflengthen.constraints import (
    Demand,
    Scale,
    appended,
    demand_for,
    holds,
    scale_for,
    too_narrow,
    weave,
    woven_verdict,
)
from lengthen.selflengthen.lengths import chinese_numeral, names_length, number_of, numbers_in, said_of
from lengthen.selflengthen.loop import _final_row
from lengthen.selflengthen.store import Outcome
from lengthen.selflengthen.wording import Wording, _json, wordings
from tests.selflengthen.parts import drive, new_work, prose

PAPER = Constraints()
SCALE = Scale(2000, 8000, 1000)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_demand_is_kept_by_its_text(language):
    """The original's Chinese lower and upper bounds are swapped, and its rounding leaves its own bands."""
    draws, wording, kinds = random.Random(1), Wording(language), {}
    for i in range(3000):
        words = draws.randint(2000, 8000)
        demand = demand_for(words, SCALE, PAPER, wording, i)
        assert demand is not None
        assert longen_length_score(words, *demand.band) == 1.0
        assert 2000 <= demand.low <= 8000 and demand.low % 1000 == 0
        kinds[demand.kind] = kinds.get(demand.kind, 0) + 1
        assert numbers_in(demand.text, language) == set(demand.numbers)
    assert kinds["about"] / 3000 == pytest.approx(0.4, abs=0.08) and kinds["above"] / 3000 == pytest.approx(
        0.1, abs=0.05
    )


def test_words_say_what_the_band_says():
    only = {kind: Constraints(kinds={kind: 1.0}, double_step=0.0, chinese_numerals=0.0) for kind in PAPER.kinds}
    above = demand_for(4321, SCALE, only["above"], Wording("zh"), 1)
    below = demand_for(4321, SCALE, only["below"], Wording("zh"), 1)
    assert above is not None and above.low == 4000 and any(mark in above.text for mark in ("以上", "不少于", "超过"))
    assert below is not None and below.low == 5000 and any(mark in below.text for mark in ("以内", "不超过", "少于"))
    spread = demand_for(4321, SCALE, only["range"], Wording("en"), 1)
    assert spread is not None and (spread.low, spread.high) == (4000, 5000)
    coarse = Constraints(kinds={"about": 1.0}, double_step=1.0)
    about = demand_for(4900, SCALE, coarse, Wording("en"), 1)
    assert about is not None and longen_length_score(4900, *about.band) == 1.0


def test_texts_outside_of_the_scale_get_no_demand():
    assert demand_for(1500, SCALE, PAPER, Wording("en"), 1) is None
    assert demand_for(9000, SCALE, PAPER, Wording("en"), 1) is None


AUTO = Constraints(low="auto", high="auto", step="auto")


def test_scale_follows_a_small_model():
    lengths = [380 + 3 * i for i in range(100)]
    scale = scale_for(lengths, AUTO)
    assert scale.step in (20, 50, 100) and scale.low <= 380 and scale.high >= 677
    assert scale_for([5000], PAPER) == SCALE
    assert scale_for([], AUTO).low < scale_for([], AUTO).high


@pytest.mark.parametrize("kinds", [PAPER.kinds, *({kind: 1.0} for kind in PAPER.kinds)])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_text_of_an_automatic_scale_gets_a_demand(kinds, language):
    """The shortest and the longest tenth too: the longest texts are what the loop is for."""
    draws = random.Random(3)
    settings = AUTO.model_copy(update={"kinds": kinds})
    lengths = [25, 60, *(round(draws.lognormvariate(6.5, 0.5)) for _ in range(200)), 4900]
    scale = scale_for(lengths, settings)
    assert scale.held(lengths) == len(lengths) and scale.low <= 25 and scale.high % scale.step == 0
    for i, words in enumerate(lengths):
        demand = demand_for(words, scale, settings, Wording(language), i)
        assert demand is not None and longen_length_score(words, *demand.band) == 1.0
    assert {demand_for(words, scale_for([words], settings), settings, Wording(language), 1) is None
            for words in range(4, 3000, 7)} == {False}  # fmt: skip


def test_a_band_that_holds_under_half_of_the_texts_is_told():
    lengths = [400, 500, 600, 2500]
    said = too_narrow(lengths, scale_for(lengths, PAPER), PAPER)
    assert "1 of 4 texts have 2,000 to 8,000 words" in said and "keep their bare instructions" in said
    dropped = PAPER.model_copy(update={"without_band": "drop"})
    assert "are dropped" in too_narrow(lengths, SCALE, dropped)
    assert too_narrow([2500, 3000, 400], SCALE, PAPER) == "" == too_narrow(lengths, scale_for(lengths, AUTO), AUTO)
    half = AUTO.model_copy(update={"low": 550})
    assert too_narrow(lengths, scale_for(lengths, half), half) == ""


@pytest.mark.parametrize(
    "number, text",
    [(4000, "四千"), (2500, "二千五百"), (1050, "一千零五十"), (12000, "一万二千"), (10, "十"), (15, "十五"),
     (10001, "一万零一"), (300, "三百"), (8080, "八千零八十")],
)  # fmt: skip
def test_chinese_numerals(number, text):
    assert chinese_numeral(number) == text and number_of(text) == number


def test_a_number_is_taken_whole():
    assert numbers_in("四千五百字，或一万四千字", "zh") == {4500, 14000}
    assert numbers_in("两千字、4千字、1.5万字、4,000字", "zh") == {2000, 4000, 15000}
    assert numbers_in("14,000 or 4,000; $500, 3.5 and 1960s", "en") == {14000, 4000}


EN, ZH = Wording("en"), Wording("zh")


def verdict(original: str, text: str, demand: Demand, wording: Wording = EN) -> str:
    return woven_verdict(original, text, demand, wording).rule


def test_weaving_is_verified():
    demand = Demand("about", 4000, None, "about 4,000 words")
    original = "Write a story about a lighthouse keeper who finds a message that was meant for somebody else."
    woven = "Write a story of about 4,000 words about a lighthouse keeper who finds a message meant for somebody else."
    assert verdict(original, woven, demand) == ""
    assert verdict(original, woven.replace("4,000", "4000"), demand) == ""
    assert verdict(original, woven.replace("about 4,000", "**roughly 4,000**"), demand) == ""
    assert verdict(original, woven.replace("4,000", "14,000"), demand) == "demand_missing"
    assert verdict(original, original, demand) == "demand_missing"
    assert verdict(original, "The keeper lived alone. He had 4,000 books.", demand) == "demand_changed"
    assert verdict(original, woven + " The lamp burned." * 30, demand) == "demand_changed"
    plain = appended(original, demand, EN, 5)
    assert plain.startswith(original) and verdict(original, plain, demand) == ""
    fishing, chinese = "写一篇关于渔村的小说。", Demand("above", 4000, None, "四千字以上")
    assert verdict(fishing, "写一篇四千字以上、关于渔村的小说。", chinese, ZH) == ""
    assert verdict(fishing, "写一篇四千五百字以上、关于渔村的小说。", chinese, ZH) == "demand_missing"


SENTENCES = {
    "about": ("Write a story of roughly {x} words about a lighthouse.", "写一篇{x}字左右、关于灯塔的小说。"),
    "range": ("Write a story of {x} to {y} words about a lighthouse.", "写一篇{x}到{y}字、关于灯塔的小说。"),
    "above": ("Write a story of no less than {x} words about a lighthouse.", "写一篇不得少于{x}字、关于灯塔的小说。"),
    "below": (
        "Write a story about a lighthouse that does not exceed {x} words.",
        "写一篇不要超过{x}字、关于灯塔的小说。",
    ),
}


@pytest.mark.parametrize("asked", SENTENCES)
@pytest.mark.parametrize("said", SENTENCES)
def test_a_demand_that_is_turned_is_refused(asked, said):
    """At most 5,000 made into more than 5,000 would be the original's swapped bounds again, by the model."""
    high = 6000 if asked == "range" else None
    for wording, original, sentence in zip((EN, ZH), ("Write a story about a lighthouse.", "写一篇关于灯塔的小说。"),
                                           SENTENCES[said]):  # fmt: skip
        for show in (str, "{:,}".format, chinese_numeral if wording is ZH else str):
            text = sentence.replace("{x}", show(5000)).replace("{y}", show(6000))
            missing = "demand_missing" if asked == "range" and said != "range" else "demand_kind"
            got = verdict(original, text, Demand(asked, 5000, high, ""), wording)
            assert got == ("" if asked == said else missing), (text, asked)


@pytest.mark.parametrize("text, kinds", [
    ("no more than 5,000 words", {"below"}), ("It shouldn't go beyond 5,000 words.", {"below"}),
    ("don't stay below 5,000 words", {"above"}), ("5,000 words or more", {"above"}), ("5,000+ words", {"above"}),
    ("up to 5,000 words", {"below"}), ("from 4,000 up to 5,000 words", {"range"}), ("a 5,000-word story", set()),
    ("at least 5,000 and at most 9,000 words", {"range"}), ("over 5,000, yet under 9,000 words", {"above", "below"}),
])  # fmt: skip
def test_what_is_said_of_a_number(text, kinds):
    assert {one.kind for one in said_of(text, EN)} == kinds


def test_every_packaged_demand_is_told_from_the_other_kinds_and_names_a_length():
    for wording in (EN, ZH):
        for kind in wording.phrases["demands"]:
            settings = PAPER.model_copy(update={"kinds": {kind: 1.0}})
            for i in range(60):
                demand = demand_for(4321, SCALE, settings, wording, i)
                assert demand is not None and demand.kind == kind
                text = appended("写。" if wording is ZH else "Write.", demand, wording, i)
                assert {(one.kind, one.numbers) for one in said_of(text, wording)} == {(kind, demand.numbers)}, text
                assert names_length(text, wording) and not names_length(text, wording, demand.numbers)


@pytest.mark.parametrize("old, wording", [
    ("Write a 500-word story about a lighthouse.", EN), ("Write 1,200 words about a lighthouse.", EN),
    ("Write about a lighthouse in five hundred words.", EN), ("写一篇四千字的灯塔小说。", ZH),
    ("写一篇800个字左右的灯塔小说。", ZH), ("写灯塔小说，字数：3000。", ZH), ("写一篇灯塔的万字长文。", ZH),
])  # fmt: skip
def test_an_older_length_is_noticed(old, wording):
    assert names_length(old, wording)
    demand = Demand("about", 2000, None, "")
    beside = old[:-1] + ("，大约两千字。" if wording is ZH else ", about 2,000 words.")
    assert verdict(old, beside, demand, wording) == "has_length"


@pytest.mark.parametrize("text, wording", [
    ("Explain in other words why 300 people left in 1960.", EN), ("Say why a picture is worth a thousand words.", EN),
    ("Make a story of a list of 20 words.", EN), ("写一个发生在十字路口的故事。", ZH), ("讲讲《千字文》的由来。", ZH),
    ("生辰八字是什么？", ZH),
])  # fmt: skip
def test_other_numbers_are_no_length(text, wording):
    assert names_length(text, wording) == ""


def test_phrases_whose_demands_cannot_be_told_are_refused_before_any_work(tmp_path):
    own = json.loads(json.dumps(EN.phrases))
    own["demands"]["below"].append("{x} words and a half")
    (tmp_path / "phrases.en.json").write_text(json.dumps(own))
    with pytest.raises(LengthenError, match="of kind 'below' is not told from other kinds"):
        wordings(["en"], str(tmp_path))
    own.pop("markers")
    (tmp_path / "phrases.en.json").write_text(json.dumps({**own, "about": "other"}))
    _json.cache_clear()
    with pytest.raises(LengthenError, match="lacks markers"):
        wordings(["en"], str(tmp_path))


def test_the_judge_is_the_scorer_with_its_own_counter():
    demand = Demand("about", 10, None, "about 10 words")
    assert holds(demand, "one two three four five six seven eight nine ten") and not holds(demand, "one two three")
    signs = Demand("below", 10, None, "")
    assert holds(signs, "一二三四五，六七。") and not holds(signs, "一二三四五，六七，八九。")  # signs count 1 each


ORIGINAL = "Write a story about a lighthouse keeper who finds a message."


@pytest.mark.parametrize(
    "replies, how, rules",
    [
        (["{demand}"], "model", {"": 1}),
        (["Write a story.", "{demand}"], "model", {"demand_missing": 1, "": 1}),
        (["Write a story."] * 3, "append", {"demand_missing": 3}),
        (["{turned}", "{old}", "{demand}"], "model", {"demand_kind": 1, "has_length": 1, "": 1}),
        ([Answer("x", "", "error", error="HTTP 500"), Answer("x", "Write", "length"), "{demand}"], "model",
         {"endpoint_error": 1, "cut_by_limit": 1, "": 1}),
    ],
)  # fmt: skip
def test_a_model_that_loses_the_number_is_asked_again_then_the_demand_is_appended(tmp_path, replies, how, rules):
    work = new_work(tmp_path)
    text, answers = prose(400), iter(replies)

    def reply(request):
        said = next(answers)
        system = request.messages[0]["content"]
        demand = system.split("asks for this length: ")[1].split(". Change")[0]
        if isinstance(said, Answer):
            return said
        number = max(numbers_in(demand, "en"))
        turned = "more than" if said_of(demand, EN)[0].kind == "below" else "no more than"
        said = said.replace("{turned}", f"{ORIGINAL} Take {turned} {number} words, {demand} for it.")
        said = said.replace("{old}", f"{ORIGINAL} Take 90 words, {demand} for it.")
        return said.replace("{demand}", f"{ORIGINAL} Take {demand} for it.")

    task = weave(work, 4, "final~i0", 0, "en", ORIGINAL, text, Scale(200, 800, 100))
    assert len(drive(work, task, reply)) == len(replies)
    outcome = work.store.outcome(4, "constraint", "final~i0", 0)
    assert outcome is not None and outcome.text is not None and outcome.info["how"] == how
    assert outcome.text.startswith(ORIGINAL) and str(outcome.info["low"]) in outcome.text
    assert outcome.words == count_longen(text)
    assert dict(work.store.query("SELECT rule, COUNT(*) FROM verdicts GROUP BY rule")) == rules


def test_a_text_off_the_scale_gets_no_row(tmp_path):
    work = new_work(tmp_path)
    assert drive(work, weave(work, 4, "final~i0", 0, "en", ORIGINAL, prose(100), SCALE), lambda r: "never") == []
    outcome = work.store.outcome(4, "constraint", "final~i0", 0)
    assert outcome is not None and outcome.text is None and outcome.info == {"rule": "no_band"}


def test_nothing_is_appended_to_an_instruction_that_names_a_length(tmp_path):
    work = new_work(tmp_path, constraints={"weave": "append"})
    scale = Scale(200, 800, 100)
    for item, words in (("final~i0", 400), ("final~i1", 3000)):  # with a band and without one
        task = weave(work, 4, item, 0, "en", "Write a 500-word story about a lighthouse.", prose(words), scale)
        assert drive(work, task, lambda r: "never") == []
        outcome = work.store.outcome(4, "constraint", item, 0)
        assert outcome is not None and outcome.text is None and outcome.info == {"rule": "has_length"}
    assert work.store.query("SELECT rule, COUNT(*) FROM verdicts GROUP BY rule") == [("has_length", 2)]


def test_a_model_may_replace_an_older_length(tmp_path):
    work = new_work(tmp_path)
    old = "Write a 500-word story about a lighthouse keeper and the many ships that pass by."

    def reply(request):
        demand = request.messages[0]["content"].split("asks for this length: ")[1].split(". Change")[0]
        return old.replace("500-word story", f"story of {demand}")

    drive(work, weave(work, 4, "final~i0", 0, "en", old, prose(400), Scale(200, 800, 100)), reply)
    outcome = work.store.outcome(4, "constraint", "final~i0", 0)
    assert outcome is not None and outcome.info["how"] == "model" and "500-word" not in (outcome.text or "")


@pytest.mark.parametrize("without_band, kept", [("bare", [0, 1]), ("drop", [0])])
def test_a_text_that_no_band_holds_keeps_its_bare_instruction_or_goes(tmp_path, without_band, kept):
    work = new_work(
        tmp_path, constraints={"weave": "append", "without_band": without_band}, respond={"system": "Write well."}
    )
    pool = []
    for number, (words, instruction) in enumerate([(400, ORIGINAL), (3000, ORIGINAL), (400, "Write a 90-word ode.")]):
        outcome = Outcome(3, "final", f"i{number}", 0, prose(words), words, words, None, {})
        drive(work, weave(work, 3, f"final~i{number}", 0, "en", instruction, prose(words), Scale(200, 800, 100)),
              lambda r: "never")  # fmt: skip
        pool.append((outcome, "en", instruction))
    rows = [_final_row(work, *entry) for entry in pool]
    assert [i for i, row in enumerate(rows) if row is not None] == kept
    assert "demand" in rows[0]["meta"] and rows[0]["messages"][1]["content"].startswith(ORIGINAL + " ")
    if 1 in kept:
        assert rows[1]["messages"][1]["content"] == ORIGINAL and "demand" not in rows[1]["meta"]
    assert all(row["messages"][0] == {"role": "system", "content": "Write well."} for row in rows if row)
    rules = dict(work.store.query("SELECT rule, COUNT(*) FROM verdicts GROUP BY rule"))
    assert rules == {"no_band": 1, "has_length": 1}


def test_a_row_without_a_demand_names_no_length_either(tmp_path):
    work = new_work(tmp_path, constraints={"share": 0.0})
    texts = [ORIGINAL, "Write a 500-word story about a harbour.", "Write an ode."]
    pool = [(Outcome(3, "final", f"i{n}", 0, prose(3000), 3000, 3000, None, {}), "en", t) for n, t in enumerate(texts)]
    for _ in range(2):  # a run that goes on makes its rows again
        kept = [row is not None for row in (_final_row(work, *entry) for entry in pool)]
        assert kept == [True, False, True]
    assert work.store.query("SELECT item, rule FROM verdicts") == [("final~i1", "has_length")]
