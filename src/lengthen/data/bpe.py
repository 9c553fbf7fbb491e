"""A faster way to the same ids: byte-level BPE tokenizers through tiktoken, several times as fast as `tokenizers`.

tiktoken knows no merges: it joins the two neighbours whose joined bytes have the lowest rank, and takes a piece that is
in the vocabulary as it stands. That is the same as applying merges in order when (1) every token of several bytes has
exactly one merge, and ids rise with the merges; (2) the merges take every token's own bytes back to that token. (Inside
borders that no merge crosses, merging goes on as it would alone; so two neighbours that spell a token are, by (2), the
pair of its merge.) `fast_pattern` checks both, and tokenizers that break them take the plain way: among them those
converted from tiktoken with all splits of each token as merges, as Llama 3's.

What the two libraries could see differently is kept out text by text (`ByteBpe.takes`): characters whose class differs
between versions of Unicode, bytes that are no token, runs that are too long for a backtracking pattern.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_RUN = 5000
_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# Digits stand alone, so what is before them ends there: all its white space is one piece.
_GPT2_DIGITS = r"""\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"""
# Blocks whose letters, numbers and white space have not changed since Unicode 7, or that hold none of them: Latin,
# Greek, Cyrillic, punctuation to dingbats, Japanese, Chinese, Korean, wide forms, emoji.
_OTHER = re.compile(
    "[^\u0000-\u02ff\u0370-\u052f\u2000-\u218b\u2190-\u245f\u2500-\u2bff\u3000-\u3029\u3030-\u3096\u3099-\u30ff"
    "\u4e00-\u9fa5\uac00-\ud7a3\ufe30-\ufe4f\uff01-\uffdc\U0001f300-\U0001faff]"
)


@lru_cache(maxsize=1)
def byte_of_character() -> dict[str, int]:
    """GPT-2's printable characters for bytes, from character to byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


def fast_pattern(tokenizer: Tokenizer) -> str | None:
    """The pattern that cuts texts into pieces when this tokenizer can go the fast way, else None."""
    spec = json.loads(tokenizer.to_str())
    pattern = _pattern(spec)
    return pattern if pattern is not None and _plain_merges(spec) else None


def _pattern(spec: dict[str, Any]) -> str | None:
    model, before = spec["model"], spec["pre_tokenizer"] or {}
    other = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model.get("type") != "BPE" or spec["normalizer"] or any(model.get(name) for name in other):
        return None
    steps = before.get("pretokenizers", []) if before.get("type") == "Sequence" else [before]
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") or len(steps) > 2:
        return None
    if len(steps) == 1:
        return _GPT2 if last.get("use_regex", True) else None
    first = steps[0]
    if first.get("type") == "Digits" and first.get("individual_digits") and last.get("use_regex", True):
        return _GPT2_DIGITS
    if first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert"):
        return None if last.get("use_regex", True) else first["pattern"].get("Regex")
    return None


def _plain_merges(spec: dict[str, Any]) -> bool:
    """Do the merges and the ids say the same?"""
    from tokenizers import Tokenizer

    model, names = spec["model"], byte_of_character()
    vocabulary: dict[str, int] = model["vocab"]
    merges = [tuple(one.split(" ")) if isinstance(one, str) else tuple(one) for one in model["merges"]]
    joined = [left + right for left, right in merges]
    ids = [vocabulary.get(token, -1) for token in joined]
    added = {token["content"] for token in spec["added_tokens"]}
    long = {token for token in vocabulary if len(token) > 1 and token not in added}
    rising = all(one < other for one, other in zip([-1, *ids], ids))
    if not rising or long != set(joined) or not all(letter in names for token in joined for letter in token):
        return False
    # Without this setting a word is looked up as a whole first, which would hide what the merges make of it.
    bare = Tokenizer.from_str(json.dumps({**spec, "model": {**model, "ignore_merges": False}})).model
    whole = all(len(bare.tokenize(token)) == 1 for token in joined)
    # Looked up as a whole, a special token's name could become that token.
    one_piece = (re.fullmatch(r"\w+|[^\w\s]+", token) for token in added if token in vocabulary)
    return whole and not (model.get("ignore_merges") and any(one_piece))


class ByteBpe:
    """tiktoken with a tokenizer's vocabulary. Made only for tokenizers of which `fast_pattern` gave the pattern."""

    def __init__(self, tokenizer: Tokenizer, pattern: str) -> None:
        import tiktoken

        spec, names = json.loads(tokenizer.to_str()), byte_of_character()
        added = {token["content"] for token in spec["added_tokens"]}
        ranks = {
            bytes(names[letter] for letter in token): id
            for token, id in spec["model"]["vocab"].items()
            if token not in added
        }
        self._coder = tiktoken.Encoding("lengthen", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._missing = bytes(byte for byte in range(256) if bytes([byte]) not in ranks)
        # Special tokens' names are text here; other added tokens ("<think>") are tokens wherever they stand.
        plain = [re.escape(token["content"]) for token in spec["added_tokens"] if not token["special"]]
        self._added = re.compile("|".join(plain)) if plain else None

    def takes(self, text: str) -> bool:
        """Whether the ids are sure to be those of the plain way."""
        if not text.isascii() and _OTHER.search(text):
            return False
        if self._added is not None and self._added.search(text):
            return False
        data = text.encode()
        if len(data.translate(None, self._missing)) != len(data):
            return False
        return len(text) < 2 * _RUN or not any(
            map(_one_run, (text[at : at + _RUN] for at in range(0, len(text), _RUN)))
        )

    def encode(self, text: str) -> np.ndarray:
        """Ids (int32, 1-D) of a text that it takes."""
        return self._coder.encode_to_numpy(text, disallowed_special=()).view(np.int32)


_SPACE = re.compile(r"\s")


def _one_run(stretch: str) -> bool:
    """White space only, or none: patterns backtrack over such runs, and merging is slow in them."""
    return len(stretch) == _RUN and (stretch.isspace() or _SPACE.search(stretch) is None)
