"""Rules of the checks: each of the original's mistakes stays away, on texts in both languages."""

from pathlib import Path

import pytest

from lengthen.generate.engine import Answer
from lengthen.recipe.stages.self_lengthen import Checks
from lengthen.selflengthen.checks import RULES, check
from lengthen.selflengthen.wording import Wording

EN, ZH = Wording("en"), Wording("zh")
STORY = (
    "The harbour wakes before the town. Boats come in with their lamps still lit, and carts roll over the wet stones. "
    "A keeper counts crates of herring while gulls quarrel over what falls."
)
CHINESE = "港口比小镇醒得更早。渔船点着灯回来，板车在湿漉漉的石头上滚过。看守人一箱一箱地数着鲱鱼，海鸥在旁边争吵。"


def rule(text: str, finish: str = "stop", wording: Wording = EN, **changes) -> str:
    answer = Answer("a", text, finish, error="HTTP 500" if finish == "error" else None)
    return check(answer, text, Checks(**changes), wording).rule


def test_good_texts_pass_in_both_languages():
    assert rule(STORY) == "" and rule(CHINESE, wording=ZH) == ""


@pytest.mark.parametrize(
    "wanted, text, finish",
    [
        ("endpoint_error", "", "error"),
        ("empty", " \n---\n", "stop"),
        ("cut_by_limit", STORY, "length"),
        ("too_short", "Too short.", "stop"),
        ("no_sentence_end", STORY + " And then he", "stop"),
        (
            "refusal",
            "I'm sorry, but I cannot help with that request because it asks for more than I may write.",
            "stop",
        ),
        ("language", CHINESE, "stop"),
        ("loop", STORY + " " + "He went on and on, over hills and dales and seas. " * 8, "stop"),
    ],
)
def test_each_rule_has_its_name(wanted, text, finish):
    assert rule(text, finish) == wanted and wanted in RULES


def test_markdown_rules_do_not_end_a_text():
    # The original stops at `---` and at two blank lines; tables and front matter are ordinary text here.
    text = f"# Harbour\n\n---\n\n{STORY}\n\n\n| boat | crates |\n|---|---|\n| Anna | twelve |\n\n---\n\nThat was all."
    assert rule(text) == ""


def test_sentence_ends_of_the_other_language_are_not_refused():
    assert rule(STORY[:-1] + "!") == "" and rule(STORY[:-1] + "…") == ""
    for end in ("，", "；", "："):
        assert rule(CHINESE[:-1] + end, wording=ZH) == "no_sentence_end"
    for end in (",", ";", ":", " -"):
        assert rule(STORY[:-1] + end) == "no_sentence_end"


def test_one_repeated_phrase_is_no_loop():
    # The original throws a text away for a single repeated 10-gram.
    refrain = "and the river went on as it had always gone on before"
    body = " ".join(
        f"In year {i} the town saw wonder number {i * 7}, and nobody at all was surprised." for i in range(60)
    )
    text = f"{STORY} So it was, {refrain}. {body} So it was again, {refrain}."
    assert rule(text, repeated_share=0.0, longest_copy=0) == "loop"
    assert rule(text, repeated_share=0.5) == ""


def test_meta_talk_is_refused_as_a_whole_opening_or_closing_only():
    for opening in (
        "Here is the revised and extended version:",
        "Sure! Here's a longer text.",
        "**Extended version**",
        "Below is an expanded draft of the story:",
    ):
        assert rule(f"{opening}\n\n{STORY}") == "meta", opening
    for closing in (
        "Let me know if you would like any changes.",
        "I hope this helps!",
        "(Note: this revised version adds more detail.)",
    ):
        assert rule(f"{STORY}\n\n{closing}") == "meta", closing
    assert rule("好的，以下是扩写后的内容：\n\n" + CHINESE, wording=ZH) == "meta"


def test_tags_of_the_prompt_that_a_model_copies_are_refused_at_both_ends():
    tags = ("<outline>", "</outline>", "<text>", "</request>")
    for wording, body, marks in ((EN, STORY, tags), (ZH, CHINESE, ("<提纲>", "</正文>", "</request>"))):
        for tag in marks:
            for text in (f"{tag}\n{body}", f"{body}\n{tag}", f"{body}{tag}", f"{tag}{body}", f"{body}\n\n{tag}\n"):
                assert rule(text, wording=wording) == "meta", text
    picture = f"{STORY}\n\n```xml\n<svg>\n<text x='1'>Harbour</text>\n</svg>\n```"
    assert rule(picture) == "" and rule(f"{STORY} He wrote <text> on the slate, then left.") == ""


@pytest.mark.parametrize(
    "line",
    [
        "She had read the English version of the tale, and a revised edition of the map.",
        "Of course, I knew that the expanded harbour would never be finished in my lifetime.",
        "Here is where the story begins, on a wet stone at the end of the pier.",
        "The committee revised its plan twice, and the improved version was worse than the first.",
        "Let me know what you decide about the boat, and write soon.",
        '"Would you like me to stay?" she asked, and nobody answered her for a while.',
    ],
)
def test_ordinary_sentences_with_the_same_words_pass(line):
    assert rule(f"{line}\n\n{STORY}") == "" and rule(f"{STORY}\n\n{line}") == ""


def test_no_paragraph_of_a_real_licence_text_counts_as_meta_talk():
    # A real text full of "version", "revised" and "the following".
    paragraphs = (Path(__file__).parents[2] / "LICENSE").read_text().split("\n\n")
    long = [p for p in paragraphs if len(p.split()) > 25]
    assert len(long) > 15
    assert [
        p[:60] for p in long if rule(" ".join(p.split()), sentence_end=False, repeated_share=1, longest_copy=999)
    ] == []


def test_a_story_about_sorrow_is_no_refusal():
    long = "I cannot write this without tears. " + " ".join(
        f"Line {i} tells of boat {i * 3} and its crew." for i in range(40)
    )
    assert rule(long) == ""


def test_a_cut_text_says_whether_it_was_circling():
    loop = STORY + " " + "He went on and on, over hills and dales and seas. " * 8
    assert check(Answer("a", loop, "length"), loop, Checks(), EN).detail == "circling"
    assert check(Answer("a", STORY, "length"), STORY, Checks(), EN).detail == "still writing"
