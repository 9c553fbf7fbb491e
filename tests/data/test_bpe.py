"""The fast way gives the ids of the plain way, or does not take the text or the tokenizer."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, pre_tokenizers

from lengthen.data import bpe
from lengthen.data.bpe import ByteBpe, fast_pattern
from lengthen.data.tokenize import TextTokenizer
from tests.data.test_tokenize import PROSE, byte_level, hostile_text, sentencepiece_like, split_like_llama3, unigram

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def digits_apart() -> Tokenizer:
    """As SmolLM2's and StarCoder's."""
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    return tokenizer


def split_like_qwen2() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return tokenizer


MAKERS = [byte_level, digits_apart, split_like_llama3, split_like_qwen2]
TOKENIZERS = {make: make() for make in MAKERS}
WAYS = {make: ByteBpe(tokenizer, fast_pattern(tokenizer) or "") for make, tokenizer in TOKENIZERS.items()}
SIGNS = "  \n\n\r\t'sdmtrevl.,!=-_aAbzé12ſ½Ⅳ²海がー한Жש\u00a0\u2003\u3000\u200b🙂🚢\U0001f3fd"
NASTY = st.text(st.sampled_from(SIGNS), max_size=40)


def both(make, text: str) -> tuple[list[int], list[int]]:
    plain = TOKENIZERS[make].encode(text, add_special_tokens=False).ids
    return WAYS[make].encode(text).tolist() if WAYS[make].takes(text) else plain, plain


@pytest.mark.parametrize("make", MAKERS)
def test_hostile_texts(make):
    for seed in range(12):
        text = hostile_text(seed)
        fast, plain = both(make, text)
        assert WAYS[make].takes(text) and fast == plain, f"seed {seed}"


@given(NASTY | st.text(max_size=30), st.sampled_from(MAKERS))
def test_any_text(text, make):
    fast, plain = both(make, text)
    assert fast == plain


@pytest.mark.parametrize("make", MAKERS)
def test_every_character_that_is_taken_is_seen_alike(make):
    """Between letters, digits and spaces, each in a text of its own: that shows its class."""
    taken = [c for c in map(chr, range(0x110000)) if not bpe._OTHER.match(c) and unicodedata.category(c) != "Cs"]
    assert len(taken) > 30_000
    texts = [f"a{c}b {c}1{c} {c}{c}\n" for c in taken]
    plain = TOKENIZERS[make].encode_batch_fast(texts, add_special_tokens=False)
    bad = [c for c, text, one in zip(taken, texts, plain) if WAYS[make].encode(text).tolist() != one.ids]
    assert not bad


def test_the_default_models_tokenizer_on_real_texts():
    """Source and prose of this repository and of Python, with SmolLM2's tokenizer."""
    import sysconfig
    from pathlib import Path

    from lengthen.models import default_model

    tokenizer = Tokenizer.from_file(str(default_model() / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    pattern = fast_pattern(tokenizer)
    assert pattern is not None
    way = ByteBpe(tokenizer, pattern)
    files = [*sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:60], *sorted(Path("docs").glob("*.md"))]
    texts = [file.read_text(errors="replace") for file in files]
    taken = [text for text in texts if way.takes(text)]
    assert len(taken) > 0.9 * len(texts)
    for text, plain in zip(taken, tokenizer.encode_batch_fast(taken, add_special_tokens=False)):
        assert way.encode(text).tolist() == plain.ids
    # Bytes that this vocabulary does not have are dropped by the plain way; the fast one would fail.
    assert not way.takes("a\x04b") and way.takes("a\x05b")


def test_texts_that_are_not_taken_go_the_plain_way():
    tokenizer = byte_level()
    tokenizer.add_tokens(["<think>"])
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.encode_special_tokens = True
    pattern = fast_pattern(tokenizer)
    assert pattern
    fast = TextTokenizer(tokenizer, None, None, ByteBpe(tokenizer, pattern))
    plain = TextTokenizer(tokenizer, None, None)
    texts = ["so <think> it is", "stop <|end|> here", "ᎠᎡ", " " * 30_000, "x" * 30_000 + " end", "plain", *PROSE]
    assert [fast.fast.takes(text) for text in texts[:6]] == [False, True, False, False, False, True]  # type: ignore[union-attr]
    for one, other in zip(fast.encode_batch(texts), plain.encode_batch(texts)):
        assert one.dtype == np.int32 and one.tolist() == other.tolist()


def test_long_texts_need_no_windows():
    tokenizer = byte_level()
    fast = TextTokenizer(tokenizer, None, None, WAYS[byte_level])
    text = " ".join(hostile_text(seed) for seed in range(4))
    pieces = list(fast.encode_long(text, window=1500, overlap=300))
    assert len(pieces) == 1 and pieces[0].tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def changed(**model) -> Tokenizer:
    spec = json.loads(byte_level().to_str())
    spec["model"] |= model
    return Tokenizer.from_str(json.dumps(spec))


def test_tokenizers_that_merge_otherwise_are_left_alone():
    spec = json.loads(byte_level().to_str())
    merges, vocabulary = spec["model"]["merges"], spec["model"]["vocab"]
    assert fast_pattern(changed()) is not None
    assert fast_pattern(changed(merges=merges[::-1])) is None, "ids do not rise with the merges"
    assert fast_pattern(changed(merges=merges[:-1])) is None, "a token that no merge makes"
    assert fast_pattern(changed(byte_fallback=True)) is None
    assert fast_pattern(sentencepiece_like()) is None and fast_pattern(unigram()) is None
    cased = changed()
    from tokenizers import normalizers

    cased.normalizer = normalizers.Lowercase()
    assert fast_pattern(cased) is None
    spaced = changed()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert fast_pattern(spaced) is None
    # ab, bc, and a+bc for abc: the merges make ab+c of abc, which a look-up of whole pieces would not see.
    letters = {c: vocabulary[c] for c in bpe.byte_of_character()}
    after = max(letters.values())
    odd = {**letters, "ab": after + 1, "bc": after + 2, "abc": after + 3}
    assert fast_pattern(changed(vocab=odd, merges=[["a", "b"], ["b", "c"], ["a", "bc"]])) is None
    assert fast_pattern(changed(vocab=odd, merges=[["a", "b"], ["b", "c"], ["ab", "c"]])) is not None


def test_a_special_token_that_is_a_word_matters_only_where_words_are_looked_up():
    spec = json.loads(byte_level().to_str())
    vocabulary = {**spec["model"]["vocab"], "stopword": 10_000}
    for ignore, wanted in ((True, None), (False, bpe._GPT2)):
        tokenizer = changed(vocab=vocabulary, ignore_merges=ignore)
        tokenizer.add_special_tokens([AddedToken("stopword", special=True)])
        assert fast_pattern(tokenizer) == wanted
