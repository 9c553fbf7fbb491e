"""The words of training: disjoint splits, no separators, nothing of the evaluation's."""

from __future__ import annotations

import importlib
import itertools
import re

import pytest

from lengthen.synthesize.render import EMPTY, NOT_RECORDED
from lengthen.synthesize.solve import SOLVERS
from lengthen.synthesize.vocabulary import cut, cut_wordings, vocabulary

LANGUAGES = ("en", "zh")
# The evaluation's needle is "The special magic number for CITY (or word) is N" in essays.
FORBIDDEN = (
    "magic",
    "needle",
    "special",
    "essay",
    "haystack",
    "uuid",
    "memorize",
    "quiz",
    "best thing to do",
    "sandwich",
)
CITIES = (
    "Paris", "London", "Tokyo", "Cairo", "Lima", "Oslo", "Rome", "Delhi", "Boston", "Madrid", "Berlin", "Chicago",
    "Sydney",
    "Seattle", "Toronto", "Vienna", "Beijing", "Moscow", "Mumbai", "San Francisco", "New York", "Amsterdam",
    "Barcelona",
    "Dublin", "Prague", "Lisbon", "Athens", "Budapest", "Seoul", "Singapore", "Dubai", "Houston", "Denver", "Austin",
    "北京", "上海", "巴黎", "伦敦", "东京", "罗马", "马德里", "广州", "深圳", "纽约",
)  # fmt: skip


def strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    if isinstance(value, tuple | list):
        return [text for item in value for text in strings(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [text for name in value.__dataclass_fields__ for text in strings(getattr(value, name))]
    return []


def all_words(language: str) -> list[str]:
    modules = [
        importlib.import_module(f"lengthen.synthesize.{name}_{language}") for name in ("vocabulary", "wording", "facts")
    ]
    return [
        text for module in modules for name, value in vars(module).items() if name.isupper() for text in strings(value)
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_training_uses_no_phrase_or_city_of_the_evaluation(language):
    places = vocabulary(language, "train").place_names + vocabulary(language, "test").place_names
    words = [*all_words(language), *places]
    assert len(words) > 500
    for text in words:
        assert not any(word in text.lower() for word in FORBIDDEN), text
        assert not any(re.search(rf"\b{city}\b" if city.isascii() else city, text) for city in CITIES), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_pools_of_the_splits_are_disjoint_and_large_enough(language):
    train, test = vocabulary(language, "train"), vocabulary(language, "test")
    for name in train.__dataclass_fields__:
        one, other = strings(getattr(train, name)), strings(getattr(test, name))
        if name not in ("language", "joint"):
            assert one and other and not set(one) & set(other), name
    for words in (train, test):
        columns = 3 * 3 + 2 * 2 + 1 + 1
        pools = (words.integers, words.decimals, words.categories, words.people, words.places, words.dates)
        assert sum(map(len, pools)) >= min(12, columns)
    assert not set(train.people_names) & set(test.people_names)
    assert not set(train.place_names) & set(test.place_names)


def check_sentences(sentences: tuple[str, ...]) -> None:
    """They end with the answer; training sees several, the test split another one."""
    assert all(text.rstrip(".。").endswith("{answer}") for text in sentences)
    train, test = cut_wordings(sentences, "train"), cut_wordings(sentences, "test")
    assert len(set(train)) == len(train) >= 2 and len(test) == 1 and not set(train) & set(test)


@pytest.mark.parametrize("language", LANGUAGES)
def test_wordings_exist_for_every_task_and_differ(language):
    wording = importlib.import_module(f"lengthen.synthesize.wording_{language}")
    for task in SOLVERS:
        questions, sentences = wording.QUESTIONS[task], wording.SENTENCES[task]
        assert len(set(questions)) == len(questions) >= 3
        check_sentences(sentences)
    facts = importlib.import_module(f"lengthen.synthesize.facts_{language}")
    for name in (
        "STATEMENTS",
        "HOLDS",
        "PLACE_FACTS",
        "EVENT_FACTS",
        "SINGLE",
        "SEVERAL",
        "TWO_HOP",
        "ORDER",
        "COUNTING",
    ):
        wordings = getattr(facts, name)
        assert len(set(wordings)) == len(wordings) >= 3
    for sentences in facts.SENTENCES.values():
        check_sentences(sentences)


@pytest.mark.parametrize("language, split", itertools.product(LANGUAGES, ("train", "test")))
def test_no_word_holds_a_separator_of_any_rendering(language, split):
    words = vocabulary(language, split)
    titles = [
        text for name in ("key_titles", "references", "dates", "people", "places") for text in getattr(words, name)
    ]
    titles += [item.title for name in ("integers", "decimals", "categories") for item in getattr(words, name)]
    titles += [noun.one for noun in words.linked]
    cells = [value for category in words.categories for value in category.values]
    cells += [*words.people_names, *words.place_names, *words.firsts, *words.lasts]
    for text in (*titles, *cells):
        assert not re.search(r"[|,:\"<>%{}\n\\，：。]| is | and the |, the |为", text), text
    empty = {text for texts in EMPTY.values() for text in texts} | set(NOT_RECORDED.values())
    assert not empty & set(cells)


def test_every_fourth_item_is_the_test_splits():
    assert cut(range(9), "train") == (0, 1, 2, 4, 5, 6, 8)
    assert cut(range(9), "test") == (3, 7)
