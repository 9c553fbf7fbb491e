"""Counters, repetition, sentence ends and the two published length scores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.common import words as w
from lengthen.common.errors import LengthenError

ENGLISH = "Don't panic: the 3 well-known ships left at 9:30."


def test_counters_differ_as_their_sources_say():
    assert w.count_longen(ENGLISH) == 9
    assert w.count_longwriter(ENGLISH) == 9  # don|t, well|known, no numbers
    assert w.count_words(ENGLISH) == 9
    chinese = "你好，世界！2024年 is here。"
    assert w.count_longen(chinese) == 4 + 2 + 1 + 1 + 2 + 1  # ideographs, two signs, 2024, 年, is here, full stop
    assert w.count_longwriter(chinese) == 5 + 2
    assert w.count_words(chinese) == 5 + 1 + 2
    assert w.word_counter("longen") is w.count_longen
    with pytest.raises(LengthenError, match="did you mean 'longen'"):
        w.word_counter("long-gen")


def test_markdown_furniture_is_no_word():
    assert w.count_words("# A title\n\n---\n\n| a | b |\n|---|---|\n* one\n") == 5
    assert w.count_words("past—present and/or future") == 5


def test_first_repeat_is_found_where_it_begins():
    body = " ".join(f"word{i}" for i in range(40)) + ". "
    again = body + "Something else comes in between here. " + body
    found = w.repetition(again)
    assert (found.clean_words, found.cause) == (46, "n-gram")
    assert again[: found.clean_chars].endswith("between here. ")
    assert found.longest_copy == 40 and found.words == 86
    assert found.share == pytest.approx(31 / 77)
    assert w.repetition(body).clean_words == 40 and w.repetition(body).share == 0


def test_a_loop_and_a_repeated_short_sentence():
    loop = "It was late. " + "We go on and on and never stop at all here. " * 6
    assert w.repetition(loop).clean_words == 3 + 11
    assert w.repetition(loop).longest_copy == 55
    said = "The cat sat on a mat. A dog barked loudly. The cat sat on a mat. Then it left."
    assert (w.repetition(said).clean_words, w.repetition(said).cause) == (10, "sentence")
    assert w.repetition("Yes, of course. Why? Yes, of course. No.").cause == ""


def test_chinese_repetition_counts_signs():
    text = "今天天气很好我们一起去公园散步吧。" + "明天也许下雨。" + "今天天气很好我们一起去公园散步吧。"
    assert w.repetition(text, n=13).clean_words == 16 + 6
    assert w.is_cjk(text) and not w.is_cjk(ENGLISH)


@given(st.text(alphabet="ab c.\n你好。", max_size=200), st.integers(1, 6))
def test_repetition_agrees_with_the_plain_definition(text, n):
    found = w.repetition(text, n=n, min_sentence=10**6)
    units = [u for _, u in w.units(text)]
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    repeats = [i for i, gram in enumerate(grams) if gram in grams[:i]]
    assert found.clean_words == (repeats[0] if repeats else len(units))
    assert found.share == pytest.approx(len(repeats) / len(grams) if grams else 0)
    assert "".join(text[a:b] for a, b in w.sentence_spans(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "All is well.",
        'He said "go!"',
        "“Enough.”",
        "(See the table.)",
        "一切都好。",
        "她说：“走吧！”",
        "（全文完）",
        "سلام؟",
        "यह अंत है।",
        "**The last word is yours.**",
        "It is proven.[12]",
        "Come and see us! 🎉",
        "Steps:\n\n1. Boil the water\n2. Add the tea",
        "- bread\n- salt",
        "```python\nprint(1)\n```",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "Thank you for your time.\n\nYours sincerely,\nAnna Holm",
        "And so they slept.\n\nThe End",
        "จบแล้ว",
        "And then…",
        "終わりです。",
    ],
)
def test_ends(text):
    assert w.ends_sentence(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "And then he",
        "First,",
        "The following points are important:",
        "a long -",
        "然后，",
        "他走了；",
        "## Conclusion",
        "```python\nprint(1)",
        "Steps:\n1. Boil the water,\n2. Add the",
        'called "home"',
        "1. salt and",
        "他们都走了以后",
    ],
)
def test_no_ends(text):
    assert not w.ends_sentence(text)


def test_sentences_keep_abbreviations_and_list_numbers():
    text = "Dr. Holm came. He saw 3.5 birds e.g. gulls.\n1. One thing. 你好。再见！"
    pieces = [text[a:b].strip() for a, b in w.sentence_spans(text)]
    assert [p for p in pieces if p] == [
        "Dr. Holm came.", "He saw 3.5 birds e.g. gulls.", "1. One thing.", "你好。", "再见！",
    ]  # fmt: skip


def test_longen_score_vector():
    band = w.longen_band("about", 4000)
    assert band == (3200, 4800)
    vector = {1600: 0, 2000: 0.25, 2400: 0.5, 3200: 1, 4800: 1, 5400: 0.75, 6000: 0.5, 7200: 0}
    for words, score in vector.items():
        assert w.longen_length_score(words, *band) == pytest.approx(score)
    assert w.longen_band("above", 2000) == (2000, 3000) and w.longen_band("below", 2000) == (1000, 2000)
    assert w.longen_demand("range", "between 2,000 and 4,000 words") == (2000, 4000)
    assert w.longen_demand("about", "大约2000字") == (1600, 2400)
    with pytest.raises(LengthenError, match="no band"):
        w.longen_band("roughly", 10)
    with pytest.raises(LengthenError, match="too few numbers"):
        w.longen_demand("range", "about 2000")


def test_longbench_write_score_vector():
    for delivered, score in {2000: 50, 3000: 83.333, 4000: 100, 6000: 83.333, 8000: 66.667, 16000: 0, 0: 0}.items():
        assert w.longbench_write_length_score(4000, delivered) == pytest.approx(score, abs=1e-3)
    assert w.longbench_write_length_score(3000, 1000) == 0
    with pytest.raises(LengthenError):
        w.longbench_write_length_score(0, 10)
