"""Conversations about tables: lengths, answers, depths, splits."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter as Tally

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.recipe.stages.tables import FAMILIES, TablesStage
from lengthen.synthesize import conversation
from lengthen.synthesize.check import recompute
from lengthen.synthesize.conversation import build
from lengthen.synthesize.fit import Draft, Fit, probe
from lengthen.synthesize.parse import parse, without_question
from lengthen.synthesize.query import Query
from lengthen.synthesize.render import Rendered
from lengthen.synthesize.scoring import score
from lengthen.synthesize.tokens import Counter
from tests.conftest import make_tokenizer


@pytest.fixture(scope="module")
def counter(tmp_path_factory) -> Counter:
    return Counter(make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def stage(**changes) -> TablesStage:
    return TablesStage.model_validate({"min_tokens": 900, "max_tokens": 4000, **changes})


def answers_again(sample) -> list[tuple[str, ...] | None]:
    """Answers from the messages' text and the questions' plain forms, read from JSON as another program would."""
    sample = json.loads(json.dumps(sample, ensure_ascii=False))
    messages, meta = sample["messages"], sample["meta"]
    question = messages[0]["content"].split("\n\n")[0 if meta["question_first"] else -1]
    tables = parse(without_question(messages[0]["content"], question), meta["rendering"])
    return [recompute(tables, Query.from_json(turn["query"])) for turn in meta["turns"]]


@given(
    seed=st.integers(0, 10**6),
    index=st.integers(0, 99),
    rendering=st.sampled_from(["pipe", "csv", "jsonl", "records", "html", "prose"]),
    language=st.sampled_from(["en", "zh"]),
    family=st.sampled_from(list(FAMILIES)),
    split=st.sampled_from(["train", "test"]),
    joins=st.sampled_from([0.0, 1.0]),
)
def test_every_answer_follows_from_the_text_alone(counter, seed, index, rendering, language, family, split, joins):
    settings = stage(
        renderings=[rendering], languages=[language], families=[family], split=split, joins=joins, missing=0.7
    )
    sample = build(settings, counter, seed, index)
    meta = sample["meta"]
    assert meta["tokens"] == counter.conversation(sample["messages"]) <= meta["target"]
    assert len(sample["messages"]) == 2 * len(meta["turns"])
    for number, (turn, again) in enumerate(zip(meta["turns"], answers_again(sample))):
        assert again is not None
        assert sorted(again) == sorted(turn["answer"]) and (not turn["ordered"] or list(again) == turn["answer"])
        said = sample["messages"][2 * number + 1]["content"]
        assert score(said, turn["answer"], ordered=turn["ordered"]) == 1.0
        asked = sample["messages"][2 * number]["content"]
        for part in (*turn["query"].get("keys", ()), turn["query"].get("column", ""), turn["query"].get("by", "")):
            assert part in asked
    assert build(settings, counter, seed, index) == sample


@pytest.mark.parametrize("language, joins, question_first", itertools.product(["en", "zh"], [0, 1], [0, 1]))
def test_no_row_more_would_fit(counter, monkeypatch, language, joins, question_first):
    """Never over the target and at most one row under: with the row that comes next, the conversation is over it."""
    made = []

    def seen(*args):
        made.append(Fit(*args))
        return made[-1]

    monkeypatch.setattr(conversation, "Fit", seen)
    settings = stage(min_tokens=1200, max_tokens=6000, languages=[language], joins=joins, question_first=question_first)
    renderings, joined = set(), 0
    for index in range(12):
        sample = build(settings, counter, 3, index)
        (first, *others), meta, draft = sample["messages"], sample["meta"], made[-1].draft
        assert meta["question_first"] == question_first
        assert counter.conversation(sample["messages"]) == meta["tokens"] <= meta["target"]
        assert draft.context(meta["rows"]) in first["content"]
        more = first["content"].replace(draft.context(meta["rows"]), draft.context(meta["rows"] + 1))
        assert counter.conversation([{**first, "content": more}, *others]) > meta["target"]
        renderings.add(meta["rendering"])
        joined += meta["joined"]
    assert len(renderings) > 3 and (joined > 6 if joins else joined < 6)


def test_counting_by_rows_gives_the_same_conversation_as_tokenising_each_candidate(counter, monkeypatch):
    settings = stage(min_tokens=2000, max_tokens=9000)
    fast = [build(settings, counter, 5, index) for index in range(25)]
    made = []

    def plain(*args):
        made.append(Fit(args[0], args[1], False, args[3]))
        return made[-1]

    monkeypatch.setattr(conversation, "Fit", plain)
    assert [build(settings, counter, 5, index) for index in range(25)] == fast
    assert len(made) >= 25


@pytest.fixture(scope="module")
def borderless() -> Counter:
    """Merges that span line ends: rows' own counts do not add up."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.conftest import CHAT_TEMPLATE

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, "Ċ|", "<|im_start|>", "<|im_end|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ċ", "|")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    counter = Counter(PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE))
    assert counter.text("|\n|\n") < sum(counter.each(["|\n", "|\n"]))
    return counter


def test_a_tokenizer_without_borders_at_line_ends_is_counted_whole(borderless):
    for index in range(15):
        sample = build(stage(renderings=["pipe"]), borderless, 0, index)
        assert borderless.conversation(sample["messages"]) == sample["meta"]["tokens"] <= sample["meta"]["target"]


def test_the_next_row_is_counted_in_its_place(borderless):
    """Where it takes fewer tokens than by itself, it must not be left out although it fits."""
    rows = [f"| key {n} | {n * 37 % 1000} |\n" for n in range(60)]
    draft = Draft(Rendered("| key | stock |\n|---|---|\n", rows, ""), "", "")
    assert not probe(borderless, rows)[1]

    def write(context: str, rows: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": context}, {"role": "assistant", "content": "yes"}]

    for target in range(600, 700):
        count, total = Fit(borderless, draft, False, 30).fitting(write, target)
        assert total == borderless.conversation(write(draft.context(count), count)) <= target
        assert borderless.conversation(write(draft.context(count + 1), count)) > target


def test_targets_are_log_uniform_and_depths_even(counter):
    settings = stage(min_tokens=500, max_tokens=4000, families=["retrieval"], tasks=["cell", "kth"], turns=1, joins=0,
                     min_columns=2, max_columns=3, renderings=["csv"], answers="sentence")  # fmt: skip
    samples = [build(settings, counter, 1, index) for index in range(200)]
    halves = [math.log(sample["meta"]["target"] / 500) / math.log(8) for sample in samples]
    assert 0.4 < sum(halves) / len(halves) < 0.6 and min(halves) < 0.1 and max(halves) > 0.9
    deciles = Tally(sample["meta"]["turns"][0]["decile"] for sample in samples)
    assert all(deciles[decile] == 20 for decile in range(10))
    for sample in samples:
        turn = sample["meta"]["turns"][0]
        assert 10 * turn["rows"][0] // sample["meta"]["rows"] == turn["decile"]


def test_neighbours_never_have_the_same_columns(counter):
    settings = stage(min_columns=2, max_columns=3, families=["retrieval"], joins=0, min_tokens=400, max_tokens=800)
    titles = [frozenset(build(settings, counter, 0, index)["meta"]["titles"]) for index in range(60)]
    assert all(one != other for one, other in itertools.pairwise(titles))


def test_every_task_and_feature_comes_up(counter):
    samples = [build(stage(turns=4), counter, 11, index) for index in range(160)]
    tasks = Tally(turn["task"] for sample in samples for turn in sample["meta"]["turns"])
    assert set(tasks) == {task for family in FAMILIES.values() for task in family}
    families = Tally(sample["meta"]["turns"][0]["family"] for sample in samples)
    assert all(30 < families[family] < 80 for family in FAMILIES)
    for feature, low, high in (("question_first", 0.08, 0.35), ("joined", 0.12, 0.45), ("near_keys", 0.15, 0.45)):
        assert low < sum(sample["meta"][feature] for sample in samples) / len(samples) < high
    assert all("check_disagreed" not in sample["meta"]["redrawn"] for sample in samples)
    assert len({len(sample["meta"]["turns"]) for sample in samples}) == 4


def test_headers_come_again_every_50_to_200_rows(counter):
    settings = stage(renderings=["csv"], repeat_header=1, min_tokens=9000, max_tokens=12_000, joins=0, turns=1,
                     question_first=0, max_columns=5)  # fmt: skip
    repeats = 0
    for index in range(12):
        sample = build(settings, counter, 2, index)
        lines = sample["messages"][0]["content"].split("\n\n")[-2].split("\n")
        places = [number for number, line in enumerate(lines) if line == lines[0]]
        gaps = [after - before for before, after in itertools.pairwise(places)]
        assert all(50 <= gap <= 201 for gap in gaps)
        repeats += len(gaps)
    assert repeats > 5


def test_the_splits_share_no_title_key_or_wording(counter):
    seen: dict[str, dict[str, set[str]]] = {}
    for split in ("train", "test"):
        found: dict[str, set[str]] = {"titles": set(), "keys": set(), "questions": set()}
        for index in range(80):
            sample = build(stage(split=split, languages=["en"]), counter, 4, index)
            found["titles"] |= set(sample["meta"]["titles"])
            for number, turn in enumerate(sample["meta"]["turns"]):
                found["keys"] |= set(turn["query"].get("keys", ()))
                question = sample["messages"][2 * number]["content"].split("\n\n")[
                    0 if sample["meta"]["question_first"] and not number else -1
                ]
                found["questions"].add(question)
        seen[split] = found
    for what in ("titles", "keys", "questions"):
        assert len(seen["train"][what]) > 15 and not seen["train"][what] & seen["test"][what]


def test_sentences_end_with_the_value(counter):
    settings = stage(families=["retrieval"], tasks=["cell"], answers="sentence", renderings=["pipe"], languages=["en"],
                     turns=1, joins=0, question_first=0, missing=0, min_columns=3, max_columns=3)  # fmt: skip
    for index in range(20):
        sample = build(settings, counter, 0, index)
        said = sample["messages"][1]["content"]
        assert "\n" not in said and re.fullmatch(r"The .+ is .+\.", said)
        assert said.endswith(f" {sample['meta']['turns'][0]['answer'][0]}.")
