"""Gives a loaded config longer positions (the arithmetic is in `lengthen.recipe.rope`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lengthen.recipe.base import ModelFacts
from lengthen.recipe.rope import Extension, RopeSettings, dynamic_ntk_base, extend, ntk_base

__all__ = ["Extension", "RopeSettings", "apply", "dynamic_ntk_base", "extend", "extension_for", "ntk_base"]


def extension_for(folder: Path, length: int | None, settings: RopeSettings) -> Extension:
    """RoPE parameters and window for a model folder and a target length."""
    return extend(ModelFacts.read(folder), length, settings)


def apply(config: Any, extension: Extension) -> Any:
    """Write an extension into a transformers config (in place), checked by transformers' own rules.

    For a model that is already built, its rotary embedding must be built anew: load the model with the changed config.
    """
    text = config.get_text_config()
    if extension.parameters is not None:
        text.rope_parameters = dict(extension.parameters)
    if extension.window is not None:
        text.max_position_embeddings = extension.window
    if extension.parameters is not None:
        text.validate_rope()
    return config
