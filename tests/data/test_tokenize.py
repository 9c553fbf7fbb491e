"""Books in windows give the same ids as in one go, for tokenizers of every family."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lengthen.common.errors import LengthenError
from lengthen.data.tokenize import TextTokenizer, load_text_tokenizer, save_tokenizer, vocabulary_sha256
from tests.conftest import TRAINING_TEXT, make_tokenizer

PROSE = [
    TRAINING_TEXT,
    "Die Mühle am Fluß: 1234567 Körner.\n\n",
    "海が見える。雨が降る。",
    "x" * 50 + " ",
    "    deep\n\t\tindent\n",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        PROSE * 3, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def split_like_llama3() -> Tokenizer:
    tokenizer = byte_level()
    pattern = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    from tokenizers import Regex

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    return tokenizer


def sentencepiece_like() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>"], show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator([line for text in PROSE for line in text.split(" ")] * 3, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(PROSE * 3, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        PROSE * 3, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    )
    return tokenizer


def hostile_text(seed: int) -> str:
    rng = random.Random(seed)
    parts = [
        lambda: " ".join(
            rng.choice(["harbour", "boats", "12", "crate", "é", "海が", "4821", "it's", "x=", "\t"]) for _ in range(60)
        ),
        lambda: "\n" * rng.randint(1, 40),
        lambda: " " * rng.randint(1, 300),
        lambda: "a" * rng.randint(1, 700),
        lambda: str(rng.getrandbits(900)),
        lambda: "🙂🚢" * rng.randint(1, 40),
        lambda: "海が見える。" * rng.randint(1, 60),
        lambda: rng.choice(PROSE),
    ]
    return "".join(rng.choice(parts)() for _ in range(60))


@pytest.mark.parametrize("make", [byte_level, split_like_llama3, sentencepiece_like, unigram, word_piece])
def test_windows_give_the_ids_of_the_whole_text(make):
    tokenizer = TextTokenizer(make(), None, None)
    parts = 0
    for seed in range(12):
        text = hostile_text(seed)
        whole = tokenizer.encode_batch([text])[0]
        pieces = list(tokenizer.encode_long(text, window=1500, overlap=300))
        assert np.array_equal(np.concatenate(pieces), whole), f"seed {seed}"
        parts += len(pieces)
    assert parts > 24


def test_one_endless_word_is_encoded_in_one_go():
    tokenizer = TextTokenizer(byte_level(), None, None)
    text = "ab" * 4000
    whole = tokenizer.encode_batch([text])[0]
    assert np.array_equal(np.concatenate(list(tokenizer.encode_long(text, window=500, overlap=100))), whole)


def test_ids_equal_those_of_transformers(tmp_path):
    fast = make_tokenizer(tmp_path)
    save_tokenizer(fast, "auto", "auto", tmp_path / "work")
    ours = load_text_tokenizer(tmp_path / "work")
    for text in PROSE:
        assert ours.encode_batch([text])[0].tolist() == fast(text, add_special_tokens=False).input_ids


def test_names_of_special_tokens_in_a_text_stay_text(tmp_path):
    fast = make_tokenizer(tmp_path)
    save_tokenizer(fast, "auto", "auto", tmp_path / "work")
    ours = load_text_tokenizer(tmp_path / "work")
    ids = ours.encode_batch(["stop <|endoftext|> here"])[0]
    assert fast.convert_tokens_to_ids("<|endoftext|>") not in ids
    assert fast.decode(ids) == "stop <|endoftext|> here"


def test_end_token_is_the_base_models_and_can_be_named(tmp_path):
    fast = make_tokenizer(tmp_path)
    assert save_tokenizer(fast, "auto", "auto", tmp_path / "a")["end"] == "<|endoftext|>"
    assert save_tokenizer(fast, "auto", "<|im_end|>", tmp_path / "b")["end"] == "<|im_end|>"
    assert save_tokenizer(fast, "auto", "none", tmp_path / "c")["end"] is None
    with pytest.raises(LengthenError, match="no token '<stop>'"):
        save_tokenizer(fast, "auto", "<stop>", tmp_path / "d")


def test_a_tokenizer_without_an_end_token_is_an_error(tmp_path):
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    with pytest.raises(LengthenError, match="no end-of-text token"):
        save_tokenizer(fast, "auto", "auto", tmp_path)


def test_vocabulary_hash_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    fast = make_tokenizer(tmp_path / "one")
    again = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert vocabulary_sha256(fast) == vocabulary_sha256(again)
    assert vocabulary_sha256(make_tokenizer(tmp_path / "two", size=300)) != vocabulary_sha256(fast)
