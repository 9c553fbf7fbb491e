"""Counting tokens of prompts by their parts, and proving that the parts add up.

A prompt of 8K tokens takes 8 ms to tokenise, a prompt made of known parts takes none: most tokenizers first cut a text
at fixed places (spaces, line ends, digits) and never merge across a cut. Where that can be proved from the tokenizer's
own pre-tokenizer, lengths are sums of the parts' counts; everywhere else whole prompts are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FEW = 1 << 14  # characters for which waking the tokenizer's threads costs more than it gains
_SHORT = 512  # characters of the texts that are remembered: heads of prompts, labels, joints
_NEAR = 80  # characters on each side of a border that can matter to a pre-tokenizer's pattern


class Counter:
    """Token counts by one tokenizer.

    Args:
        tokenizer: a `tokenizers.Tokenizer` or a fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.backend: Tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._known: dict[Hashable, np.ndarray] = {}
        self._short: dict[str, int] = {}

    def counts_of(self, key: Hashable, texts: Callable[[], Sequence[str]]) -> np.ndarray:
        """`counts` of texts that many tasks need (word lists, pools), made once."""
        if key not in self._known:
            self._known[key] = self.counts(texts())
        return self._known[key]

    def count(self, text: str) -> int:
        """Tokens of a text as it stands: no special token is added, those written in it count one."""
        if len(text) > _SHORT:  # `fast`: without the places of the tokens in the text
            return len(self.backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        if text not in self._short:
            if len(self._short) > 1 << 14:
                self._short.clear()
            self._short[text] = len(self.backend.encode(text, add_special_tokens=False).ids)
        return self._short[text]

    def counts(self, texts: Sequence[str]) -> np.ndarray:
        """`count` of each text, int64; several processor cores where there are some."""
        if len(texts) == 0:
            return np.zeros(0, dtype=np.int64)
        if len(texts) < 32 and sum(map(len, texts)) < _FEW:
            return np.array([len(self.backend.encode(t, add_special_tokens=False).ids) for t in texts], dtype=np.int64)
        found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return np.array([len(e.ids) for e in found], dtype=np.int64)

    def border(self, left: str, right: str) -> bool:
        """True when the tokenizer provably cuts between two texts, so that count(left + right) is the sum.

        False also when it cannot be known: no pre-tokenizer, or a normalizer that changes the text.
        """
        pre = self.backend.pre_tokenizer
        if pre is None or not left or not right:
            return False
        a, b = left[-_NEAR:], right[:_NEAR]
        normalizer = self.backend.normalizer
        if normalizer is not None and normalizer.normalize_str(a + b) != a + b:
            return False
        return any(stop == len(a) for _, (_, stop) in pre.pre_tokenize_str(a + b))

    def borders(self, pairs: Iterable[tuple[str, str]]) -> bool:
        """True when `border` holds for all pairs."""
        return all(self.border(left, right) for left, right in pairs)


@dataclass(frozen=True)
class Frame:
    """What stands around a user message in the text that the model reads.

    before, after: the chat template's text around the message (empty without a template).
    added: tokens that the tokenizer itself puts in front (a begin-of-text token without a template).
    """

    before: str = ""
    after: str = ""
    added: int = 0

    def text(self, user: str, prefix: str) -> str:
        """The whole prompt; `prefix` is the beginning of the answer, given to the model."""
        return f"{self.before}{user}{self.after}{prefix}"
