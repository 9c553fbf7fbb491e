"""Our own tasks: JSON pairs, planted facts, re-ranking, classification on real labels."""

from __future__ import annotations

import json
import re

import pytest

from lengthen.common.errors import LengthenError
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.own.icl import score_label
from lengthen.evaluate.own.labelled import labelled
from lengthen.evaluate.own.passages import KINDS, make_fact, passages_of, plant, quartets
from lengthen.evaluate.scorers import ndcg, parse_ranking
from tests.conftest import make_tokenizer
from tests.evaluate.helpers import WORDS, honest, job, joined_tokenizer, story


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"text": f"{story(2, i)} {WORDS[i % 6]}", "label": WORDS[i % 6]} for i in range(240)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("template", ["on", "off"])
@pytest.mark.parametrize("joined", [False, True])
def test_json_pairs_at_even_depths(tokenizer, tmp_path, template, joined):
    used = joined_tokenizer(tmp_path) if joined else tokenizer
    suite, this = job("own", used, tmp_path, template)
    samples = list(suite.make(this, "json_kv", 8192, range(3)))
    assert len(samples) == 12 and len({s.context for s in samples}) == 3
    for sample in samples:
        honest(sample, this, 250)
        pairs = json.loads(sample.user[: sample.user.index("\n\nExtract")])
        asked = re.findall(r"Key: (\S+)", sample.user)
        assert pairs[asked[-1]] == sample.refs[0]
        assert len(asked) == 3 and not {asked[0], asked[1]} & pairs.keys(), "solved pairs are not in the object"
        assert sample.share == sample.context
        assert suite.score(sample, f" {sample.refs[0]}\nKey: x") == 1.0
        assert suite.score(sample, " 00000000-0000") == 0.0
    first = [s for s in samples if s.context == samples[0].context]
    assert [s.depth for s in first] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=0.05)
    shared = min(len(a) for a in (s.user for s in first))
    begin = next(i for i in range(shared) if len({s.user[: i + 1] for s in first}) > 1)
    assert begin > 0.9 * shared, "the questions of one context share their beginning"
    lead = "" if template == "on" else "\n"
    assert all(s.user.endswith(lead) and s.user[-1] != " " for s in samples)


def test_one_question_goes_round_the_depths(tokenizer, tmp_path):
    suite, this = job("own", tokenizer, tmp_path, options={"questions": 1})
    samples = list(suite.make(this, "json_kv", 4096, range(6)))
    assert [round(s.depth or 0, 1) for s in samples] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1], abs=0.11)
    assert all(s.share is None for s in samples)


@pytest.mark.parametrize("task", ["planted_qa", "planted_rerank"])
def test_planted_facts_are_there_and_unique(tokenizer, tmp_path, task):
    (tmp_path / "text.txt").write_text(story(600))
    suite, this = job("own", tokenizer, tmp_path, haystack=str(tmp_path / "text.txt"))
    samples = list(suite.make(this, task, 16384, range(2)))
    assert len(samples) == 8
    for sample in samples:
        honest(sample, this, 700)
        question = sample.user.rsplit("Question: ", 1)[1]
        found = dict(re.findall(r"^\[(\d+)\] (.+)$", sample.user, re.MULTILINE))
        assert list(found) == [str(i) for i in range(1, len(found) + 1)]
        if task == "planted_qa":
            assert sum(text.count(sample.refs[0]) for text in found.values()) == 1, "the answer stands there once"
            assert suite.score(sample, f" It was {sample.refs[0]}.") == 1.0 and suite.score(sample, " no") == 0.0
            continue
        labels = sample.meta["labels"]
        best, second = (next(i for i, v in labels.items() if v == grade) for grade in (2, 1))
        names = re.findall(r"(?:[A-Z][\w]+ [A-Z][\w]+)", question)
        assert any(n in found[best] and n in found[second] for n in names), "both are about the subject"
        others = [i for i, text in found.items() if any(n in text for n in names) and i not in labels]
        assert not others
        assert suite.score(sample, f" {best} > {second} > 1") == 1.0
        assert 0.5 < suite.score(sample, f" {second} > {best}") < 1
    assert len({s.user.rsplit("Question: ", 1)[1] for s in samples}) == 8


def test_too_little_text_is_said(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text(story(60))
    suite, this = job("own", tokenizer, tmp_path, haystack=str(tmp_path / "text.txt"))
    with pytest.raises(LengthenError, match="passages ended"):
        list(suite.make(this, "planted_qa", 65536, range(1)))


def test_facts_never_answer_for_each_other():
    for seed in range(20):
        found = quartets(Draws(seed, "test"), 6)
        golds = [q.gold.answer for q in found]
        assert len(set(golds)) == 6 and {q.gold.kind for q in found} == set(KINDS)
        for quartet in found:
            assert quartet.same_subject.subject == quartet.gold.subject
            assert quartet.same_subject.kind != quartet.gold.kind
            assert all(f.kind == quartet.gold.kind and f.subject != quartet.gold.subject for f in quartet.same_kind)
            others = [f.answer for q in found for f in q.facts if f is not quartet.gold]
            assert quartet.gold.answer not in others


def test_a_planted_sentence_stands_between_sentences():
    passage = passages_of(story(12))[0]
    fact = make_fact("locker", Draws(1, "f"))
    planted = plant(passage, fact, Draws(1, "p"))
    assert planted.replace(fact.text, "").split() == passage.split() and fact.answer in fact.text
    before = planted[: planted.index(fact.text)].strip()
    assert not before or before[-1] == "."


@pytest.mark.parametrize("length", [2048, 6000])
def test_labels_are_numbers_that_the_examples_tell(tokenizer, tmp_path, texts, length):
    suite, this = job("own", tokenizer, tmp_path, options={"labelled": str(texts), "words": 14, "questions": 3})
    samples = list(suite.make(this, "icl_file", length, range(3)))
    data = labelled(str(texts), 14)
    truth = {**dict(data.shown), **dict(data.asked)}
    for sample in samples:
        honest(sample, this, 200)
        shown = re.findall(r"(.+)\nlabel: (\d+)\n\n", sample.user.split("from the examples.\n\n", 1)[1])
        number = {truth[text]: value for text, value in shown}
        assert len(set(number.values())) == len(number) == sample.meta["classes"]
        assert all(number[truth[text]] == value for text, value in shown), "one number per class"
        question = sample.user.rsplit("\n\n", 1)[1].strip()
        assert number[truth[question]] == sample.refs[0] and question not in [text for text, _ in shown]
        rounds = [truth[text] for text, _ in shown][: sample.meta["classes"]]
        assert len(set(rounds)) == sample.meta["classes"], "the first round shows each class once"
    maps = {s.context: s.user.split("\nlabel: ")[1][:2] + s.user.split("\nlabel: ")[2][:2] for s in samples}
    assert len(maps) == 3
    assert score_label(" 12.", "12") == 1.0 and score_label("1", "12") == 0.0 and score_label("none", "1") == 0.0


def test_no_text_is_shown_and_asked(texts):
    data = labelled(str(texts), 14)
    assert not {t for t, _ in data.shown} & {t for t, _ in data.asked}
    assert len(data.classes) == 6


def test_unknown_sets_name_the_nearest(tmp_path, tokenizer):
    with pytest.raises(LengthenError, match="20newsgroups"):
        labelled("20newsgroup")
    suite, this = job("own", tokenizer, tmp_path)
    with pytest.raises(LengthenError, match="icl_file needs"):
        list(suite.make(this, "icl_file", 2048, range(1)))


def test_a_ranking_of_everything_scores_by_place():
    labels = {"4": 2, "9": 1}
    scores = [ndcg(parse_ranking(text), labels) for text in ("4 > 9", "9 > 4", "1 > 4 > 9", "1 > 2")]
    assert scores == sorted(scores, reverse=True) and scores[0] == 1.0 and scores[-1] == 0.0
