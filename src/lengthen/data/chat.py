"""Conversations to tokens and loss masks, with any chat template: only what the assistant writes is trained.

The mask comes from the rendered text: the assistants' contents are replaced by marks, the template is rendered again,
and what stands where the marks stood is the answer. The stop token that follows an answer is trained, since the model
must learn to stop; line ends that a template puts behind it are not, since they are never generated.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lengthen.common.words import sentence_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Longest question, in characters: longer last paragraphs are read text that ends with one.
_QUESTION = 400
_MARK = "\u27e6lengthen-answer-{}\u27e7"


class ChatError(ValueError):
    """A conversation that cannot be used. `rule` names the reason in the counts."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(why)
        self.rule, self.why = rule, why


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; spans: [begin, end) of what is trained, in characters, each ending with a stop token."""

    text: str
    spans: tuple[tuple[int, int], ...]


class Encoded(NamedTuple):
    """A conversation as tokens: ids int32 (T,); mask uint8 (T,), 1 where token t is a target; starts uint8 (T,), 1
    where token t begins a unit (see `unit_starts`), the first token always."""

    ids: np.ndarray
    mask: np.ndarray
    starts: np.ndarray


class ChatEncoder:
    """Renders and tokenises conversations with a tokenizer's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.chat_template:
            raise ChatError("no_chat_template", "the tokenizer has no chat template")
        self.tokenizer = tokenizer
        added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        self._special = sorted({*added, *map(str, tokenizer.all_special_tokens)}, key=len, reverse=True)
        # Tokens such as a tab or "<think>" may be added without being special; a turn ends with a control token.
        self._stops = [t for t in self._special if tokenizer.convert_tokens_to_ids(t) in set(tokenizer.all_special_ids)
                       or t.startswith(("<|", "</s", "<end", "<eos", "<｜"))]  # fmt: skip

    def encode(self, messages: Sequence[dict[str, Any]]) -> Encoded:
        """Tokens, what is trained of them, and where units begin. Raises ChatError with the rule."""
        rendered = self.render(messages)
        places = unit_starts(messages, rendered)
        encoding = self.tokenizer.backend_tokenizer.encode(rendered.text, add_special_tokens=False)
        ids = np.array(encoding.ids, dtype=np.int32)
        begins = np.array([span[0] for span in encoding.offsets], dtype=np.int64)
        ends = np.array([span[1] for span in encoding.offsets], dtype=np.int64)
        mask = np.zeros(len(ids), dtype=np.uint8)
        for begin, end in rendered.spans:
            if ((begins < begin) & (ends > begin)).any():
                # A token reaches from the header into the answer. In use the two are tokenised apart, as prompt and
                # output, so they are here.
                return self._encode_apart(rendered, places)
            mask[(begins >= begin) & (begins < end) & (ends <= end)] = 1
        return Encoded(ids, mask, _tokens_at(places, ends))

    def _encode_apart(self, rendered: Rendered, places: Sequence[int]) -> Encoded:
        ids: list[int] = []
        mask: list[int] = []
        ends: list[int] = []
        edges = [0, *(edge for span in rendered.spans for edge in span), len(rendered.text)]
        for number, (begin, end) in enumerate(itertools.pairwise(edges)):
            part = self.tokenizer.backend_tokenizer.encode(rendered.text[begin:end], add_special_tokens=False)
            ids += part.ids
            mask += [number % 2] * len(part.ids)
            ends += [begin + span[1] for span in part.offsets]
        starts = _tokens_at(places, np.array(ends, dtype=np.int64))
        return Encoded(np.array(ids, dtype=np.int32), np.array(mask, dtype=np.uint8), starts)

    def render(self, messages: Sequence[dict[str, Any]]) -> Rendered:
        """The whole conversation as the template writes it, and where its answers are."""
        check_messages(messages)
        for message in messages:
            bad = next((t for t in self._stops if t in str(message.get("content") or "")), None)
            if bad is not None:
                raise ChatError("special_token_in_text", f"a message contains the special token {bad}")
        text = self._template(messages)
        found = self._spans_by_marks(messages, text) or self._spans_by_prefix(messages, text)
        if found is None:
            raise ChatError("template_not_followed", "the answers cannot be found in the text that the template wrote")
        return Rendered(text, tuple((begin, self._with_stop(text, end)) for begin, end in found))

    def _spans_by_marks(self, messages: Sequence[dict[str, Any]], text: str) -> list[tuple[int, int]] | None:
        marked, answers = [], []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                marked.append({**message, "content": _MARK.format(number)})
                answers.append((_MARK.format(number), str(message["content"])))
            else:
                marked.append(message)
        rest = self._template(marked)
        spans, place = [], 0
        for mark, answer in answers:
            before, found, rest = rest.partition(mark)
            if not found or text[place : place + len(before)] != before:
                return None
            place += len(before)
            # Templates write contents as they are or stripped.
            form = next((a for a in (answer, answer.strip(), answer.rstrip(), answer.lstrip())
                         if text.startswith(a, place) and self._goes_on(text, place + len(a), rest)), None)  # fmt: skip
            if form is None:
                return None
            spans.append((place, place + len(form)))
            place += len(form)
        return spans if text[place:] == rest else None

    @staticmethod
    def _goes_on(text: str, place: int, rest: str) -> bool:
        head = rest.split("\u27e6", 1)[0]
        return text.startswith(head, place) if head else True

    def _spans_by_prefix(self, messages: Sequence[dict[str, Any]], text: str) -> list[tuple[int, int]] | None:
        """For templates that look into contents: what the template writes up to the answer, with its header, ends
        where the answer begins; the answer ends before the first stop token behind it."""
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._template(messages[:number], add_generation_prompt=True)
            if not text.startswith(before):
                return None
            stops = [at for token in self._stops if (at := text.find(token, len(before))) >= 0]
            spans.append((len(before), min(stops) if stops else len(text)))
        return spans

    def _with_stop(self, text: str, end: int) -> int:
        """`end` moved behind the stop token that follows (perhaps after white space)."""
        at = end
        while at < len(text) and text[at].isspace():
            at += 1
        stop = next((token for token in self._stops if text.startswith(token, at)), None)
        if stop is None:
            raise ChatError("no_stop_token", "the chat template writes no special token after an answer")
        return at + len(stop)

    def _template(self, messages: Sequence[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:
            # Templates raise jinja errors of their own wording: roles out of order, unknown roles, missing fields.
            raise ChatError("template_refused", f"the chat template refuses it ({error})") from error
        return str(text)


def unit_starts(messages: Sequence[dict[str, Any]], rendered: Rendered) -> list[int]:
    """Where skipped positions may leave gaps in a conversation: offsets in its text, ascending, the first 0.

    What is read is cut into sentences, as LongRecipe does (arXiv 2409.00509); a line ends one too. An answer stays in
    one unit with what stands right before it: the last paragraph of that message, or its last sentence where the
    paragraph is longer than `_QUESTION` characters. That is the question, unless it was asked before the text; a gap
    there would train answers far from the question that stands beside them in use.
    """
    text, starts, place = rendered.text, [0], 0
    spans = iter(rendered.spans)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            place = next(spans)[1]
            continue
        content = str(message["content"]).strip()
        begin = text.find(content, place)
        if begin < 0 or not content:
            continue  # The template wrote it in another form: it stays whole.
        asked = number + 1 < len(messages) and messages[number + 1]["role"] == "assistant"
        last = _question(content) if asked else len(content)
        cuts = [at for at in _spoken(content[:last]) if at] + ([last] if 0 < last < len(content) else [])
        starts += [begin + at for at in cuts]
        place = begin + len(content)
    return starts


def _question(content: str) -> int:
    """Where the question at the end of a message begins."""
    paragraph = content.rfind("\n\n") + 2 if "\n\n" in content else 0
    if len(content) - paragraph <= _QUESTION:
        return paragraph
    return paragraph + max(_spoken(content[paragraph:]), default=0)


def _spoken(text: str) -> list[int]:
    """Begins of the sentences that hold a letter or a digit."""
    return [a for a, b in sentence_spans(text) if any(c.isalnum() for c in text[a:b])]


def _tokens_at(places: Sequence[int], ends: np.ndarray) -> np.ndarray:
    """uint8 (T,): 1 for the token that holds each place's character (a word's token often begins with the blank)."""
    starts = np.zeros(len(ends), dtype=np.uint8)
    at = np.searchsorted(ends, np.array(places, dtype=np.int64), side="right")
    starts[at[at < len(ends)]] = 1
    starts[:1] = 1
    return starts


def check_messages(messages: Any) -> None:
    """Raise ChatError unless messages are a list of {role, content} with an answer in it."""
    if not isinstance(messages, list | tuple) or not messages:
        raise ChatError("no_messages", "it has no messages")
    for message in messages:
        if not isinstance(message, dict) or "role" not in message or not isinstance(message.get("content"), str):
            raise ChatError("bad_message", "a message is no object with a role and a text content")
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        raise ChatError("no_answer", "no assistant turn says anything")
