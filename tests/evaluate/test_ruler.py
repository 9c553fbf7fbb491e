"""RULER's tasks: what a prompt asks is what it holds, lengths are honest, and data files are read."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

import pytest

from lengthen.common.errors import LengthenError
from lengthen.evaluate.fit import TooShort
from lengthen.evaluate.ruler import effective as e
from lengthen.evaluate.ruler.lexicon import all_words
from lengthen.evaluate.ruler.niah import Essay
from lengthen.evaluate.ruler.qa import load_questions
from lengthen.evaluate.ruler.suite import SUITE, maker
from lengthen.evaluate.ruler.templates import TASKS
from lengthen.evaluate.ruler.words import word_supply, words_needed
from tests.conftest import make_tokenizer
from tests.evaluate.helpers import honest, job, joined_tokenizer, story

OFFLINE = [name for name, task in TASKS.items() if not task.data]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def essays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("essays")
    (folder / "one.txt").write_text(story(400) + "\n\nCafé — “quoted”, wasn’t it?  Yes.\n" + story(100, 1))
    return folder


JOBS: dict = {}


def made(tokenizer, tmp_path, essays, task, length, count=4, template="on"):
    key = (id(tokenizer), template)
    if key not in JOBS:  # word lists are counted once per tokenizer
        JOBS[key] = job("ruler", tokenizer, tmp_path, template, haystack=str(essays))
    suite, this = JOBS[key]
    return this, list(suite.make(this, task, length, range(count)))


@pytest.mark.parametrize("task", OFFLINE)
@pytest.mark.parametrize("length", [3000, 8192])
def test_prompts_are_as_long_as_asked(tokenizer, tmp_path, essays, task, length):
    this, samples = made(tokenizer, tmp_path, essays, task, length)
    assert len(samples) == 4 and len({s.id for s in samples}) == 4
    for sample in samples:
        # A unit of the tiny tokenizer: a uuid needle of 180 tokens, three numbered words, a line of noise.
        honest(sample, this, 220)


@pytest.mark.parametrize("task", OFFLINE)
def test_every_task_fits_into_512_real_tokens(tmp_path, essays, task):
    # A tokenizer with whole words, as real ones have; the tiny one spells them.
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    this, samples = made(words, tmp_path, essays, task, 512, template="raw")
    for sample in samples:
        honest(sample, this, 60)


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2", "niah_multivalue", "vt", "cwe", "fwe"])
def test_lengths_hold_where_nothing_can_be_proved(tmp_path, essays, task):
    tokenizer = joined_tokenizer(tmp_path)
    suite, this = job("ruler", tokenizer, tmp_path, haystack=str(essays))
    assert not maker(this, task, 3000).proven
    for sample in suite.make(this, task, 3000, range(3)):
        honest(sample, this, 150)


def test_a_wrong_proof_is_found_out(tokenizer, tmp_path, essays):
    from lengthen.evaluate.fit import make

    _, this = job("ruler", tokenizer, tmp_path, haystack=str(essays))
    wrong = maker(this, "niah_single_1", 2048)
    wrong.noise += 1
    drafts = [d for part in make(wrong, range(3), 2048, 128) for d in part]
    assert not wrong.proven
    right = [d for part in make(maker(this, "niah_single_1", 2048), range(3), 2048, 128) for d in part]
    assert [d.user for d in drafts] == [d.user for d in right]


@pytest.mark.parametrize("task", [name for name in OFFLINE if name.startswith("niah")])
def test_needles_hold_what_is_asked(tokenizer, tmp_path, essays, task):
    settings = TASKS[task]
    _, samples = made(tokenizer, tmp_path, essays, task, 8192)
    for sample in samples:
        found: dict[str, list[str]] = {}
        for key, value in re.findall(r"One of the special magic \w+ for (.+?) is: (\S+?)\.(?=\s|$)", sample.user):
            found.setdefault(key, []).append(value)
        query = re.search(r"for (.+?) mentioned in the provided text\?$", sample.user)
        assert query is not None
        keys = re.split(r", and |, ", query[1])
        assert len(keys) == settings.queries
        assert sorted(v for key in keys for v in found[key]) == sorted(sample.refs)
        assert len(sample.refs) == settings.queries * settings.values
        pattern = r"\d{7}" if settings.value_kind == "numbers" else r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab].{16}"
        assert all(re.fullmatch(pattern, ref) for ref in sample.refs)
        one = len(sample.refs) == 1
        assert sample.user.startswith("A special magic" if one else "Some special magic")
        assert sample.prefix.endswith("provided text is" if one else "provided text are")


def test_essay_needles_stand_at_sentence_ends_and_texts_differ(tokenizer, tmp_path, essays):
    _, samples = made(tokenizer, tmp_path, essays, "niah_multikey_1", 8192, count=8)
    for sample in samples:
        for match in re.finditer(r"One of the special magic", sample.user):
            before = sample.user[: match.start()].rstrip()
            if re.match(r"[^\n]{,80}\.\nWhat", sample.user[match.start() :]):
                continue  # depth 100: after the last word, wherever the text was cut, as in RULER
            assert before[-1] in ".?!”" or before.endswith("afterwards."), before[-40:]
    assert len({s.user[200:400] for s in samples}) == 8


def test_variables_follow_the_chain(tokenizer, tmp_path, essays):
    _, samples = made(tokenizer, tmp_path, essays, "vt", 4096)
    for sample in samples:
        last = sample.user.rindex("Memorize and track")
        example, text = sample.user[:last], sample.user[last:]
        value = re.search(r"assigned the value (\d{5}) in the text above", text)
        assert value is not None
        names = {m[1]: m[2] for m in re.finditer(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", text)}
        holding, step = [], value[1]
        while step in names.values():
            step = next(n for n, v in names.items() if v == step)
            holding.append(step)
        assert tuple(holding) == sample.refs and len(holding) == 5
        assert example.count("Question: Find all variables") == 1
        assert re.search(r"they are: (?: ?[A-Z]{3}){5}\n\n\n\n$", example) is not None
        assert not set(sample.refs) & set(re.findall(r"[A-Z]{5}", example))


@pytest.mark.parametrize(("length", "often", "seldom"), [(8192, 30, 3), (3000, 6, 1)])
def test_common_words_are_the_most_frequent(tokenizer, tmp_path, essays, length, often, seldom):
    _, samples = made(tokenizer, tmp_path, essays, "cwe", length)
    for sample in samples:
        last = sample.user.rindex("Below is a numbered list")
        body = sample.user[last:].split("\n")[1]
        entries = re.split(r"(?:^| )\d+\. ", body)[1:]
        counts = Counter(entries)
        assert {w for w, c in counts.items() if c == often} == set(sample.refs)
        assert set(counts.values()) == {often, seldom}
        assert re.findall(r"(?:^| )(\d+)\. ", body) == [str(i) for i in range(1, len(entries) + 1)]
        shown = set(re.split(r"(?:^| )\d+\. ", sample.user[:last].split("\n")[1]))
        assert not shown & set(entries)


def test_coded_words_follow_the_law(tokenizer, tmp_path, essays):
    _, samples = made(tokenizer, tmp_path, essays, "fwe", 8192)
    for sample in samples:
        body = sample.user.split("coded words. ", 1)[1].split("\nQuestion")[0]
        ranked = Counter(body.split()).most_common()
        assert ranked[0][0] == "..." and [w for w, _ in ranked[1:4]] == list(sample.refs)
        # int(n / k^2 / zeta(2)): rank 2 has a quarter of rank 1.
        assert abs(ranked[0][1] / 4 - ranked[1][1]) <= 1


def test_samples_depend_on_seed_task_length_and_index_alone(tokenizer, tmp_path, essays):
    suite, this = job("ruler", tokenizer, tmp_path, haystack=str(essays))
    whole = [s.line() for s in suite.make(this, "niah_multikey_2", 2048, range(6))]
    assert [s.line() for s in suite.make(this, "niah_multikey_2", 2048, range(3, 6))] == whole[3:]
    _, other = job("ruler", tokenizer, tmp_path, haystack=str(essays), samples_seed=1)
    assert [s.line() for s in suite.make(other, "niah_multikey_2", 2048, range(6))] != whole


def test_draws_are_the_same_bytes_everywhere():
    from lengthen.evaluate.draws import Draws

    drawn = [Draws(7, "a", 1).integers(0, 1000, 5).tolist(), Draws(7, "b").uuids(2), Draws(7).order(6).tolist()]
    text = json.dumps(drawn)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "cc9ed161fe1ca383"


def test_an_essay_goes_round_and_its_words_add_up(tokenizer):
    from lengthen.evaluate.counting import Counter as Tokens

    counter = Tokens(tokenizer)
    essay = Essay.of(story(20), counter)
    n = len(essay.starts)
    assert essay.additive and int(essay.counts.sum()) == counter.count(f" {essay.flat}")
    assert " ".join(essay.words(n - 3, n + 2)).split() == essay.flat.split()[-3:] + essay.flat.split()[:2]
    assert essay.border_at(n + 1) == n


# ------------------------------------------------------------------------------------------------------------ qa tasks
def squad_original(tmp_path):
    data = [
        {
            "title": f"Article {a}",
            "paragraphs": [
                {
                    "context": f"The mayor of town {a}{p} was Person{a}{p}, says {p}. {story(2, 10 * a + p)}",
                    "qas": [
                        {"question": f"Who was the mayor of town {a}{p}?", "is_impossible": False,
                         "answers": [{"text": f"Person{a}{p}"}, {"text": f"the Person{a}{p}"}]},
                        {"question": "Who knows?", "is_impossible": True, "answers": []},
                    ],
                }
                for p in range(5)
            ],
        }
        for a in range(12)
    ]  # fmt: skip
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return path


def hotpot_rows():
    return [
        {"question": f"Which bridge is older, {i} or {i + 1}?", "answer": f"Bridge {i}",
         "context": [[f"Title {i}-{p}", [f"Part {s} of {i}-{p}: Bridge {i}. " for s in range(3)]] for p in range(10)]}
        for i in range(12)
    ]  # fmt: skip


def test_squad_is_read_in_its_own_and_in_the_hubs_schema(tmp_path):
    original = load_questions("squad", str(squad_original(tmp_path)))
    assert len(original.documents) == 60 and len(original.questions) == 60
    first = original.questions[0]
    assert first.answers == ("Person00", "the Person00") and len(first.near) == 4 and len(first.own) == 1
    rows = []
    for article in json.loads((tmp_path / "dev.json").read_text())["data"]:
        for p in article["paragraphs"]:
            for qa in p["qas"]:
                rows.append({"title": article["title"], "context": p["context"], "question": qa["question"],
                             "answers": {"text": [a["text"] for a in qa["answers"]], "answer_start": []}})  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_questions("squad", str(path)) == original
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert load_questions("squad", str(tmp_path / "rows.parquet")) == original


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_questions_keep_their_paragraphs(tokenizer, tmp_path, task):
    squad, hotpot = squad_original(tmp_path), tmp_path / "hotpot.json"
    hotpot.write_text(json.dumps(hotpot_rows()))
    suite, this = job("ruler", tokenizer, tmp_path, options={"squad": str(squad), "hotpotqa": str(hotpot)})
    samples = list(suite.make(this, task, 4096, range(5)))
    assert len({s.user[-80:] for s in samples}) == 5
    for sample in samples:
        honest(sample, this, 300)
        assert suite.score(sample, f"It was {sample.refs[0]}.") == 1.0
        assert sample.refs[0] in sample.user
        numbers = [int(n) for n in re.findall(r"Document (\d+):\n", sample.user)]
        assert numbers == list(range(1, len(numbers) + 1))
    assert suite.parameters(this, task)["data"] != "rajpurkar/squad_v2"


def test_a_task_that_runs_out_of_paragraphs_says_so(tokenizer, tmp_path):
    suite, this = job("ruler", tokenizer, tmp_path, options={"squad": str(squad_original(tmp_path))})
    with pytest.raises(TooShort, match="paragraphs ended"):
        list(suite.make(this, "qa_1", 65536, range(1)))
    with pytest.raises(LengthenError, match="no file"):
        load_questions("squad", str(tmp_path / "nothing.json"))


# ---------------------------------------------------------------------------------------------------- effective length
@pytest.mark.parametrize(
    ("scores", "length", "beyond"),
    [
        ((96.7, 95.8, 96.0, 95.9, 95.9, 94.4), 131072, True),  # Gemini-1.5-pro
        ((96.8, 95.3, 93.0, 91.1, 90.4, 84.4), 65536, False),  # Qwen2.5-7B-1M
        ((95.5, 93.8, 91.6, 87.4, 84.7, 77.0), 32768, False),  # Llama-3.1-8B-Instruct
        ((96.3, 96.0, 91.8, 91.2, 82.1, 77.4), 32768, False),  # Qwen3-8B
        ((92.8, 90.3, 85.7, 79.9, 76.3, 69.5), 16384, False),  # Gradient-8B-1M
        ((82.3, 78.4, 73.7, 69.1, 68.1, 65.0), 0, False),  # LWM-7B-1M
        ((85.6, 80.0, 70.0, 60.0, 50.0, 40.0), 0, False),  # 85.6 does not exceed 85.6
    ],
)
def test_effective_length_of_published_models(scores, length, beyond):
    found = [e.LengthAverage(4096 << i, score / 100, ("cwe", "vt")) for i, score in enumerate(scores)]
    effective = e.effective_length(found)
    assert (effective.length, effective.beyond) == (length, beyond)


def test_weighted_averages_and_relative_length():
    found = [e.LengthAverage(n, s, ("vt",)) for n, s in ((4096, 0.6), (8192, 0.51), (16384, 0.2))]
    assert e.weighted(found) == pytest.approx((0.6 + 2 * 0.51 + 3 * 0.2) / 6)
    assert e.weighted(found, rising=False) == pytest.approx((3 * 0.6 + 2 * 0.51 + 0.2) / 6)
    assert e.relative_length(found).length == 8192, "0.51 is exactly 85% of 0.6"
    assert e.relative_length(found, native=8192).length == 8192
    assert e.relative_length([]).length == 0
    nothing = [e.LengthAverage(n, 0.0, ("vt",)) for n in (4096, 8192)]
    assert e.relative_length(nothing).length == 0, "0 is no share of 0"


def test_weighted_averages_of_published_models():
    """The README's own columns (arXiv 2404.06654 has them too): Gemini-1.5-pro and Llama-3.1-8B."""
    for scores, rising, falling in (
        ((96.7, 95.8, 96.0, 95.9, 95.9, 94.4), 95.5, 96.1),
        ((95.5, 93.8, 91.6, 87.4, 84.7, 77.0), 85.4, 91.3),
    ):
        found = [e.LengthAverage(4096 << i, score, ()) for i, score in enumerate(scores)]
        assert e.weighted(found) == pytest.approx(rising, abs=0.1)
        assert e.weighted(found, rising=False) == pytest.approx(falling, abs=0.1)


def test_default_tasks_need_no_data():
    assert SUITE.default is not None and len(SUITE.default) == 11 and len(SUITE.tasks) == 13


def test_common_words_beyond_the_list_are_noted(tokenizer, tmp_path, essays):
    suite, this = job("ruler", tokenizer, tmp_path, haystack=str(essays))
    assert suite.notes(this, "cwe", 65536, []) == [] and suite.notes(this, "fwe", 1 << 20, []) == []
    (note,) = suite.notes(this, "cwe", 1 << 20, [])
    assert note.startswith("ruler cwe at 1M: the list of ") and note.endswith(" entries are word pairs")
    assert int(note.split()[-5].replace(",", "")) == sum("-" in w for w in word_supply(words_needed(1 << 20))) - sum(
        "-" in w for w in all_words()
    )
