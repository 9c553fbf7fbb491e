"""The fast ways of making RULER's samples: the same bytes as the plain ones, and as ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lengthen.evaluate.draws import first_of, order_of
from lengthen.evaluate.fit import make
from lengthen.evaluate.ruler.suite import maker
from tests.conftest import make_tokenizer
from tests.evaluate.helpers import job

# Samples that differ for one seed make results of different versions incomparable: a change here must raise the
# suite's `version`. (A tokenizer of whole words: nothing of it is trained, so that no other package decides.)
KNOWN = {
    ("niah_single_1", 3000): "1be1790d13edc032",
    ("niah_multikey_2", 3000): "c1653cb7eb992a35",
    ("niah_multikey_3", 3000): "c7d30eb88eb8f509",
    ("vt", 700): "d28a641102054990",
    ("vt", 3000): "ce1e71e1c4e5be1f",
    ("cwe", 700): "826cdbf06815db49",
    ("cwe", 3000): "8827688a5b638fcb",
    ("cwe", 4096): "5e683cf9bf8f9307",
    ("fwe", 3000): "065a762e8ec547f2",
}


def whole_words() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(("task", "length"), KNOWN)
def test_samples_keep_their_bytes(tmp_path, task, length):
    suite, this = job("ruler", whole_words(), tmp_path, "raw")
    digest = hashlib.sha256()
    for sample in suite.make(this, task, length, range(6)):
        digest.update(sample.line().encode())
    assert digest.hexdigest()[:16] == KNOWN[task, length]


@pytest.fixture(scope="module")
def tiny_job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return job("ruler", make_tokenizer(folder), folder)[1]


@pytest.mark.parametrize("length", [2047, 3000])
@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe"])
def test_counts_of_parts_give_the_prompts_that_full_counts_give(tiny_job, task, length):
    fast, plain = maker(tiny_job, task, length), maker(tiny_job, task, length)
    assert fast.proven
    plain.proven = False
    room = 64
    found = list(make(fast, range(3), length, room))
    assert fast.proven and found == list(make(plain, range(3), length, room))


@given(st.lists(st.integers(0, 9) | st.integers(2**64 - 9, 2**64 - 1), max_size=60), st.integers(0, 70))
def test_orders_are_the_stable_ones_with_equal_numbers_too(numbers, k):
    values = np.array(numbers, dtype="<u8")
    plain = np.argsort(values, kind="stable")
    assert order_of(values).tolist() == plain.tolist()
    assert first_of(values, k).tolist() == plain[:k].tolist()


def test_a_few_of_many_distinct_numbers():
    values = np.random.default_rng(0).integers(0, 2**63, 5000).astype("<u8")
    for k in (0, 1, 7, 1200):
        assert first_of(values, k).tolist() == np.argsort(values, kind="stable")[:k].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["niah_single_1", "vt", "cwe"])
def test_samples_of_two_million_tokens_can_be_made(task, tmp_path):
    length = 2 << 20
    suite, this = job("ruler", whole_words(), tmp_path, "off")
    (sample,) = suite.make(this, task, length, range(1))
    assert this.prompts.count(sample.user, sample.prefix) == sample.tokens
    assert 0.98 * length <= sample.tokens + sample.new_tokens <= length
    assert suite.score(sample, " ".join(sample.refs)) == 1.0
    assert all(ref in sample.user for ref in sample.refs)
    assert bool(suite.notes(this, task, length, [sample])) == (task == "cwe")
