"""Models with our attention, from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lengthen.common.errors import LengthenError
from lengthen.models import pick_dtype, resolve_model
from lengthen.train.attention import register
from lengthen.train.rope import by_document


def load_model(
    name: str | Path, *, dtype: str = "auto", rope: dict[str, Any] | None = None, window: int | None = None
) -> PreTrainedModel:
    """A causal language model with our attention (`lengthen.train.attention`), in evaluation mode.

    Args:
        dtype: float32, bfloat16, float16, or auto (`pick_dtype`).
        rope: replaces `rope_parameters` of the config (see `lengthen.train.rope`).
        window: replaces `max_position_embeddings`.
    """
    folder = resolve_model(str(name))
    register()
    config = AutoConfig.from_pretrained(str(folder))
    if getattr(config, "auto_map", None):
        raise LengthenError(
            f"{name} needs code from its own folder (auto_map in config.json), which is not run.",
            fix="use a model whose architecture is part of transformers",
        )
    text = config.get_text_config()
    if rope is not None:
        text.rope_parameters = dict(rope)
    if window is not None:
        text.max_position_embeddings = window
    model = AutoModelForCausalLM.from_pretrained(
        str(folder),
        config=config,
        dtype=getattr(torch, pick_dtype(dtype)[0]),
        attn_implementation="lengthen",
    )
    return by_document(model.eval())
