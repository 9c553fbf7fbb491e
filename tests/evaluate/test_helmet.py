"""HELMET's categories on rows of its schemas."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from lengthen.common.errors import LengthenError
from lengthen.evaluate.helmet import judging
from lengthen.evaluate.helmet.data import (
    HUB,
    balanced,
    chosen_questions,
    demonstrations,
    fixed_examples,
    label_numbers,
    shuffled,
)
from lengthen.evaluate.helmet.prompts import cut
from lengthen.evaluate.helmet.tasks import LENGTHS, OMITTED, TASKS, category_metrics
from lengthen.evaluate.judge import Verdict
from lengthen.evaluate.scorers import citation_scores
from lengthen.evaluate.suites import Scored
from tests.conftest import make_tokenizer
from tests.evaluate.helpers import WORDS, job, story
from tests.evaluate.test_judge import endpoint  # noqa: F401


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path / "tokenizer")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def passages(count, gold=None, seed=0):
    found = [{"title": f"Title {i}", "text": story(1, seed + i), "id": str(i + 1)} for i in range(count)]
    if gold is not None:
        found[gold]["text"] = f"The answer is Answer{seed}."
    return found


def test_every_category_has_its_counts():
    assert len(TASKS) == 21 and {t.category for t in TASKS.values()} == {
        "recall", "rag", "rerank", "cite", "icl", "longqa", "summ"}  # fmt: skip
    assert all(len(t.counts) in (0, len(LENGTHS)) for t in TASKS.values())
    assert TASKS["json_kv"].count(131072) == 1800 and TASKS["nq"].count(8192) == 50


def test_json_pairs_by_helmets_count(tokenizer, tmp_path):
    suite, this = job("helmet", tokenizer, tmp_path, "off")
    samples = list(suite.make(this, "json_kv", 8192, range(7)))
    for sample in samples:
        pairs = json.loads(sample.user[: sample.user.index("\n\nExtract")])
        assert len(pairs) == 105 and pairs[sample.user.strip().rsplit("Key: ", 1)[1]] == sample.refs[0]
        assert sample.user.endswith("\n") and sample.prefix == "Corresponding value:"
    assert [round(s.depth or 0, 1) for s in samples] == [0, 0.2, 0.4, 0.6, 0.8, 1, 0]
    with pytest.raises(LengthenError, match="no items for 4K"):
        list(suite.make(this, "json_kv", 4096, range(1)))


def test_rag_questions_keep_their_orders_together(tokenizer, tmp_path):
    rows = [
        {"id": f"q{q}", "question": f"What is {q}?", "answers": [f"Answer{q}", "x"], "depth": depth / 5,
         "ctxs": passages(50, gold=depth * 9, seed=q)}
        for q in range(6)
        for depth in range(6)
    ]  # fmt: skip
    demos = [
        {"id": f"d{i}", "question": f"Demo {i}?", "answers": [f"D{i}"], "ctxs": passages(3, seed=50)} for i in range(9)
    ]
    write(tmp_path / "nq_k50.jsonl", rows)
    options = {"data": {"nq": str(tmp_path / "nq_k{k}.jsonl")}, "demos": {"nq": write(tmp_path / "demos.jsonl", demos)}}
    suite, this = job("helmet", tokenizer, tmp_path, options=options)
    samples = list(suite.make(this, "nq", 8192, range(3)))
    assert len(samples) == 18 and len({s.context for s in samples}) == 3
    for sample in samples:
        assert sample.user.startswith("Use the given documents to write a concise") and sample.prefix == "Answer:"
        assert sample.user.count("\nAnswer: D") == 2 and sample.user.count("Document (Title: ") == 50 + 6
        assert suite.score(sample, f" {sample.refs[0]}\nQuestion") == 1.0 and suite.score(sample, " none") == 0.0
        assert sample.tokens == this.prompts.count(sample.user, sample.prefix)
    assert [s.depth for s in samples[:6]] == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert list(suite.parameters(this, "nq")["rows"]) == ["nq_k50.jsonl"]
    again = list(suite.make(this, "nq", 8192, range(2, 3)))
    assert [s.line() for s in again] == [s.line() for s in samples[12:]]


def test_reranking(tokenizer, tmp_path):
    rows = [
        {"qid": str(q), "query": f"About {q}?", "ctxs": [{**p, "label": (2 if i == q else 1 if i == q + 1 else 0)}
                                                       for i, p in enumerate(passages(12, seed=q))]}
        for q in range(5)
    ]  # fmt: skip
    options = {"data": {"msmarco_rerank": write(tmp_path / "ms.jsonl", rows)}}
    suite, this = job("helmet", tokenizer, tmp_path, options=options)
    for sample in suite.make(this, "msmarco_rerank", 8192, range(4)):
        ids = [name for name, label in sorted(sample.meta["labels"].items(), key=lambda x: -x[1]) if label]
        assert sample.user.count("Ranking: ") == 1 + 2, "format and two worked examples"
        assert suite.score(sample, f"{ids[0]} > {ids[1]}") == 1.0
        assert 0 < suite.score(sample, f"{ids[1]} > {ids[0]}") < 1


def test_many_shots_with_numbers(tokenizer, tmp_path):
    train = [{"text": f"{story(1, i)} {WORDS[i % 6]}", "label": i % 6} for i in range(120)]
    test = [{"text": f"{story(1, 500 + i)} {WORDS[i % 6]}", "label": i % 6} for i in range(8)]
    options = {"data": {"icl_trec_coarse": write(tmp_path / "test.jsonl", test)},
               "demos": {"icl_trec_coarse": write(tmp_path / "train.jsonl", train)}}  # fmt: skip
    suite, this = job("helmet", tokenizer, tmp_path, options=options)
    samples = list(suite.make(this, "icl_trec_coarse", 8192, range(6)))
    truth = {row["text"]: row["label"] for row in (*train, *test)}
    numbers = []
    for sample in samples:
        assert 'Only output "label: {label}" and nothing else.' in sample.user
        shown = re.findall(r"(.+)\nlabel: (\d+)", sample.user)
        assert len(shown) == 400
        number = {truth[text]: value for text, value in shown}
        numbers.append(number)
        assert number[truth[sample.user.rsplit("\n\n", 1)[1]]] == sample.refs[0]
        assert suite.score(sample, f" {sample.refs[0]}\n\nmore") == 1.0
    assert any(numbers[0] != other for other in numbers[1:]), "labels are shuffled for each question"
    assert len(balanced(train, 100)) == 100 and {r["label"] for r in balanced(train, 6)} == set(range(6))
    assert sorted(label_numbers("x", list(range(6))).values()) == [str(i) for i in range(6)]


def test_citations(tokenizer, tmp_path, endpoint):  # noqa: F811
    rows = [
        {"question": f"Who {q}?", "docs": passages(40, gold=0, seed=q), "qa_pairs": [
            {"short_answers": [f"Answer{q}"]}, {"short_answers": ["nobody", "no one"]}]}
        for q in range(3)
    ]  # fmt: skip
    server = endpoint(lambda text, times: '{"supported": 1}' if "The answer is" in text else '{"supported": 0}')
    options = {"data": {"alce_asqa": write(tmp_path / "asqa.jsonl", rows)}, "judge": server.name}
    suite, this = job("helmet", tokenizer, tmp_path, options=options)
    samples = list(suite.make(this, "alce_asqa", 8192, range(3)))
    assert all(s.user.count("Document [") == 30 and "Instruction: Write an accurate" in s.user for s in samples)
    outputs = [f"It was {s.refs[0]} for sure [1]. And more was said [2].\n\nUncited words." for s in samples]
    assert suite.score(samples[0], outputs[0]) == 0.5
    scored = [Scored(s, o, suite.score(s, o), "stop") for s, o in zip(samples, outputs)]
    found = {row["task"]: row["value"] for row in suite.summary(this, scored)}
    assert found["alce_asqa:citation recall"] == pytest.approx(1 / 3, abs=1e-4), "lines after the first count in HELMET"
    assert found["alce_asqa:citation precision"] == 0.5
    asked = len(server.asked)
    suite.summary(this, scored)
    assert len(server.asked) == asked, "no pair is judged twice"


def test_an_unreadable_judgement_is_left_out_and_never_counts_against_the_model(tokenizer, tmp_path, endpoint):  # noqa: F811
    rows = [
        {"question": f"Who {q}?", "docs": passages(40, gold=0, seed=q), "qa_pairs": [{"short_answers": [f"Answer{q}"]}]}
        for q in range(3)
    ]

    def reply(text, times):
        return "{ broken" if "Answer1" in text else '{"supported": 1}'

    server = endpoint(reply)
    options = {"data": {"alce_asqa": write(tmp_path / "asqa.jsonl", rows)}, "judge": server.name}
    suite, this = job("helmet", tokenizer, tmp_path, options=options)
    scored = [
        Scored(s, f"It was {s.refs[0]} for sure [1].", 1.0, "stop")
        for s in suite.make(this, "alce_asqa", 8192, range(3))
    ]
    found = {row["task"]: row for row in suite.summary(this, scored)}
    for name in ("recall", "precision"):
        assert found[f"alce_asqa:citation {name}"]["value"] == 1.0 and found[f"alce_asqa:citation {name}"]["n"] == 2
    assert found["alce_asqa:unreadable judgements"]["value"] == 1

    nothing = endpoint(lambda text, times: "I cannot say.")
    options |= {"judge": nothing.name}
    suite, this = job("helmet", tokenizer, tmp_path, options=options)
    (row,) = suite.summary(this, scored)
    assert row["task"] == "alce_asqa:unreadable judgements" and row["value"] == 3, "no mean over nothing"


def test_the_judge_is_asked_about_all_sentences_at_once_and_only_what_is_open(tokenizer, tmp_path, endpoint):  # noqa: F811
    rounds: list[int] = []

    def checks(pairs):
        rounds.append(len(pairs))
        return {pair: "cats" in pair[0] for pair in pairs}

    docs = [{"title": "A", "text": "cats"}, {"title": "B", "text": "dogs"}, {"title": "C", "text": "cats too"}]
    answers = [
        (f"Q{i}?", f"Number {i} is about cats [1][2][3]. Number {i} is about dogs [2]. No source.", docs)
        for i in range(4)
    ]
    found = judging.citations("alce_asqa", answers, checks)
    # One round for what is cited together, then each passage alone, and the others together where it does not do.
    assert rounds == [8, 4, 4, 4, 4]
    assert (
        found.recall == pytest.approx(1 / 3) and found.precision == 2 / 4 and (found.answers, found.left_out) == (4, 0)
    )
    plain = [
        citation_scores(
            judging.statements("alce_asqa", q, output), [f"Title: {d['title']}\n{d['text']}" for d in docs],
            lambda passage, claim: "cats" in passage,
        )
        for q, output, docs in answers
    ]  # fmt: skip
    assert plain == [(found.recall, found.precision)] * 4


def test_list_answers(tokenizer, tmp_path):
    rows = [{"question": "Which?", "docs": passages(5), "answers": [["red", "Red one"], ["blue"]]}]
    options = {"data": {"alce_qampari": write(tmp_path / "q.jsonl", rows)}}
    suite, this = job("helmet", tokenizer, tmp_path, options=options)
    (sample,) = suite.make(this, "alce_qampari", 8192, range(5))
    assert suite.score(sample, "Red [1], green [2].") == 0.5
    assert judging.statements("alce_qampari", "Which?", "Red [1], green [2].") == ["Which? Red [1]", "Which? green [2]"]
    assert suite.score(sample, "Red [1],\n\nBlue [1]") == 1.0, "an answer may go on in a new line"
    assert judging.statements("alce_qampari", "Which?", "") == ["Which? "], "an empty list is an unsupported statement"
    assert suite.summary(this, [Scored(sample, "Red", 0.5, "stop")]) == []


def test_long_questions_are_cut_with_a_mark(tokenizer, tmp_path):
    rows = [
        {"context": story(900, q), "question": f"What {q}?", "answer": ["green"], "options": ["red", "green", "a", "b"]}
        for q in range(4)
    ]
    file = write(tmp_path / "qa.jsonl", rows)
    suite, this = job("helmet", tokenizer, tmp_path, options={"data": {"infbench_choice": file, "infbench_qa": file}})
    for sample in suite.make(this, "infbench_choice", 8192, range(2)):
        assert OMITTED in sample.user and sample.refs == ("B", "B. green")
        assert "A. red\nB. green\nC. a\nD. b" in sample.user and sample.user.count("[story text]") == 2
        assert suite.score(sample, " B\n") == 1.0 and suite.score(sample, "I choose B. green") == 1.0
        assert suite.score(sample, " A") == 0.0
    (sample,) = suite.make(this, "infbench_qa", 8192, range(1))
    assert suite.score(sample, " green") == 1.0
    counter = this.prompts.counter
    assert counter.count(cut(story(900), counter, 500)) <= 505 and cut("short", counter, 500) == "short"


def test_summaries_are_judged_by_three_questions(tokenizer, tmp_path, endpoint):  # noqa: F811
    rows = [
        {"context": story(50, i), "question": "", "answer": f"Expert {i}.", "keypoints": ["a", "b", "c", "d"]}
        for i in range(4)
    ]

    def reply(text, times):
        if "key_points" in text:
            return '{"recall": 2}'
        if "expert_summary" in text:
            return '{"precision": 3, "sentence_count": 3}'
        return '{"fluency": 1}'

    server = endpoint(reply)
    options = {"data": {"infbench_sum": write(tmp_path / "sum.jsonl", rows)}, "judge": server.name}
    suite, this = job("helmet", tokenizer, tmp_path, options=options)
    samples = list(suite.make(this, "infbench_sum", 8192, range(2)))
    scored = [Scored(s, "A summary.", suite.score(s, "A summary."), "stop") for s in samples]
    found = {row["task"]: row["value"] for row in suite.summary(this, scored)}
    assert found["infbench_sum:judged"] == pytest.approx(2 * 0.5 * 1 / 1.5, abs=1e-4)
    assert found["infbench_sum:unreadable judgements"] == 0

    def verdict(**scores):
        return Verdict("a", scores or None, ())

    good = verdict(precision=1.0, sentence_count=2.0)
    assert judging.summary_score(verdict(fluency=0.0), verdict(recall=2.0), good, 4) == 0.0
    assert judging.summary_score(verdict(), verdict(recall=2.0), good, 4) is None
    assert judging.summary_score(verdict(fluency=1.0), verdict(recall=5.0), good, 4) is None


def test_long_answers_are_judged(tokenizer, tmp_path, endpoint):  # noqa: F811
    rows = [{"context": story(50, i), "question": f"Who {i}?", "answer": ["Ann"]} for i in range(4)]
    server = endpoint(lambda text, times: "no idea" if "Who 3?" in text else '{"fluency": 1, "correctness": 2}')
    file = write(tmp_path / "nqa.jsonl", rows)
    options = {"data": {"narrativeqa": file}, "demos": {"narrativeqa": file}, "judge": server.name}
    suite, this = job("helmet", tokenizer, tmp_path, options=options)
    samples = list(suite.make(this, "narrativeqa", 8192, range(4)))
    found = {row["task"]: row for row in suite.summary(this, [Scored(s, " Ann", 1.0, "stop") for s in samples])}
    assert (
        found["narrativeqa:judged"]["value"] == pytest.approx(2 / 3, abs=1e-4) and found["narrativeqa:judged"]["n"] == 3
    )
    assert found["narrativeqa:unreadable judgements"]["value"] == 1


def test_citation_prompts_are_helmets_with_alces_own_file(tokenizer, tmp_path):
    """The layout of HELMET's `load_alce`, with the instruction and the examples of ALCE's published prompt file."""
    rows = [{"question": "Who?", "docs": passages(40), "qa_pairs": [{"short_answers": ["Ann"]}]}]
    alce = {
        "instruction": "Instruction: Write.", "demo_sep": "\n\n\n",
        "demo_prompt": "{INST}\n\nQuestion: {Q}\n\n{D}\nAnswer: {A}",
        "doc_prompt": "Document [{ID}](Title: {T}): {P}\n",
        "demos": [{"question": f"Q{i}?", "answer": f"A{i} [1].", "docs": [{"title": "T", "text": "P"}] * 2}
                  for i in range(4)],
    }  # fmt: skip
    file = tmp_path / "asqa_default.json"
    file.write_text(json.dumps(alce))
    options = {"data": {"alce_asqa": write(tmp_path / "a.jsonl", rows)}, "prompts": {"alce_asqa": str(file)}}
    suite, this = job("helmet", tokenizer, tmp_path, options=options)
    (sample,) = suite.make(this, "alce_asqa", 8192, range(1))
    first, second, last = sample.user.split("\n\n\n")
    documents = "Document [1](Title: T): P\n\nDocument [2](Title: T): P"
    for demo in (first, second):
        assert re.fullmatch(
            rf"Instruction: Write\.\n\nQuestion: (Q\d\?)\n\n{re.escape(documents)}\n\nAnswer: A\d \[1\]\.", demo
        )
    assert last.startswith("Instruction: Write.\n\nQuestion: Who?\n\nDocument [1](Title: Title 0): ")
    assert this.prompts.frame.text(sample.user, sample.prefix).endswith("assistant\nAnswer:")


def test_recall_answers_begin_on_a_line_of_their_own(tokenizer, tmp_path):
    suite, this = job("helmet", tokenizer, tmp_path, "off")
    (sample,) = suite.make(this, "ruler_niah_mk_2", 8192, range(1))
    whole = this.prompts.frame.text(sample.user, sample.prefix)
    assert re.search(r"mentioned in the provided text\?\nThe special magic number for \S+ mentioned .* is$", whole)
    assert sample.tokens == this.prompts.count(sample.user, sample.prefix) <= 8192 - 50


def test_questions_and_examples_are_those_of_helmet():
    """HELMET takes the first of `datasets`' shuffle; so do we, without building a data set."""
    from datasets import Dataset

    rows = [{"question": f"q{i % 40}", "id": i} for i in range(60)]
    table = Dataset.from_list(rows)
    assert shuffled(60) == table.shuffle(seed=42)["id"][:]
    others = table.filter(lambda row: row["id"] != 7).shuffle(seed=42).select(range(2))
    assert [row["id"] for row in fixed_examples(rows, 7, 2)] == others["id"][:]
    seed = int(hashlib.sha256(b"q3").hexdigest(), 16) % 2**31
    first = table.filter(lambda row: row["question"] != "q3").shuffle(seed=seed)["id"][:]
    assert demonstrations(rows, "question", "q3", 1)[0]["id"] == first[0]


def test_demonstrations_are_never_the_question():
    rows = [{"question": f"q{i % 4}"} for i in range(12)]
    for name in ("q0", "q1"):
        found = demonstrations(rows, "question", name, 2)
        assert len(found) == 2 and name not in [r["question"] for r in found]
        assert found == demonstrations(rows, "question", name, 2)
    assert sorted(chosen_questions(rows, "question")) == ["q0", "q1", "q2", "q3"]


def test_every_number_of_a_category_has_a_row():
    found = category_metrics()
    assert found["cite"] == tuple(
        f"alce_{name}" for name in ("asqa", "asqa:citation recall", "asqa:citation precision",
                                    "qampari", "qampari:citation recall", "qampari:citation precision"))  # fmt: skip
    assert found["longqa"] == ("narrativeqa:judged", "infbench_qa", "infbench_choice")
    assert {name: len(parts) for name, parts in found.items()} == {
        "recall": 4, "rag": 4, "rerank": 1, "cite": 6, "icl": 5, "longqa": 3, "summ": 2}  # fmt: skip


def test_missing_data_says_what_to_give(tokenizer, tmp_path):
    suite, this = job("helmet", tokenizer, tmp_path)
    assert "nq" not in HUB
    with pytest.raises(LengthenError, match="nq needs a file"):
        list(suite.make(this, "nq", 8192, range(1)))
    file = write(tmp_path / "bad.jsonl", [{"question": "q", "answers": []}])
    _, bad = job("helmet", tokenizer, tmp_path, options={"data": {"nq": file}})
    with pytest.raises(LengthenError, match="row 1 lacks ctxs"):
        list(suite.make(bad, "nq", 8192, range(1)))
    _, odd = job("helmet", tokenizer, tmp_path, options={"data": {"nqq": file}})
    with pytest.raises(LengthenError, match="names no task"):
        suite.parameters(odd, "nq")


def test_a_checker_that_is_no_model_is_named(tmp_path):
    with pytest.raises(LengthenError, match="the option nli names no sequence-to-sequence model"):
        judging.ModelChecks(str(tmp_path))
