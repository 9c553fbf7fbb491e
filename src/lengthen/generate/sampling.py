"""Choosing the next token, and knowing where a text ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lengthen.generate.engine import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Chooser:
    """Draws one request's tokens. Each request has a generator of its own, so its draws do not depend on the batch."""

    def __init__(self, request: Request, prompt: Sequence[int]) -> None:
        self.request = request
        self.generator = None
        if request.temperature > 0:
            self.generator = torch.Generator("cpu").manual_seed(request.seed & (2**63 - 1))
        self.seen: torch.Tensor | None = None
        if request.repetition_penalty != 1.0:
            self.seen = torch.tensor(sorted(set(prompt)), dtype=torch.long)

    def choose(self, logits_V: torch.Tensor) -> int:
        """The next token from the last position's logits.

        Order as in transformers: repetition penalty (arXiv 1909.05858, section 4.1), temperature, top-k, top-p
        (arXiv 1904.09751).
        """
        request = self.request
        if self.seen is not None:
            logits_V = logits_V.float().cpu().clone()
            seen = logits_V[self.seen]
            penalty = request.repetition_penalty
            logits_V[self.seen] = torch.where(seen > 0, seen / penalty, seen * penalty)
        if self.generator is None:
            token = int(logits_V.argmax())
        else:
            token = self._draw(logits_V.float().cpu() / request.temperature)
        if self.seen is not None and not bool((self.seen == token).any()):
            self.seen = torch.cat([self.seen, torch.tensor([token])])
        return token

    def _draw(self, logits_V: torch.Tensor) -> int:
        request = self.request
        if 0 < request.top_k < logits_V.numel():
            least = torch.topk(logits_V, request.top_k).values[-1]
            logits_V = logits_V.masked_fill(logits_V < least, float("-inf"))
        probabilities_V = torch.softmax(logits_V, -1)
        if request.top_p < 1.0:
            ordered, where = torch.sort(probabilities_V, descending=True)
            # A token stays while the mass before it is below top_p, so the first one always stays.
            dropped = where[(torch.cumsum(ordered, -1) - ordered) >= request.top_p]
            probabilities_V = probabilities_V.index_fill(0, dropped, 0.0)
        return int(torch.multinomial(probabilities_V, 1, generator=self.generator))


class Writer:
    """The text so far of one request: appends tokens, sees stop strings as soon as they are complete.

    Decoding the whole answer at each token would cost the square of its length; only the tokens since the last clean
    border are decoded again (a character may need several tokens).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(s for s in stop if s)
        self.tokens: list[int] = []
        self._text, self._fixed, self._context = "", 0, 0

    def add(self, token: int) -> bool:
        """Take a token; True when a stop string is now in the text."""
        self.tokens.append(token)
        if not self.stop:
            return False
        before = self._decode(self.tokens[self._context : self._fixed])
        now = self._decode(self.tokens[self._context :])
        if now.endswith("\ufffd") or len(now) < len(before):
            return False
        searched_from = max(0, len(self._text) - max(map(len, self.stop)))
        self._text += now[len(before) :]
        # The last tokens are kept as context: some decoders drop a leading space at the start of a text.
        self._context, self._fixed = max(0, len(self.tokens) - 4), len(self.tokens)
        return any(self._text.find(s, searched_from) >= 0 for s in self.stop)

    def text(self) -> str:
        """The answer, cut before the first stop string."""
        whole = self._decode(self.tokens)
        ends = [at for s in self.stop if (at := whole.find(s)) >= 0]
        return whole[: min(ends)] if ends else whole

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.backend_tokenizer.decode(list(tokens), skip_special_tokens=True) if tokens else ""
