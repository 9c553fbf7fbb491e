"""Facts planted in real text."""

from __future__ import annotations

import json
import random
import sysconfig
from collections import Counter as Tally
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.common.errors import LengthenError
from lengthen.recipe.stages.questions import QuestionsStage
from lengthen.synthesize.documents import open_library, open_texts
from lengthen.synthesize.facts import read_facts, recompute
from lengthen.synthesize.library import Library, language_of
from lengthen.synthesize.questions import build
from lengthen.synthesize.scoring import score, score_sentence
from lengthen.synthesize.texts import Text, split_units
from lengthen.synthesize.tokens import Counter
from tests.conftest import make_tokenizer

TASKS = ["single", "several", "two_hop", "order", "counting"]
STDLIB = Path(sysconfig.get_path("stdlib"))


@pytest.fixture(scope="module")
def counter(tmp_path_factory) -> Counter:
    return Counter(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def prose(tmp_path_factory) -> Path:
    """Real prose that is on every machine: the licence texts and docstrings of Python itself."""
    import argparse
    import decimal
    import doctest
    import statistics
    import typing

    folder = tmp_path_factory.mktemp("prose")
    for number, module in enumerate((argparse, decimal, doctest, statistics, typing, json, random)):
        texts = [module.__doc__ or ""]
        texts += [item.__doc__ for item in vars(module).values() if isinstance(getattr(item, "__doc__", None), str)]
        (folder / f"{number}.txt").write_text("\n\n".join(texts), encoding="utf-8")
    (folder / "all.txt").write_text("\n".join(p.read_text() for p in sorted(folder.glob("?.txt"))), encoding="utf-8")
    return folder


def stage(documents, **changes) -> QuestionsStage:
    return QuestionsStage.model_validate(
        {"documents": [str(d) for d in documents], "min_tokens": 1200, "max_tokens": 4000, **changes}
    )


def library_of(settings: QuestionsStage, counter: Counter) -> Library:
    return open_library(settings.documents, counter, settings.max_tokens)


@given(
    seed=st.integers(0, 10**6), index=st.integers(0, 99), task=st.sampled_from(TASKS),
    language=st.sampled_from(["en", "zh"]), split=st.sampled_from(["train", "test"]), code=st.booleans(),
    answers=st.sampled_from(["worked", "sentence"]),
)  # fmt: skip
def test_every_answer_follows_from_the_text_alone(counter, prose, seed, index, task, language, split, code, answers):
    source = STDLIB / "argparse.py" if code else prose
    settings = stage([source], tasks=[task], languages=[language], split=split, answers=answers)
    library = library_of(settings, counter)
    sample = json.loads(json.dumps(build(settings, counter, library, seed, index), ensure_ascii=False))
    meta, (user, assistant) = sample["meta"], sample["messages"]
    turn = meta["turns"][0]
    assert meta["tokens"] == counter.conversation(sample["messages"]) <= meta["target"]
    pieces = user["content"].split("\n\n")
    context = user["content"].replace(pieces[0 if meta["question_first"] else -1], "", 1)
    assert list(recompute(context, language, turn["query"]) or ()) == turn["answer"]
    if answers == "worked":
        assert score(assistant["content"], turn["answer"]) == 1.0
    assert score_sentence(assistant["content"], turn["answer"]) == 1.0
    assert len(read_facts(context, language)) == turn["facts"]
    assert build(settings, counter, library, seed, index)["messages"] == sample["messages"]


@given(
    seed=st.integers(0, 10**6), index=st.integers(0, 99), task=st.sampled_from(TASKS),
    language=st.sampled_from(["en", "zh"]), answers=st.sampled_from(["worked", "sentence"]),
)  # fmt: skip
def test_further_turns_ask_what_the_first_left_open(counter, prose, seed, index, task, language, answers):
    changes = {"tasks": [task], "languages": [language], "answers": answers, "min_facts": 4, "max_facts": 8}
    settings = stage([prose], turns=6, **changes)
    sample = build(settings, counter, library_of(settings, counter), seed, index)
    meta, messages = sample["meta"], sample["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] * len(meta["turns"])
    assert meta["tokens"] == counter.conversation(messages) <= meta["target"]
    pieces = messages[0]["content"].split("\n\n")
    context = messages[0]["content"].replace(pieces[0 if meta["question_first"] else -1], "", 1)
    asked = [json.dumps(turn["query"], sort_keys=True) for turn in meta["turns"]]
    assert len(set(asked)) == len(asked) <= 6
    for turn, question, answer in zip(meta["turns"], messages[::2], messages[1::2]):
        assert list(recompute(context, language, turn["query"]) or ()) == turn["answer"]
        assert score_sentence(answer["content"], turn["answer"]) == 1.0
        assert all(subject in question["content"] for subject in turn["query"].get("subjects", []))
        assert turn["facts"] == len(turn["depths"]) == len(read_facts(context, language))
    assert meta["turns"][0]["task"] == task
    if task != "counting":  # numbers of events are small and may be equal
        answers = [answer["content"] for answer in messages[1::2]]
        for number, turn in enumerate(meta["turns"][1:], 1):
            assert not any(value in earlier for value in turn["answer"] for earlier in answers[:number])


def test_turns_are_drawn_up_to_the_most_and_to_what_the_facts_allow(counter, prose):
    library = library_of(stage([prose]), counter)
    numbers = {}
    for facts in (2, 8):
        settings = stage([prose], tasks=["single"], turns=5, min_facts=facts, max_facts=facts)
        numbers[facts] = {len(build(settings, counter, library, 0, i)["meta"]["turns"]) for i in range(60)}
    assert numbers == {2: {1, 2}, 8: {1, 2, 3, 4, 5}}


def test_planted_text_without_its_facts_is_the_document(counter, prose):
    settings = stage([prose / "all.txt"], tasks=["single"], question_first=0)
    library = library_of(settings, counter)
    original = "".join((prose / "all.txt").read_text().split())
    for index in range(20):
        sample = build(settings, counter, library, 0, index)
        text = sample["messages"][0]["content"].rsplit("\n\n", 1)[0]
        for wording in ("The {0} of {1} is {2}.", "The {0} for {1} is {2}.", "For {1}, the {0} is {2}."):
            for fact in read_facts(text, "en"):
                text = text.replace(wording.format(*fact[1:]), "")
        text = "".join(text.split())
        for introduction in ("Readthefollowingtext.", "Thetextbelowholdssomefacts.Keeptheminmind."):
            text = text.removeprefix(introduction)
        assert len(text) > 500 and text in original


def test_at_most_one_sentence_is_missing_and_depths_are_even(counter, prose):
    settings = stage([prose / "all.txt"], min_tokens=1500, max_tokens=3000)
    library = library_of(settings, counter)
    samples = [build(settings, counter, library, 7, index) for index in range(100)]
    longest = max(counter.each(split_units((prose / "all.txt").read_text(), code=False)))
    assert all(0 <= s["meta"]["target"] - s["meta"]["tokens"] < longest for s in samples)
    deciles = Tally(s["meta"]["turns"][0]["decile"] for s in samples)
    assert all(deciles[decile] == 10 for decile in range(10))
    rest = [depth for s in samples for depth in s["meta"]["turns"][0]["depths"][1:]]
    assert 0.4 < sum(rest) / len(rest) < 0.6
    tasks = Tally(s["meta"]["turns"][0]["task"] for s in samples)
    assert set(tasks) == set(TASKS) and min(tasks.values()) > 8
    assert all("check_disagreed" not in s["meta"]["redrawn"] for s in samples)


def test_values_and_names_that_the_text_holds_anyway_are_redrawn(counter, tmp_path):
    numbers = list(range(1000, 10_000))
    random.Random(0).shuffle(numbers)
    (tmp_path / "numbers.txt").write_text(" ".join(f"{n}." if n % 9 == 0 else str(n) for n in numbers))
    settings = stage([tmp_path], tasks=["single"], min_facts=8, max_facts=8, question_first=0)
    library = library_of(settings, counter)
    redrawn: Tally[str] = Tally()
    for index in range(40):
        sample = build(settings, counter, library, 0, index)
        redrawn.update(sample["meta"]["redrawn"])
        text = sample["messages"][0]["content"].rsplit("\n\n", 1)[0]
        assert text.count(sample["meta"]["turns"][0]["answer"][0]) == 1
    assert redrawn["value_in_document"] > 0


def test_facts_in_code_are_comments_and_the_code_stays_valid_lines(counter):
    settings = stage([STDLIB / "argparse.py"], tasks=["single"], question_first=0)
    library = library_of(settings, counter)
    for index in range(10):
        text = build(settings, counter, library, 0, index)["messages"][0]["content"]
        lines = [line for line in text.split("\n") if read_facts(line, "en")]
        assert all(line.startswith("# ") for line in lines[:-1] if not line.endswith("?"))


def test_short_documents_follow_one_another(counter, tmp_path):
    for number in range(60):
        (tmp_path / f"{number:02d}.txt").write_text(f"Chapter {number}. " + "A plain sentence stands here. " * 30)
    settings = stage([tmp_path], min_tokens=2500, max_tokens=2500)
    sample = build(settings, counter, library_of(settings, counter), 0, 0)
    assert len(sample["meta"]["documents"]) > 1 and sample["meta"]["tokens"] > 2300


def test_sources_of_every_kind(tmp_path):
    import polars as pl

    text = "One sentence here. Another there. " * 40
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": text * 2}) + "\n")
    pl.DataFrame({"text": [text, text * 3]}).write_parquet(tmp_path / "c.parquet")
    (tmp_path / "d.bin").write_bytes(b"\x00\x01")
    (tmp_path / "old.txt").write_bytes(("Caf\xe9 au lait. " * 60).encode("latin-1"))
    ((name, texts),) = open_texts([str(tmp_path)])
    assert name == str(tmp_path)
    assert [t.read()[:12] for t in texts] == ["One sentence"] * 5 + ["Café au lait"]
    assert [t.size for t in texts[3:5]] == [len(text), 3 * len(text)]
    assert len(open_texts([f"{tmp_path}#*.jsonl:*"])[0][1]) == 2
    with pytest.raises(LengthenError, match="holds no text"):
        open_texts([f"{tmp_path}#{'0' * 63}"])
    assert len(open_texts(["python"])[0][1]) > 100
    assert open_texts(["installed:pytest"])[0][1][0].comment == "# "


@given(st.text(alphabet="ab .!?\n。”)", max_size=900), st.booleans())
def test_units_put_together_are_the_text(text, code):
    units = split_units(text, code=code)
    assert "".join(units) == text and all(units)
    assert code or all(len(unit) <= 400 for unit in units)


def a_text(id: str, text: str, comment: str = "") -> Text:
    return Text(id, len(text.encode()), lambda: text, comment)


def test_a_stretch_begins_anywhere_and_holds_what_was_asked_for(counter):
    text = "".join(f"Sentence number {number} of this text. " for number in range(500))
    library = Library([("one", [a_text("one", text)])], counter, 300)
    rng = random.Random(0)
    drawn = [library.draw(rng, 300) for _ in range(200)]
    starts = [int(stretch.units[0].split()[2]) for stretch in drawn]
    assert min(starts) < 25 and max(starts) > 440 and 180 < sum(starts) / 200 < 300
    assert all(stretch.ends == [0, *accumulate(counter.each(stretch.units))] for stretch in drawn)
    assert all(300 < stretch.ends[-1] < 1000 for stretch in drawn)


CHINESE = "港口比小镇醒得早。船只点着灯归来，第一批大车滚过湿漉漉的石头。看守人数着箱子：十二箱鲱鱼，七箱螃蟹。"


@pytest.mark.parametrize("text", [CHINESE, "A plain sentence stands here. ", "x = 1  # and a comment\n"])
def test_a_source_is_judged_in_tokens_and_not_in_bytes(counter, text):
    """One that holds just enough is used to its end, one that holds just too little is refused at the start."""
    each = counter.text(text)
    comment = "# " if "#" in text else ""
    for parts in (1, 7):
        texts = [a_text(str(number), text * 60 + "\n", comment) for number in range(parts)]
        holds = parts * 60 * each
        stretch = Library([("s", texts)], counter, int(0.97 * holds)).draw(random.Random(0), int(0.97 * holds))
        assert len(stretch.ids) == parts and stretch.ends[-1] > 0.97 * holds
        with pytest.raises(LengthenError, match=r"'s' holds [\d,]+ tokens of text; the longest .* takes more than"):
            Library([("s", texts)], counter, int(1.1 * holds))


def test_a_large_source_is_estimated_from_a_sample(counter):
    """Lines of JSON are larger than their text, and Chinese takes more tokens: an estimate within a fifth."""
    texts = [a_text(str(n), (CHINESE if n % 3 else "A plain sentence stands here. ") * (20 + n)) for n in range(60)]
    read = []

    def counted(text: Text) -> Text:
        return Text(text.id, 2 * text.size + 70, lambda: read.append(text.id) or text.read())

    library = Library([("s", [counted(text) for text in texts])], counter, 500)
    assert len(set(read)) <= 32 < len(texts)
    holds = sum(counter.text(text.read()) for text in texts)
    assert 0.8 * holds < library.sources[0][0].tokens < 1.2 * holds


def test_code_and_prose_of_a_source_are_not_put_together(counter):
    code = [a_text("code", "x = 1\n" * 2000, "# ")]
    library = Library([("s", [*code, a_text("readme", "A plain sentence stands here. " * 30)])], counter, 2000)
    drawn = {library.draw(random.Random(seed), 2000).ids for seed in range(200)}
    assert drawn == {("code",)}, "the readme alone is too short, and code does not follow it"
    with pytest.raises(LengthenError, match="holds"):
        Library([("s", [a_text("readme", "A plain sentence. " * 30)]), ("code", code)], counter, 2000)


def test_text_of_a_language_is_found_and_the_others_are_counted(counter):
    mixed = [a_text(str(n), (CHINESE if n % 4 == 0 else "A plain sentence stands here. ") * 40) for n in range(40)]
    library = Library([("s", mixed)], counter, 3000, ["en", "zh"])
    assert library.languages == ["en", "zh"]
    redrawn: Tally[str] = Tally()
    for seed in range(20):
        for language in ("en", "zh"):
            stretch = library.draw(random.Random(seed), 1500, language, redrawn)
            assert stretch.ends[-1] > 1500
            assert {("en" if "plain" in unit else "zh") for unit in stretch.units if unit.strip()} == {language}
    assert redrawn["document_in_other_language"] > 10
    english = Library([("s", mixed[1:4]), ("t", [a_text("t", CHINESE * 200)])], counter, 400, ["en"])
    assert english.left_out == {"t": 1} and len(english.sources) == 1
    with pytest.raises(LengthenError, match=r"in en; .*\n-> .* allow more languages"):
        Library([("t", [a_text("t", CHINESE * 200)])], counter, 400, ["en"])


def test_the_language_of_a_text():
    assert language_of(CHINESE) == "zh" and language_of("") == "en"
    assert language_of("def add(a, b):  # 加\n    return a + b\n" * 9) == "en"
    assert language_of("A foreword of some length. " * 60 + CHINESE * 200) == "zh"


@pytest.mark.parametrize(
    "documents, words",
    [
        (["/no/such/folder"], "there is no '/no/such/folder'"),
        (["installed:no-such-package"], "no package 'no-such-package'"),
        (["python#*.cobol"], "holds no text"),
    ],
)
def test_sources_that_are_not_there(documents, words):
    with pytest.raises(LengthenError, match=words):
        open_texts(documents)


def test_broken_lines_and_columns_are_named(counter, tmp_path):
    (tmp_path / "a.jsonl").write_text("x" * 500 + "\n")
    with pytest.raises(LengthenError, match=r"a.jsonl, at byte 0"):
        open_library([str(tmp_path / "a.jsonl")], counter, 100)
    import polars as pl

    pl.DataFrame({"body": ["x"]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(LengthenError, match="no column `text`; its columns are body"):
        open_texts([str(tmp_path / "b.parquet")])


def test_too_little_text_and_too_short_targets(counter, prose, tmp_path):
    (tmp_path / "a.txt").write_text("A short text. " * 40)
    settings = stage([tmp_path], min_tokens=3000, max_tokens=3000)
    with pytest.raises(
        LengthenError, match=r"holds \d+ tokens of text; the longest conversation takes more than 3,000"
    ):
        build(settings, counter, library_of(settings, counter), 0, 0)
    settings = stage([prose], min_tokens=64, max_tokens=64)
    with pytest.raises(LengthenError, match="length_below_facts"):
        build(settings, counter, library_of(settings, counter), 0, 0)


def test_planted_numbers_have_the_digits_that_were_asked_for(counter, prose):
    settings = stage([prose / "all.txt"], tasks=["single"], min_digits=9, max_digits=12)
    library = library_of(settings, counter)
    made = [build(settings, counter, library, 0, index) for index in range(40)]
    answers = [sample["meta"]["turns"][0]["answer"][0] for sample in made]
    assert {len(answer) for answer in answers if answer.isdigit()} == {9, 10, 11, 12}
    with pytest.raises(ValueError, match=r"min_digits \(9\) is above max_digits \(7\)"):
        QuestionsStage(min_digits=9)
