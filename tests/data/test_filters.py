"""Filters, duplicates and decontamination drop what they should, and nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.common.errors import LengthenError
from lengthen.data.decontaminate import load_ngrams, write_ngrams
from lengthen.data.document import Document, Ledger
from lengthen.data.duplicates import minhash_config, shingles, signature
from lengthen.data.filters import check_filters, filter_documents, gzip_ratio, language_of, repetition_rule, windows
from lengthen.recipe.sources import Filters
from tests.data.helpers import model_folder, run, stage, words, write_jsonl

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "m", "ll")]


def prose(seed: int, count: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(VOCABULARY) for _ in range(count))


def kept(texts: list[str], **settings) -> tuple[list[int], Ledger]:
    ledger = Ledger()
    documents = [Document(str(n), text, "s") for n, text in enumerate(texts)]
    return [int(d.id) for d in filter_documents(documents, Filters(**settings), ledger)], ledger


def test_gzip_ratio_bounds():
    texts = ["abc " * 500, prose(1, 500), "".join(random.Random(1).choices("".join(map(chr, range(33, 1000))), k=3000))]
    assert gzip_ratio(texts[0]) < 0.1 < gzip_ratio(texts[1]) < gzip_ratio(texts[2])
    numbers, ledger = kept(texts, gzip_min=0.1, gzip_max=0.6)
    assert numbers == [1] and set(ledger.drops.by_rule) == {"gzip_ratio_low", "gzip_ratio_high"}


def test_repetition_rules():
    assert repetition_rule(prose(1, 400)) is None
    assert repetition_rule("the same line\n" * 50) == "repetition_duplicate_lines"
    phrase = " ".join(f"{prose(n, 12)} out of the blue sky at noon today {prose(n + 99, 2)}" for n in range(40))
    assert str(repetition_rule(phrase)).startswith("repetition_")
    numbers, ledger = kept([prose(2, 300), "spam and eggs " * 100], repetition=True)
    assert numbers == [0] and len(ledger.drops.by_rule) == 1


def test_a_book_is_judged_by_most_of_it():
    book = "the same line\n" * 2000 + prose(3, 300_000)
    assert len(windows(book)) > 4 and repetition_rule(book) is None
    assert repetition_rule("the same line\n" * 100_000) is not None


def test_languages():
    pytest.importorskip("py3langid")
    texts = [
        "The boats came back before the storm, and everybody was glad of it.",
        "Die Boote kamen vor dem Sturm zurück, und alle waren froh darüber.",
        "Les bateaux sont revenus avant la tempête, et tout le monde était content.",
    ]
    assert [language_of(text) for text in texts] == ["en", "de", "fr"]
    numbers, ledger = kept(texts, languages=["en", "fr"])
    assert numbers == [0, 2] and ledger.drops.by_rule["language_de"]["items"] == 1
    with pytest.raises(LengthenError, match="'english' is no ISO"):
        check_filters(Filters(languages=["english"]), "filters")


def test_exact_duplicates_keep_the_first(tmp_path):
    texts = [{"id": str(n), "text": prose(n % 7, 30)} for n in range(21)]
    source = {"kind": "jsonl", "paths": str(write_jsonl(tmp_path / "in.jsonl", texts))}
    model = model_folder(tmp_path / "model")
    result = run(stage(model, [source], filters={"exact_duplicates": True}, part_bytes=500), tmp_path / "out")
    assert result.counts["documents"] == 7 and result.drops["exact_duplicate"]["items"] == 14


def test_near_duplicates_leave_one_of_each_cluster(tmp_path):
    base = [prose(n, 300) for n in range(5)]
    texts = []
    for number, text in enumerate(base):
        parts = text.split(" ")
        for copy in range(3):
            changed = list(parts)
            for place in random.Random(100 * number + copy).sample(range(300), 3 if copy else 0):
                changed[place] = "zz"
            texts.append({"text": " ".join(changed)})
    texts.append({"text": prose(99, 300)})
    source = {"kind": "jsonl", "paths": str(write_jsonl(tmp_path / "in.jsonl", texts))}
    model = model_folder(tmp_path / "model")
    settings = {"filters": {"near_duplicates": True}, "row_length": 4096}
    result = run(stage(model, [source], part_bytes=4000, **settings), tmp_path / "out")
    assert result.drops["near_duplicate"]["items"] == 10 and result.counts["documents"] == 6


def test_signatures_are_datatroves_whatever_the_blocks():
    """Ours hashes in blocks so that a book fits into memory; datatrove's step hashes all shingles at once."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

    step = MinhashDedupSignature.__new__(MinhashDedupSignature)
    step.config = minhash_config()
    step.num_hashes = step.config.num_buckets * step.config.hashes_per_bucket
    step._parameters = None
    for text in (prose(1, 3), prose(2, 200), prose(3, 9000)):
        found = signature(text)
        assert found is not None
        whole = np.concatenate(list(shingles(text))).reshape(-1, 1)
        assert found.tolist() == step.get_signature(whole)
        count = len(text.split())
        assert len(whole) == max(1, count - 4)
    assert signature("!!! ...") is None


@given(st.integers(0, 60), st.integers(0, 40), st.integers(13, 30))
def test_a_shared_run_of_thirteen_words_is_found_wherever_it_stands(tmp_path_factory, before, after, length):
    secret = prose(7, 40)
    if not (path := tmp_path_factory.getbasetemp() / "suite.ngrams.npz").exists():
        write_ngrams([secret], path)
    grams = load_ngrams([str(path)])
    part = " ".join(secret.split(" ")[5 : 5 + length])
    assert (
        grams.hits(f"{words(random.Random(1), before)}\n{part.upper()}, {words(random.Random(2), after)}", 99)
        == length - 12
    )
    assert grams.hits(prose(8, 400)) == 0
    short = " ".join(secret.split(" ")[5:17])
    assert grams.hits(f"alpha {short} omega") == 0


def test_grams_across_the_borders_of_blocks(tmp_path, monkeypatch):
    secret = prose(7, 30)
    write_ngrams([secret], tmp_path / "a.ngrams.npz")
    grams = load_ngrams([str(tmp_path)])
    text = f"{prose(1, 100)} {secret} {prose(2, 100)}"
    whole = grams.hits(text, 10**6)
    assert whole == 18
    monkeypatch.setattr("lengthen.data.decontaminate._BLOCK", 37)
    assert grams.hits(text, 10**6) == whole


def test_contaminated_documents_go(tmp_path):
    question = prose(50, 60)
    write_ngrams([question], tmp_path / "suite.ngrams.npz")
    texts = [prose(1, 200), prose(2, 50) + " " + question + " " + prose(3, 50)]
    numbers, ledger = kept(texts, decontaminate=[str(tmp_path)])
    assert numbers == [0] and ledger.drops.by_rule == {"contaminated": {"items": 1, "tokens": 0}}
    with pytest.raises(LengthenError, match="has no n-gram files"):
        load_ngrams([str(tmp_path / "none")])
    (tmp_path / "bad.ngrams.npz").write_bytes(b"no")
    with pytest.raises(LengthenError, match="is no n-gram file"):
        load_ngrams([str(tmp_path / "bad.ngrams.npz")])
