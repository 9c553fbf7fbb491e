"""Cutting at edges near a share of the words, and joining without fused words."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.common.words import count_words, ends_sentence
from lengthen.selflengthen.cuts import _is_heading, beginning, join


def paragraphs(sizes: list[int]) -> str:
    word = iter(range(10**6))
    return "\n\n".join(" ".join(f"w{next(word)}" for _ in range(size)) + "." for size in sizes)


def test_half_is_measured_in_words_not_in_paragraphs():
    # By paragraph count the first half of this text would be 2 of 102 words.
    text = paragraphs([1, 1, 50, 50])
    half = beginning(text, 0.5)
    assert half is not None and half.words == 52 and half.joint == "\n\n"


def test_one_long_paragraph_is_cut_at_a_sentence():
    text = " ".join(f"Sentence number {i} says something new." for i in range(10))
    start = beginning(text, 2 / 3)
    assert start is not None and start.words == 42 and start.text.endswith("new.") and start.joint == " "


def test_nothing_to_cut_is_refused():
    assert beginning("One sentence without an end", 0.5) is None
    assert beginning("Only one sentence.", 0.5) is None
    assert beginning("", 0.5) is None


def test_no_cut_inside_a_fence_a_table_or_below_a_heading():
    code = "```\n" + "\n".join(f"x{i} = {i}." for i in range(30)) + "\n```"
    text = f"Before it there is one sentence.\n\n{code}\n\nAfter it is one more.\n\n# End\n\nThe last words are here."
    for share in (0.2, 0.4, 0.5, 0.6, 0.9, 0.97):
        start = beginning(text, share)
        assert start is not None
        assert start.text.count("```") in (0, 2) and not start.text.endswith("# End")
    table = "Intro comes first here.\n\n| a | b |\n|---|---|\n" + "| one. | two. |\n" * 20 + "\nThe end comes here."
    start = beginning(table, 0.5)
    assert start is not None and start.text.count("| one.") in (0, 20)


@pytest.mark.parametrize("share", [0.3, 0.5, 2 / 3])
def test_chinese_is_cut_at_its_own_marks(share):
    text = "".join(f"这是第{n}句话，它说了一件新的事情。" for n in "一二三四五六七八九十")
    start = beginning(text, share)
    assert (
        start is not None
        and start.text.endswith("。")
        and abs(count_words(start.text) / count_words(text) - share) < 0.1
    )


def test_words_never_fuse_at_the_joint():
    text = "First one is here. Second one is there. Third one is nowhere."
    start = beginning(text, 0.3)
    assert start is not None
    assert join(start, "And on it goes.") == "First one is here. And on it goes."
    assert join(start, " And on.") == "First one is here. And on."
    assert join(start, "\n\nAnd on.") == "First one is here.\n\nAnd on."
    assert join(start, "  ") == "First one is here."
    chinese = beginning("第一句话在这里。第二句话在那里。第三句话不见了。", 0.3)
    assert chinese is not None and join(chinese, "后来下雨了。") == "第一句话在这里。后来下雨了。"


@given(st.lists(st.integers(1, 30), min_size=2, max_size=12), st.floats(0.1, 0.9))
def test_a_cut_is_an_edge_with_words_on_both_sides(sizes, share):
    text = paragraphs(sizes)
    start = beginning(text, share)
    assert start is not None and ends_sentence(start.text)
    assert 0 < start.words < count_words(text) and count_words(start.text) == start.words
    rest = text[len(start.text) :]
    assert rest.startswith(start.joint) and join(start, rest) == text


@given(st.text(alphabet="#a \n\t.\u2028", max_size=40), st.integers(0, 40))
def test_a_heading_is_told_by_the_last_line_as_by_the_whole_beginning(text, end):
    plain = text[:end].rstrip().rsplit("\n", 1)[-1]
    assert _is_heading(text, min(end, len(text))) == bool(re.match(r"#{1,6}\s", plain))


@given(st.lists(st.sampled_from(["# Head line\n", "One word. ", "Two more words here.\n\n", "- item\n", "```\n"])))
def test_a_remembered_cut_is_the_same_cut(parts):
    text = "".join(parts)
    for share in (0.3, 0.5, 2 / 3):
        assert beginning(text, share) == beginning(text, share) == beginning.__wrapped__(text, share)
