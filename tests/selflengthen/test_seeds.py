"""Seed instructions: languages by script, copies of seeds; and the system message in the rows that are trained on."""

import json

import pytest

from lengthen.common.errors import LengthenError
from lengthen.selflengthen.instruct import listed
from lengthen.selflengthen.phases import filters_of, seeds_of
from lengthen.selflengthen.store import Outcome
from lengthen.selflengthen.training import role_rows
from lengthen.selflengthen.wording import language_of, read_seeds
from tests.selflengthen.parts import new_work, prose

ENGLISH, CHINESE = "Write a story about a harbour in winter.", "请写一篇关于渔村冬天的小说。"


def write(folder, *rows):
    file = folder / "seeds.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize(
    "text, language",
    [
        (ENGLISH, "en"), (CHINESE, "zh"), ("Schreib über die Häfen der Ostsee.", "en"), ("用Python写AI故事。", "zh"),
        ("Напиши рассказ о гавани зимой.", None), ("冬の港についての長い物語を書いてください。", None),
        ("日本海沿岸の漁村を題材に長編小説を執筆", None),
        ("겨울 항구에 대한 긴 이야기를 써 주세요.", None), ("اكتب قصة طويلة عن الميناء.", None), ("1234", None),
        ("Write a story about the town of Кронштадт.", "en"),
    ],
)  # fmt: skip
def test_the_script_tells_the_language(text, language):
    assert language_of(text) == language


def test_seeds_without_language_are_taken_by_their_script(tmp_path):
    file = write(tmp_path, {"instruction": CHINESE}, {"instruction": ENGLISH})
    assert read_seeds(file, ["en", "zh"]) == ({"en": [ENGLISH], "zh": [CHINESE]}, [])
    assert read_seeds(file, ["en"]) == ({"en": [ENGLISH]}, [(1, CHINESE)])
    with pytest.raises(LengthenError, match="no seed instruction in en"):
        read_seeds(write(tmp_path, {"instruction": CHINESE}), ["en"])


@pytest.mark.parametrize("text", ["Напиши рассказ о гавани зимой.", "冬の港についての長い物語を書いてください。"])
def test_seeds_in_another_script_are_refused(tmp_path, text):
    with pytest.raises(LengthenError, match=r"row 2: seeds in this script are not supported"):
        read_seeds(write(tmp_path, {"instruction": ENGLISH}, {"instruction": text}), ["en"])
    tagged = write(tmp_path, {"instruction": ENGLISH, "language": "ja"})
    with pytest.raises(LengthenError, match="language 'ja' are not supported"):
        read_seeds(tagged, ["en"])


def test_seeds_of_other_languages_are_counted(tmp_path):
    file = write(tmp_path, {"instruction": CHINESE, "language": "zh"}, {"instruction": ENGLISH})
    work = new_work(tmp_path, instruct={"seeds": file})
    assert seeds_of(work) == {"en": [ENGLISH]}
    assert work.store.query("SELECT item, rule FROM verdicts") == [("seed000001", "other_language")]


def test_instructions_of_a_file_in_another_script_are_counted(tmp_path):
    file = write(tmp_path, {"instruction": "Напиши рассказ о гавани зимой."}, {"instruction": ENGLISH})
    work = new_work(tmp_path, instruct={"source": "file", "file": file})
    assert listed(work) == [("en", ENGLISH)]
    assert work.store.query("SELECT item, rule FROM verdicts") == [("row000001", "other_language")]


def test_a_copied_seed_is_not_new(tmp_path):
    """Small models copy the examples that they are shown."""
    work = new_work(tmp_path)
    seeds = seeds_of(work)
    filters = filters_of(work, 1, seeds)
    assert {filters.verdict(text).rule for text in seeds["en"]} == {"near_duplicate"}
    assert filters_of(work, 1, {}).verdict(seeds["en"][0]).accepted


@pytest.mark.parametrize("system", [None, "You are a patient author."])
def test_the_generator_is_trained_with_the_system_message_that_it_is_asked_with(tmp_path, system):
    work = new_work(tmp_path, respond={"system": system})
    work.store.finish(Outcome(1, "response", "i0", 0, prose(60), 60, 60, True, {}))
    work.store.finish(Outcome(1, "extension", "i0~0", 0, prose(200), 200, 200, True, {}))
    rows = role_rows(work, 1, {"i0": ("en", ENGLISH)})
    first = [{"role": "system", "content": system}] if system else []
    assert rows["generator"][0]["messages"][:-1] == [*first, {"role": "user", "content": ENGLISH}]
    assert [m["role"] for m in rows["extender"][0]["messages"]] == ["user", "assistant"]
