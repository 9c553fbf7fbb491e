"""Our scores against the originals': RULER's definitions, lm-evaluation-harness, trec_eval, HELMET's parsing."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.evaluate.scorers import (
    any_found,
    best_of_raw_and_parsed,
    citation_scores,
    clean,
    exact_match,
    list_recall_top5,
    ndcg,
    parse_answer,
    parse_ranking,
    share_found,
    substring_match,
    token_f1,
)
from tests.evaluate.helpers import job, story

texts = st.text(alphabet="abAB12 -.\n\x00\x07é", max_size=30)
references = st.lists(st.text(alphabet="abAB12é", min_size=1, max_size=4), min_size=1, max_size=5)


@given(st.lists(st.tuples(texts, references), min_size=1, max_size=5))
def test_ruler_metrics_by_their_definition(rows):
    """arXiv 2404.06654, evaluation code: string_match_all and string_match_part over a file, in percent."""
    whole = 100 * sum(sum(r.lower() in p.lower() for r in refs) / len(refs) for p, refs in prepared(rows)) / len(rows)
    part = 100 * sum(max(float(r.lower() in p.lower()) for r in refs) for p, refs in prepared(rows)) / len(rows)
    assert 100 * sum(share_found(p, refs) for p, refs in rows) / len(rows) == pytest.approx(whole)
    assert 100 * sum(any_found(p, refs) for p, refs in rows) / len(rows) == pytest.approx(part)


def prepared(rows):
    """RULER's postprocessing: trimmed, characters below 0x20 become line breaks, trimmed again."""
    for output, refs in rows:
        text = "".join("\n" if ord(c) < 32 else c for c in output.strip()).strip()
        assert clean(output) == text
        yield text, refs


def test_ruler_scores_of_known_answers():
    refs = ["1234567", "7654321", "1111111", "2222222"]
    assert share_found("They are 1234567, 7654321 and 1111111.", refs) == 0.75
    assert share_found("ABCDE fghij", ["abcde", "FGHIJ"]) == 1.0
    assert share_found("", refs) == 0.0
    # Three references, one hit: RULER gives 1 to qa, the share is a third.
    assert any_found("in Paris", ["Paris", "the city of Paris", "Paris, France"]) == 1.0


needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra lm-eval")


@pytest.mark.slow
@needs_harness
def test_lm_eval_scores_our_answers_the_same_but_for_qa():
    from lm_eval.tasks.ruler.common_utils import postprocess_pred, string_match_all, string_match_part

    rows = [("It is 1234567 \x01 or 7654321", ["1234567", "7654321", "9"]), ("nothing", ["x"]), ("ABC", ["abc"])]
    for output, refs in rows:
        assert string_match_all(postprocess_pred([output]), [refs]) == share_found(output, refs)
    output, refs = "in Paris", ["Paris", "the city of Paris", "Paris, France"]
    theirs = string_match_part(postprocess_pred([output]), [refs])
    assert theirs == pytest.approx(1 / 3), "lm-evaluation-harness divides by the references"
    assert any_found(output, refs) == 1.0, "RULER does not"


@pytest.mark.slow
@needs_harness
def test_lm_eval_run_on_our_samples_with_one_model_gives_our_scores(tmp_path, model_folder):
    """The harness's own loop (Python API) over our prompts, and ours, with the same local model."""
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.ruler.common_utils import process_results
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lengthen.generate.local import LocalEngine

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    (tmp_path / "text.txt").write_text(story(300))
    suite, this = job("ruler", tokenizer, tmp_path, "raw", haystack=str(tmp_path / "text.txt"))
    found: list[Any] = []
    for task in ("niah_single_1", "vt", "fwe"):
        # A random model finds nothing; references of one character make its scores differ between samples.
        found += [(s, [c for c in "abcde"]) for s in suite.make(this, task, 1024, range(3))]
    rows = [{"input": s.user, "gen_prefix": s.prefix.strip(), "outputs": refs, "max_length": 4096} for s, refs in found]

    class Ours(ConfigurableTask):
        def __init__(self) -> None:
            super().__init__(config={
                "task": "ours", "output_type": "generate_until", "test_split": "test", "doc_to_text": "{{input}}",
                "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
                "doc_to_target": "{{outputs}}", "gen_prefix": "{{gen_prefix}}", "target_delimiter": " ",
                "process_results": process_results,
                "metric_list": [{"metric": "4096", "aggregation": "mean", "higher_is_better": True}],
                "generation_kwargs": {"do_sample": False, "temperature": 0.0, "max_gen_toks": 24, "until": []},
            })  # fmt: skip

    loaded = AutoModelForCausalLM.from_pretrained(model_folder)
    model = HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=1, max_length=2048)
    theirs = lm_eval.evaluate(lm=model, task_dict={"ours": Ours()}, log_samples=True)
    assert theirs is not None
    by_doc = {row["doc_id"]: row for row in theirs["samples"]["ours"]}
    engine = LocalEngine(model_folder, dtype="float32")
    from lengthen.generate.engine import Request

    for number, (sample, refs) in enumerate(found):
        # The harness joins prompt and prefix with the target delimiter, which our prefixes begin with.
        request = Request(sample.id, text=sample.user, prefix=f" {sample.prefix.strip()}", max_new_tokens=24)
        (answer,) = engine.generate([request])
        assert answer.text.strip() == by_doc[number]["resps"][0][0].strip()
        assert share_found(answer.text, refs) == pytest.approx(by_doc[number]["4096"])
    engine.close()


@given(
    st.dictionaries(st.integers(1, 40).map(str), st.integers(0, 3), min_size=1, max_size=30),
    st.permutations(list(range(1, 41))),
    st.integers(0, 40),
)
def test_ndcg_is_trec_evals(labels, order, kept):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ranking = [str(n) for n in order[:kept]]
    evaluator = pytrec_eval.RelevanceEvaluator({"q": labels}, {"ndcg_cut.10"})
    run = {"q": {name: float(len(ranking) - i) for i, name in enumerate(ranking)}}
    theirs = evaluator.evaluate(run)
    expected = theirs["q"]["ndcg_cut_10"] if ranking else 0.0
    assert ndcg(ranking, labels) == pytest.approx(expected, abs=1e-9)


def test_ndcg_by_hand():
    # Gains 1, 0, 2 at ranks 1 to 3; ideal 2, 1.
    assert ndcg(["a", "x", "b"], {"a": 1, "b": 2, "c": 0}) == pytest.approx((1 + 2 / 2) / (2 + 1 / math.log2(3)))


@pytest.mark.parametrize(
    ("output", "ids"),
    [
        ("Ranking: ID3 > ID1 > ID2", ["3", "1", "2"]),
        ("[ID: 7] > [ID: 4] > [ID: 7]", ["7", "4"]),
        ("I think 12 is best.\n5 > 6 > 9", ["5", "6", "9"]),
        ("3, 1, 2", ["3"]),
        ("none", []),
    ],
)
def test_rankings_are_parsed_as_helmet_does(output, ids):
    assert parse_ranking(output) == ids


def test_answers_are_parsed_and_matched_as_helmet_does():
    assert parse_answer("Answer: the Nile.\nBecause") == "the Nile."
    assert parse_answer("The Nile\nQuestion: next") == "The Nile"
    assert parse_answer("answer: Answer: Nile") == "Nile"
    assert exact_match("The Nile!", ["nile"]) == 1.0 and exact_match("The river Nile", ["nile"]) == 0.0
    assert substring_match("It is the Nile, I think", ["Nile"]) == 1.0
    assert best_of_raw_and_parsed(exact_match, "Well.\nAnswer: 7\n", ["7"]) == 1.0
    assert token_f1("the big red boat", ["red boat"]) == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    assert token_f1("yes it is", ["yes"]) == 0.0


def test_citations_by_alces_rules():
    passages = ["cats purr", "dogs bark", "cats purr and dogs bark"]

    def entails(passage: str, claim: str) -> bool:
        return all(part in passage for part in claim.rstrip(".").split(" and "))

    sentences = [
        "cats purr [1].",  # supported, one citation, needed
        "cats purr and dogs bark [1][2].",  # supported by both, each needed
        "cats purr [1][2].",  # supported; the second is not needed
        "dogs bark.",  # no citation
        "dogs bark [9].",  # no such passage: neither supported nor counted
        "dogs bark [1].",  # cited, not supported
    ]
    recall, precision = citation_scores(sentences, passages, entails)  # type: ignore[misc]
    assert recall == pytest.approx(3 / 6)
    assert precision == pytest.approx((1 + 2 + 1) / (1 + 2 + 2 + 1))
    assert citation_scores([], passages, entails) is None
    # Of four citations the first three count (at_most_citations): together they hold no dog that barks.
    assert citation_scores(["dogs bark [1][1][1][2]."], passages, entails) == (0.0, 0.0)
    assert citation_scores(["cats purr [1][3][1][2]."], passages, entails) == (1.0, 1.0)


def test_list_recall_stops_at_five():
    answers = [[f"item {i}", f"thing {i}"] for i in range(8)]
    assert list_recall_top5("Item 0, thing 1, item 2, item 3, item 4.", answers) == 1.0
    assert list_recall_top5("item 0, item 0, nothing", answers) == pytest.approx(1 / 5)
    assert list_recall_top5("item 1", [["item 1"], ["item 2"]]) == 0.5
