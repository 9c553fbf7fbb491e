"""Text from models: one protocol, an in-process engine and any OpenAI-compatible endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lengthen.generate.engine import Answer, Engine, FinishReason, Message, Request

if TYPE_CHECKING:
    from lengthen.generate.wire import EndpointOptions

__all__ = ["Answer", "Engine", "FinishReason", "Message", "Request", "is_endpoint", "open_engine"]


def is_endpoint(model: str) -> bool:
    """True for `http://host:port/v1#model-name`."""
    return model.startswith(("http://", "https://"))


def open_engine(
    model: str,
    *,
    dtype: str = "auto",
    batch_size: int | None = None,
    rope: dict[str, Any] | None = None,
    window: int | None = None,
    tokenizer: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    endpoint: EndpointOptions | None = None,
) -> Engine:
    """An engine for a model by name.

    Args:
        model: a folder, a Hub name or `default` for the in-process engine; `http://host:port/v1#model-name` for an
            OpenAI-compatible endpoint.
        dtype, batch_size, rope, window: of the in-process engine only.
        tokenizer: folder or name of the endpoint model's tokenizer, for counting and for `/v1/completions`.
        endpoint: how to speak to an endpoint.
    """
    if is_endpoint(model):
        from lengthen.generate.endpoint import EndpointEngine

        address, _, name = model.partition("#")
        return EndpointEngine(address, name, tokenizer=tokenizer, template_options=template_options, options=endpoint)
    from lengthen.generate.local import LocalEngine

    return LocalEngine(
        model, dtype=dtype, batch_size=batch_size, rope=rope, window=window, template_options=template_options
    )
