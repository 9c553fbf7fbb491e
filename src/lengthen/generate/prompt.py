"""From a request to the text and the tokens that the model reads. Every back-end uses these two functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lengthen.common.errors import LengthenError
from lengthen.generate.engine import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def render(tokenizer: PreTrainedTokenizerFast, request: Request, options: Mapping[str, Any] | None = None) -> str:
    """The prompt as text: chat template, then the answer's prefix.

    Args:
        options: variables of the chat template, such as `{"enable_thinking": False}`.

    Raises:
        LengthenError: a chat for a model without chat template.
    """
    if request.text is not None:
        return request.text + request.prefix
    if tokenizer.chat_template is None:
        raise LengthenError(
            "The model has no chat template, so a chat cannot be put to it.",
            why="tokenizer_config.json and chat_template.jinja name none; base models often have none",
            fix="ask without one (`template: off`), or give the tokenizer a chat template",
        )
    chat = [{"role": message["role"], "content": message["content"]} for message in request.messages or ()]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **dict(options or {}))
    return str(rendered) + request.prefix


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Tokens of a rendered prompt: nothing is added, since the template wrote its special tokens itself."""
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
