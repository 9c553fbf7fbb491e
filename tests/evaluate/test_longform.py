"""Long writing: prompts of three schemas, each benchmark's length score with its own counter, repetition, judge."""

from __future__ import annotations

import json

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json
from lengthen.common.manifest import StageContext, StageResult
from lengthen.evaluate.longform.prompts import WritingPrompt, load_prompts
from lengthen.evaluate.longform.scores import length_score, measure_text
from lengthen.evaluate.run import evaluate
from lengthen.evaluate.suites import Scored
from lengthen.recipe.stages.evaluate import EvaluateStage
from tests.conftest import make_tokenizer
from tests.evaluate.helpers import job, story
from tests.evaluate.test_judge import endpoint  # noqa: F401

LONGEN_ROWS = [
    {"language": "en", "range": "2-4k", "type": "about", "constraint": "about 4,000 words", "query": "On salt."},
    {"language": "en", "range": "2-4k", "type": "range", "constraint": "2000 to 4000 words", "query": "On tin."},
    {"language": "zh", "range": "2-4k", "type": "above", "constraint": "超过2000字", "query": "写一篇文章。"},
    {"language": "en", "range": "6-8k", "type": "below", "constraint": "under 6000 words", "query": "On ice."},
]
WRITE_ROWS = [{"prompt": f"Write {n} words.", "type": "Essay", "length": n} for n in (100, 500, 2000)]


@pytest.fixture
def files(tmp_path):
    found = {}
    for name, rows in (("longen", LONGEN_ROWS), ("longbench_write", WRITE_ROWS), ("prompts", [{"prompt": "A tale."}])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        found[name] = str(path)
    return found


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path / "tokenizer")


def test_bands_and_asked_lengths_are_read(files):
    found = load_prompts(files["longen"])
    assert [(p.low, p.high) for p in found] == [(3200, 4800), (2000, 4000), (2000, 3000), (3000, 6000)]
    assert [p.family for p in load_prompts(files["longbench_write"])] == ["longbench-write"] * 3
    assert load_prompts(files["prompts"])[0].family == "open"


def test_rows_that_name_no_language_are_told_by_their_script(tmp_path):
    """LongBench-Write's published rows have none, and are English and Chinese."""
    asked = ["Write a 100-word note on Latin.", "对于雷锋精神的推文，200字以内", "写一篇关于iPhone 16 Pro的评测，800字"]
    rows = [{"prompt": prompt, "type": "Essay", "length": 100} for prompt in asked]
    rows.append({"language": "zh", "type": "about", "constraint": "about 4,000 words", "query": "On salt."})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert [p.language for p in load_prompts(str(tmp_path / "rows.jsonl"))] == ["en", "zh", "zh", "zh"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [(1600, 0), (2000, 0.25), (2400, 0.5), (3200, 1), (4800, 1), (5400, 0.75), (6000, 0.5), (7200, 0)],
)
def test_longens_score_of_about_4000(words, expected):
    prompt = WritingPrompt("p", "q", "longen", "about", 3200, 4800)
    assert length_score(prompt, "word " * words) == pytest.approx(expected)


@pytest.mark.parametrize(("words", "expected"), [(2000, 50), (3000, 83.3), (6000, 83.3), (8000, 66.7), (16000, 0)])
def test_longbench_writes_score_of_4000(words, expected):
    prompt = WritingPrompt("p", "q", "longbench-write", "", 4000, 4000)
    assert 100 * (length_score(prompt, "word " * words) or 0) == pytest.approx(expected, abs=0.05)


def test_counters_are_never_mixed():
    text = "I have 12 apples, 你好。 " * 20
    longen = measure_text(WritingPrompt("p", "q", "longen", "about", 80, 120), text)
    write = measure_text(WritingPrompt("p", "q", "longbench-write", "", 100, 100), text)
    assert longen.counted == 20 * (4 + 3), "words, numbers, ideographs and the full stop"
    assert write.counted == 20 * (3 + 2), "no numbers, no punctuation"


def test_a_loop_earns_nothing_beyond_its_first_round():
    part = story(12)
    prompt = WritingPrompt("p", "q", "longen", "about", 0.8 * 900, 1.2 * 900)
    loop = measure_text(prompt, " ".join([part] * 8))
    assert loop.clean_words < loop.words / 7 and loop.repeated > 0.8
    assert (loop.length_score or 0) > 0.9 and loop.clean_length_score == 0.0
    honest = measure_text(prompt, story(90))
    assert honest.repeated == 0 and honest.clean_words == honest.words and honest.finished
    assert not measure_text(prompt, story(20), "length").finished and not measure_text(prompt, "It was the").finished
    assert measure_text(prompt, " \n").empty


def test_samples_and_scores(files, tokenizer, tmp_path):
    suite, this = job("longform", tokenizer, tmp_path, options=files)
    samples = list(suite.make(this, "longen", 0, range(10)))
    assert len(samples) == 4 and not suite.sized
    assert {s.user for s in samples} == {row["query"] for row in LONGEN_ROWS}
    again = list(suite.make(this, "longen", 0, range(2)))
    assert [s.line() for s in again] == [s.line() for s in samples[:2]]
    about = next(s for s in samples if s.meta["kind"] == "about")
    assert suite.score(about, "word " * 4000) == 1.0 and suite.score(about, "") == 0.0
    assert about.new_tokens == 16384
    short = next(s for s in suite.make(this, "longbench_write", 0, range(3)) if s.meta["high"] == 100)
    assert short.new_tokens == 664
    (free,) = suite.make(this, "prompts", 0, range(1))
    assert suite.score(free, story(50)) == 1.0 and suite.score(free, " ".join([story(10)] * 5)) < 0.25
    _, english = job("longform", tokenizer, tmp_path, options={**files, "language": "en"})
    assert len(list(suite.make(english, "longen", 0, range(10)))) == 3
    assert len(list(suite.make(english, "longbench_write", 0, range(10)))) == 3


def test_summary_with_a_judge(files, tokenizer, tmp_path, endpoint):  # noqa: F811
    def reply(text, times):
        if "salt" in text:
            return json.dumps({name: 10 for name in ("relevance", "coherence", "accuracy", "consistency", "clarity",
                                                     "creativity", "engagement")})  # fmt: skip
        return "unreadable"

    server = endpoint(reply)
    suite, this = job("longform", tokenizer, tmp_path, options={**files, "judge": server.name})
    samples = list(suite.make(this, "longen", 0, range(4)))
    outputs = [story(30) if s.meta["kind"] != "below" else "" for s in samples]
    scored = [Scored(s, o, suite.score(s, o), "stop") for s, o in zip(samples, outputs)]
    rows = {row["task"]: row for row in suite.summary(this, scored)}
    assert rows["longen:empty"]["value"] == 1 and rows["longen:finished"]["value"] == 0.75
    assert rows["longen:repeated 10-grams"]["value"] == 0
    assert {k for k in rows if "length score (" in k} == {
        f"longen:length score ({kind})" for kind in ("about", "range", "above", "below")
    }
    assert rows["longen:unreadable judgements"]["value"] == 2, "the empty text is not put to the judge"
    (judged_row,) = [row for name, row in rows.items() if name.startswith("longen:quality")]
    assert judged_row["value"] == 1.0 and judged_row["n"] == 1


def test_rows_of_no_schema_are_named(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "hello"}\n')
    with pytest.raises(LengthenError, match="odd-1 has the keys text"):
        load_prompts(str(path))
    with pytest.raises(LengthenError, match="no writing prompts"):
        load_prompts("longenn")


def test_a_whole_evaluation_notes_what_the_judge_left_open(files, model_folder, tmp_path, endpoint):  # noqa: F811
    writer = endpoint(lambda text, times: "The sea is wide and grey.")
    server = endpoint(lambda text, times: "unreadable")

    def result(judge: str) -> StageResult:
        suite = {"suite": "longform", "tasks": ["prompts"], "options": {"prompts": files["prompts"], "judge": judge}}
        settings = EvaluateStage.model_validate({
            "model": writer.name, "tokenizer": str(model_folder), "suites": [suite], "samples": 1,
            "endpoint": {"retries": 0},
        })  # fmt: skip
        return evaluate(settings, StageContext(tmp_path / "stage"))

    (note,) = result(server.name).notes
    assert note.startswith("longform prompts: 1 of 1 texts have no readable judgement")
    (note,) = result("http://127.0.0.1:9/v1#away").notes
    assert note.startswith("longform prompts: further measures could not be made: ")
    (row,) = read_json(tmp_path / "stage" / "scores.json")["rows"]
    assert row["n"] == 1, "the answers' own score stays"
