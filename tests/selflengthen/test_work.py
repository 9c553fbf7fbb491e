"""Bytes as a bound of tokens."""

from hypothesis import given
from hypothesis import strategies as st

from lengthen.selflengthen.work import byte_count, tokens_are_bytes, user
from tests.conftest import make_tokenizer
from tests.selflengthen.parts import new_work


def test_a_byte_level_tokenizer_has_at_most_a_token_for_each_byte(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    assert tokens_are_bytes(tokenizer)

    @given(st.text(max_size=200))
    def holds(text):
        assert len(tokenizer.encode(text, add_special_tokens=False)) <= byte_count(text)

    holds()


def test_other_tokenizers_are_asked(tmp_path):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def fast(change) -> PreTrainedTokenizerFast:
        plain = Tokenizer(models.BPE())
        change(plain)
        return PreTrainedTokenizerFast(tokenizer_object=plain)

    def normalizing(plain):  # one sign of three bytes becomes eighteen letters
        plain.pre_tokenizer, plain.normalizer = pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFKC()

    def spaced(plain):
        plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)

    def by_words(plain):
        plain.pre_tokenizer = pre_tokenizers.Metaspace()

    def in_steps(plain):
        digits = pre_tokenizers.Digits(individual_digits=True)
        plain.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])

    assert not any(tokens_are_bytes(fast(change)) for change in (normalizing, spaced, by_words))
    assert tokens_are_bytes(fast(in_steps)) and not tokens_are_bytes(object())


def test_room_is_exact_wherever_it_could_matter(tmp_path):
    work = new_work(tmp_path, window=1000)
    work.bytes_bound = True  # the words that count here as tokens are fewer than bytes, too
    messages = user("five words are in here " * 20)
    exact = 1000 - 100 - work.template_tokens
    assert work.room(messages) == exact
    assert work.room(messages, enough=exact + 1) == exact and work.room(messages, enough=exact) == exact
    sure = 1000 - 460 - work.template_tokens
    assert work.room(messages, enough=sure) == sure and work.room(messages, enough=sure + 1) == exact
