"""The text around a question, for the tested model: chat template, begin token, and counting."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from lengthen.common.errors import LengthenError
from lengthen.evaluate.counting import Counter, Frame
from lengthen.generate.engine import Request
from lengthen.generate.prompt import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from lengthen.evaluate.samples import Sample

_MARK = "\u2042lengthen\u2042"


class Prompts:
    """Turns samples into requests and counts them.

    Args:
        template: on (chat template), off (plain text after the tokenizer's begin token, if it adds one), raw.
        options: variables of the chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: Literal["on", "off", "raw"] = "on",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if template == "on" and tokenizer.chat_template is None:
            raise LengthenError(
                "The model has no chat template, and `template` is on.",
                why="base models often have none; their scores then come from plain prompts",
                fix="set `template: off` (begin token, then the prompt), or `raw` (the prompt alone)",
            )
        self.tokenizer, self.template, self.options = tokenizer, template, dict(options or {})
        self.counter = Counter(tokenizer)

    @cached_property
    def begin(self) -> str:
        """Text of the tokens that the tokenizer puts in front of a plain text."""
        if self.template != "off":
            return ""
        ids = self.tokenizer("a")["input_ids"]
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        count = ids.index(plain[0]) if plain and plain[0] in ids else 0  # type: ignore[union-attr]
        return self.tokenizer.decode(ids[:count]) if count else ""  # type: ignore[index]

    @cached_property
    def frame(self) -> Frame:
        """What stands before and after the user message."""
        if self.template != "on":
            return Frame(before=self.begin)
        whole = render(self.tokenizer, self._chat("", _MARK), self.options)
        before, mark, after = whole.partition(_MARK)
        if not mark:
            raise LengthenError("The chat template leaves the user's message out.", fix="set `template: off`")
        return Frame(before, after)

    @cached_property
    def identity(self) -> tuple[str, str]:
        """Hashes of the tokenizer and of the frame: what a sample's length depends on."""
        backend = self.tokenizer.backend_tokenizer.to_str()
        frame = f"{self.frame.before}\0{self.frame.after}"
        return hashlib.sha256(backend.encode()).hexdigest(), hashlib.sha256(frame.encode()).hexdigest()

    def count(self, user: str, prefix: str = "") -> int:
        """Tokens of the whole prompt, template and prefix included."""
        return self.counter.count(self.frame.text(user, prefix))

    def request(self, sample: Sample) -> Request:
        """The request that asks a sample, greedily."""
        if self.template == "on":
            request = self._chat(sample.id, sample.user)
            messages, text = request.messages, None
        else:
            messages, text = None, self.begin + sample.user
        return Request(
            sample.id,
            messages=messages,
            text=text,
            prefix=sample.prefix,
            max_new_tokens=sample.new_tokens,
            share=sample.share,
            stop=tuple(sample.meta.get("stop", ())),
        )

    def _chat(self, name: str, user: str) -> Request:
        return Request(name, messages=({"role": "user", "content": user},))
