"""Near-duplicates and decontamination: the fast pool against the plain definition, and against rouge-score."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.selflengthen.distinct import Pool, lcs_length, rouge_l, words_of

WORDS = st.lists(st.sampled_from("abcde"), max_size=12)


@given(WORDS, WORDS)
def test_bit_parallel_lcs_equals_the_table(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    assert lcs_length(a, b) == table[-1][-1]


def test_same_numbers_as_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    a = "Write a story about a lighthouse keeper who finds a message in a bottle"
    b = "Write a short story about a keeper of bees who finds an old message"
    ours = rouge_l(words_of(a), words_of(b))
    assert ours == pytest.approx(RougeScorer(["rougeL"]).score(a, b)["rougeL"].fmeasure)


@given(st.lists(WORDS, max_size=8), WORDS, st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_the_index_finds_what_comparing_all_pairs_finds(texts, new, threshold):
    pool = Pool(threshold)
    for words in texts:
        pool.add(" ".join(words))
    best = max((rouge_l(words, new) for words in texts), default=0.0)
    found = pool.nearest(" ".join(new))
    assert (found is not None) == (best >= threshold and best > 0)
    if found is not None:
        assert found[1] == pytest.approx(best)


def test_shared_words_in_a_row_are_contamination():
    pool = Pool(0.7, ngram=8)
    pool.add("Write an outline for a short blog post about why Christmas cactus are a great buy.")
    near = "Tell my readers in many long chapters, with jokes, why Christmas cactus are a great buy for all of us"
    assert pool.nearest(near) is None
    near = "Please write an outline for a short blog post about something entirely different, namely tractors and barns"
    assert pool.nearest(near) is not None
    chinese = Pool(0.7, ngram=8)
    chinese.add("请写一篇关于雷锋精神的推文，二百字以内。")
    assert chinese.nearest("请写一篇关于雷锋精神的小说") is not None
    assert chinese.nearest("介绍火山的形成") is None
