"""Length demands: always true of their text, in both languages; woven without losing number or meaning."""

import random

import pytest

from lengthen.common.words import count_longen, longen_length_score
from lengthen.generate.engine import Answer
from lengthen.recipe.stages.self_lengthen import Constraints
from lengthen.selflengthen.constraints import (
    Demand,
    Scale,
    appended,
    chinese_numeral,
    demand_for,
    holds,
    scale_for,
    spellings,
    weave,
    woven_verdict,
)
from lengthen.selflengthen.wording import Wording
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
        assert any(form in demand.text for form in demand.numbers[0])
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


def test_scale_follows_a_small_model():
    auto = Constraints(low="auto", high="auto", step="auto")
    scale = scale_for([380 + 3 * i for i in range(100)], auto)
    assert scale.step in (20, 50, 100) and scale.low <= 410 and scale.high >= 650
    kept = sum(demand_for(380 + 3 * i, scale, auto, Wording("en"), i) is not None for i in range(100))
    assert kept >= 80
    assert scale_for([5000], PAPER) == SCALE
    assert scale_for([], auto).low < scale_for([], auto).high


@pytest.mark.parametrize(
    "number, text",
    [(4000, "四千"), (2500, "二千五百"), (1050, "一千零五十"), (12000, "一万二千"), (10, "十"), (15, "十五"),
     (10001, "一万零一"), (300, "三百"), (8080, "八千零八十")],
)  # fmt: skip
def test_chinese_numerals(number, text):
    assert chinese_numeral(number) == text


def test_weaving_is_verified():
    demand = Demand("about", 4000, None, "about 4,000 words", (spellings(4000, "en"),))
    original = "Write a story about a lighthouse keeper who finds a message that was meant for somebody else."
    woven = "Write a story of about 4,000 words about a lighthouse keeper who finds a message meant for somebody else."
    assert woven_verdict(original, woven, demand).accepted
    assert woven_verdict(original, woven.replace("4,000", "4000"), demand).accepted
    assert woven_verdict(original, woven.replace("4,000", "14,000"), demand).rule == "demand_missing"
    assert woven_verdict(original, original, demand).rule == "demand_missing"
    assert woven_verdict(original, "The keeper lived alone. He had 4,000 books.", demand).rule == "demand_changed"
    assert woven_verdict(original, woven + " The lamp burned." * 30, demand).rule == "demand_changed"
    plain = appended(original, demand, Wording("en"), 5)
    assert plain.startswith(original) and woven_verdict(original, plain, demand).accepted
    chinese = Demand("above", 4000, None, "四千字以上", (spellings(4000, "zh"),))
    assert woven_verdict("写一篇关于渔村的小说。", "写一篇四千字以上、关于渔村的小说。", chinese).accepted


def test_the_judge_is_the_scorer_with_its_own_counter():
    demand = Demand("about", 10, None, "about 10 words", (("10",),))
    assert holds(demand, "one two three four five six seven eight nine ten") and not holds(demand, "one two three")
    signs = Demand("below", 10, None, "", (("10",),))
    assert holds(signs, "一二三四五，六七。") and not holds(signs, "一二三四五，六七，八九。")  # signs count 1 each


ORIGINAL = "Write a story about a lighthouse keeper who finds a message."


@pytest.mark.parametrize(
    "replies, how, rules",
    [
        (["{demand}"], "model", {"": 1}),
        (["Write a story.", "{demand}"], "model", {"demand_missing": 1, "": 1}),
        (["Write a story."] * 3, "append", {"demand_missing": 3}),
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
        return said.replace("{demand}", f"{ORIGINAL} Take {demand} for it.") if isinstance(said, str) else said

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
