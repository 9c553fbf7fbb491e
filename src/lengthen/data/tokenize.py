"""Texts to token ids: whole documents in batches, books of any size in windows, with the same ids either way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, write_atomic, write_json
from lengthen.data.bpe import ByteBpe, fast_pattern

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

WINDOW = 2**19  # characters encoded at once; an encoding takes about 200 bytes a token while it lives
_OVERLAP = 4096
_AGREE = 24  # tokens on each side of a seam that two windows must agree on
_FAST = "fast.json"
_END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>")


@dataclass(frozen=True)
class TextTokenizer:
    """A tokenizer for plain documents, cheap to send to other processes (they load it from its folder).

    backend: the model's tokenizer without truncation, padding or special tokens. Names of special tokens inside a text
        are encoded as ordinary text: a document must not be able to end itself.
    begin, end: ids put before and after each document, or None.
    fast: a faster way to the same ids, for the texts that it takes.
    """

    backend: Tokenizer
    begin: int | None
    end: int | None
    fast: ByteBpe | None = None

    @property
    def extra(self) -> int:
        """Tokens added to each document."""
        return (self.begin is not None) + (self.end is not None)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids (int32, 1-D) of each text, without begin and end."""
        fast = self.fast
        found = [fast.encode(text) if fast is not None and fast.takes(text) else None for text in texts]
        left = [text for text, ids in zip(texts, found) if ids is None]
        # Offsets are not asked for: they cost a third more time.
        slow = iter(self.backend.encode_batch_fast(left, add_special_tokens=False) if left else ())
        return [np.array(next(slow).ids, dtype=np.int32) if ids is None else ids for ids in found]

    def encode_long(self, text: str, window: int = WINDOW, overlap: int = _OVERLAP) -> Iterator[np.ndarray]:
        """Ids of one text in pieces, memory bounded by the window; their concatenation equals `encode_batch([text])`.

        Windows overlap. Two neighbours are joined at a place in the overlap where both begin a token and agree on
        24 tokens to each side; where they do not agree (one endless "word"), the windows grow until they do. The fast
        way needs no windows: beside the text it holds four bytes a token.
        """
        if len(text) <= window or (self.fast is not None and self.fast.takes(text)):
            yield self.encode_batch([text])[0]
            return
        begin, first = 0, 0  # where the current window begins, and its first token that is not out yet
        size, current = window, self._encode(text[:window])
        while begin + size < len(text):
            seam = self._next_window(text, begin, size, current, window, overlap)
            if seam is None:
                size *= 2
                current = self._encode(text[begin : begin + size])
                continue
            last, new_begin, following, new_first = seam
            if last > first:
                yield np.array(current.ids[first:last], dtype=np.int32)
            begin, size, current, first = new_begin, window, following, new_first
        yield np.array(current.ids[first:], dtype=np.int32)

    def _next_window(
        self, text: str, begin: int, size: int, current: Encoding, window: int, overlap: int
    ) -> tuple[int, int, Encoding, int] | None:
        stop = begin + size
        while overlap <= min(size, window) // 2:
            new_begin = stop - overlap
            following = self._encode(text[new_begin : new_begin + window])
            seam = _seam(text, current, begin, following, new_begin, stop)
            if seam is not None:
                return seam[0], new_begin, following, seam[1]
            overlap *= 4
        return None

    def _encode(self, text: str) -> Encoding:
        return self.backend.encode(text, add_special_tokens=False)


def _seam(text: str, left: Encoding, left_at: int, right: Encoding, right_at: int, stop: int) -> tuple[int, int] | None:
    """(token of left, token of right) that both begin at one character near the overlap's middle and agree around.

    Only places where the kind of character changes are taken. Inside a run of one kind, equal tokens prove nothing:
    many tokenizers group digits by three from the run's beginning, which a window may not have seen.
    """
    left_ids, right_ids = left.ids, right.ids
    middle, reach = (right_at + stop) // 2, (stop - right_at) // 4
    for step in range(reach):
        place = middle + (step if step % 2 else -step) // 2
        if category(text[place - 1])[0] == category(text[place])[0]:
            continue
        a, b = left.char_to_token(place - left_at), right.char_to_token(place - right_at)
        if a is None or b is None or a < _AGREE or b < _AGREE:
            continue
        if not (_begins(left, a, place - left_at) and _begins(right, b, place - right_at)):
            continue
        around = left_ids[a - _AGREE : a + _AGREE]
        if len(around) == 2 * _AGREE and around == right_ids[b - _AGREE : b + _AGREE]:
            return a, b
    return None


def _begins(encoding: Encoding, token: int, place: int) -> bool:
    here, before = encoding.token_to_chars(token), encoding.token_to_chars(token - 1)
    return here is not None and before is not None and here[0] == place and before[1] <= place


def vocabulary_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 over the vocabulary with its added tokens. It survives saving and loading, which rewrite the files."""
    pairs = sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, begin: str, end: str, folder: Path) -> dict[str, Any]:
    """Write what tasks need to tokenise (`load_tokenizer_parts`), and return what was chosen.

    Args:
        begin, end: `auto`, `none` or a token, as in the stage's settings.

    Raises:
        LengthenError: a token that the vocabulary does not have, or no end token at all.
    """
    write_atomic(folder / "tokenizer.json", tokenizer.backend_tokenizer.to_str())
    # Checked once for all tasks.
    write_json(folder / _FAST, {"pattern": fast_pattern(tokenizer.backend_tokenizer)})
    chosen = {
        "begin": _begin_token(tokenizer, begin),
        "end": _end_token(tokenizer, end),
        "sha256": vocabulary_sha256(tokenizer),
    }
    write_json(folder / "tokens.json", chosen)
    return chosen


def load_text_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer that `save_tokenizer` wrote."""
    from tokenizers import Tokenizer

    chosen = read_json(folder / "tokens.json")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    ids = {key: backend.token_to_id(chosen[key]) if chosen[key] else None for key in ("begin", "end")}
    # A tokenizer that was saved before there was a fast way has no such file.
    pattern = read_json(folder / _FAST)["pattern"] if (folder / _FAST).exists() else None
    return TextTokenizer(backend, ids["begin"], ids["end"], ByteBpe(backend, pattern) if pattern else None)


def _begin_token(tokenizer: PreTrainedTokenizerFast, setting: str) -> str | None:
    if setting == "none":
        return None
    if setting != "auto":
        return _known(tokenizer, setting, "begin_token")
    bos = tokenizer.bos_token_id
    adds = bos is not None and list(tokenizer("a").input_ids)[:1] == [bos]
    return str(tokenizer.bos_token) if adds else None


def _end_token(tokenizer: PreTrainedTokenizerFast, setting: str) -> str | None:
    if setting == "none":
        return None
    if setting != "auto":
        return _known(tokenizer, setting, "end_token")
    vocabulary = tokenizer.get_vocab()
    # A chat model's own end token ends turns; texts end with the token that its base model was trained on.
    special = set(tokenizer.all_special_tokens) | {str(token) for token in tokenizer.added_tokens_decoder.values()}
    for name in (*_END_NAMES, tokenizer.eos_token):
        if name and name in vocabulary and (name in special or name == tokenizer.eos_token):
            return str(name)
    raise LengthenError(
        "The tokenizer has no end-of-text token, so documents in a row would run into each other.",
        fix="name one with `end_token: TOKEN`, or set `end_token: none` if that is what you want",
    )


def _known(tokenizer: PreTrainedTokenizerFast, token: str, key: str) -> str:
    if token not in tokenizer.get_vocab():
        raise LengthenError(
            f"{key}: the tokenizer has no token '{token}'.",
            fix=f"use auto, none, or one of {', '.join(map(str, tokenizer.all_special_tokens))}",
        )
    return token
