"""How many tokens a conversation takes with the target model's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lengthen.common.errors import LengthenError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Message = dict[str, str]


class Counter:
    """Counts exactly what training will see: the conversation rendered by the tokenizer's chat template.

    Args:
        tokenizer: a fast tokenizer with a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if not tokenizer.chat_template:
            raise LengthenError(
                "The model's tokenizer has no chat template, so the length of a conversation is unknown.",
                fix="use an instruction-tuned model, or set tokenizer.chat_template and save the tokenizer",
            )
        self.tokenizer = tokenizer
        self.backend = tokenizer.backend_tokenizer

    @classmethod
    def of_model(cls, model: str) -> Counter:
        from lengthen.models import load_tokenizer

        counter = cls(load_tokenizer(model))
        # Encodings must not be cut or padded by what tokenizer.json carries.
        counter.backend.no_truncation()
        counter.backend.no_padding()
        return counter

    def text(self, text: str) -> int:
        """Tokens of a plain text."""
        return len(self.backend.encode_batch_fast([text], add_special_tokens=False)[0])

    def each(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text by itself."""
        return [len(encoding) for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def conversation(self, messages: Sequence[Message]) -> int:
        """Tokens of a whole conversation with its template."""
        rendered = self.tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False)
        assert isinstance(rendered, str)
        return self.text(rendered)
