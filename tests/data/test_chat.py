"""Loss masks for any chat template: exactly the answers and their stop tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.data.chat import ChatEncoder, ChatError
from tests.conftest import CHAT_TEMPLATE, make_tokenizer

STRIPPING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A reasoning model's: thoughts of earlier turns are taken out, so a conversation's beginning is no prefix of its text.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in m['content'] %}"
    "{{ m['content'].split('</think>')[-1].strip() }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM_FIRST = (
    "{{ '<|endoftext|>' }}{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + CHAT_TEMPLATE
)
NO_STOP = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('first the user') }}{% endif %}" + CHAT_TEMPLATE


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("chat"))


def encoder(tokenizer, template: str) -> ChatEncoder:
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return ChatEncoder(other)


def talk(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(contents)]


def trained(encoder: ChatEncoder, messages) -> tuple[str, str]:
    ids, mask, starts = encoder.encode(messages)
    assert len(ids) == len(mask) == len(starts) and ids.dtype == np.int32
    # An answer is one unit with its question: no unit begins at a trained token.
    assert starts[0] == 1 and not (starts & mask)[1:].any()
    return encoder.tokenizer.decode(ids), encoder.tokenizer.decode(ids[mask.astype(bool)])


TEXT = st.text(st.characters(blacklist_categories=["Cs"], max_codepoint=0x2FFF), min_size=1, max_size=30)


@given(st.lists(TEXT, min_size=2, max_size=6), st.sampled_from([CHAT_TEMPLATE, SYSTEM_FIRST]))
def test_only_answers_and_their_stops_are_trained(tokenizer, contents, template):
    contents = contents[: len(contents) // 2 * 2]
    if not any(text.strip() for text in contents[1::2]):
        return
    messages = talk(*contents)
    chat = encoder(tokenizer, template)
    whole, answers = trained(chat, messages)
    assert whole == chat.tokenizer.apply_chat_template(messages, tokenize=False)
    assert answers == "".join(text + "<|im_end|>" for text in contents[1::2])


def test_contents_that_the_template_strips(tokenizer):
    chat = encoder(tokenizer, STRIPPING)
    assert trained(chat, talk(" a? ", "  yes \n", "b?", "no"))[1] == "yes<|im_end|>no<|im_end|>"


def test_an_answer_that_repeats_the_question_or_the_header(tokenizer):
    chat = encoder(tokenizer, CHAT_TEMPLATE)
    assert trained(chat, talk("yes", "yes", "yes", "assistant\nyes"))[1] == "yes<|im_end|>assistant\nyes<|im_end|>"


def test_a_template_that_looks_into_contents(tokenizer):
    chat = encoder(tokenizer, THINKING)
    last = trained(chat, talk("a?", "<think>so</think>yes"))[1]
    assert last == "<think>so</think>yes<|im_end|>"
    first = trained(chat, talk("a?", "<think>so</think> yes", "b?", "no"))[1]
    assert first == "yes<|im_end|>no<|im_end|>"


def test_a_system_turn_of_the_templates_own(tokenizer):
    chat = encoder(tokenizer, SYSTEM_FIRST)
    whole, answers = trained(chat, talk("a?", "yes"))
    assert "Be kind." in whole and answers == "yes<|im_end|>"


@pytest.mark.parametrize(
    ("template", "messages", "rule"),
    [
        (NO_STOP, talk("a?", "yes"), "no_stop_token"),
        (STRICT, [{"role": "assistant", "content": "hello"}], "template_refused"),
        (CHAT_TEMPLATE, [], "no_messages"),
        (CHAT_TEMPLATE, [{"role": "user"}], "bad_message"),
        (CHAT_TEMPLATE, [{"role": "user", "content": "a"}], "no_answer"),
        (CHAT_TEMPLATE, talk("a?", "yes <|im_end|> and more"), "special_token_in_text"),
    ],
)
def test_conversations_that_cannot_be_used_name_their_rule(tokenizer, template, messages, rule):
    with pytest.raises(ChatError) as caught:
        encoder(tokenizer, template).encode(messages)
    assert caught.value.rule == rule


def test_a_token_across_header_and_answer_is_split_as_in_use(tmp_path):
    """A tokenizer that merges the header's last sign with the answer's first: prompt and output are encoded apart."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    letters = [*"abcdefghijklmnopqrstuvwxyz: "]
    vocabulary = {token: number for number, token in enumerate(["<|im_end|>", *letters, ":y"])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "y")]))
    raw.decoder = decoders.Fuse()
    raw.add_special_tokens(["<|im_end|>"])
    template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<|im_end|>{% endfor %}"
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", chat_template=template)
    chat = ChatEncoder(fast)
    ids, mask, starts = chat.encode(talk("a", "yes"))
    assert starts.tolist() == [1] + [0] * (len(ids) - 1)
    assert fast.convert_ids_to_tokens(ids[mask.astype(bool)].tolist()) == ["y", "e", "s", "<|im_end|>"]
    assert "".join(fast.convert_ids_to_tokens(ids.tolist())) == "user:a<|im_end|>assistant:yes<|im_end|>"


def units(chat: ChatEncoder, messages) -> list[str]:
    ids, _, starts = chat.encode(messages)
    return [chat.tokenizer.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(starts)[1:])]


def test_what_is_read_is_cut_into_sentences_and_answers_stay_with_their_questions(tokenizer):
    chat = encoder(tokenizer, SYSTEM_FIRST)
    text = "He came. She left!\nName,colour\n\n***\nfern,red\n\nWhat is the colour of fern? Say it."
    assert units(chat, talk(text, "Red. It is red.", "Who came?", "He.")) == [
        "<|endoftext|><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHe came.",
        " She left!\n",
        "Name,colour\n\n***\n",
        "fern,red\n\n",
        "What is the colour of fern? Say it.<|im_end|>\n<|im_start|>assistant\nRed. It is red.<|im_end|>\n"
        "<|im_start|>user\nWho came?<|im_end|>\n<|im_start|>assistant\nHe.<|im_end|>\n",
    ]


def test_a_long_last_paragraph_keeps_only_its_last_sentence_with_the_answer(tokenizer):
    chat = encoder(tokenizer, CHAT_TEMPLATE)
    found = units(chat, talk("It rained all day. " * 40 + "Did it rain?", "Yes."))
    assert len(found) == 41 and found[-1].strip() == "Did it rain?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"


def test_the_question_before_the_text_leaves_the_last_paragraph_with_the_answer(tokenizer):
    chat = encoder(tokenizer, CHAT_TEMPLATE)
    found = units(chat, talk("Who came?\n\nOne day he came. It was late.\n\nThe end.", "He."))
    assert [part.strip() for part in found] == [
        "<|im_start|>user\nWho came?", "One day he came.", "It was late.",
        "The end.<|im_end|>\n<|im_start|>assistant\nHe.<|im_end|>",
    ]  # fmt: skip


def test_a_text_that_a_system_turn_brings_is_cut_too(tokenizer):
    chat = encoder(tokenizer, CHAT_TEMPLATE)
    messages = [{"role": "system", "content": "He came. She left."}, *talk("Who came?", "He.")]
    assert [part.count("<|im_start|>") for part in units(chat, messages)] == [1, 2]
