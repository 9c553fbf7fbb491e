"""Gives a loaded config longer positions (the arithmetic is in `lengthen.recipe.rope`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lengthen.common.errors import LengthenError
from lengthen.recipe.base import ModelFacts
from lengthen.recipe.rope import Extension, RopeSettings, dynamic_ntk_base, extend, ntk_base

__all__ = [
    "Extension",
    "RopeSettings",
    "apply",
    "by_document",
    "check_targets",
    "dynamic_ntk_base",
    "extend",
    "extension_for",
    "ntk_base",
]


def extension_for(folder: Path, length: int | None, settings: RopeSettings) -> Extension:
    """RoPE parameters and window for a model folder and a target length."""
    return extend(ModelFacts.read(folder), length, settings)


def check_targets(folder: Path, extension: Extension, targets: list[int]) -> None:
    """Refuse training positions beyond a model whose RoPE was never extended and stays as it is. An extended one may
    aim a little beyond its length, so that the last positions of that length are not the rarest; how far its scaling
    reaches, a config does not tell for sure.

    Raises:
        LengthenError: with the farthest target and the model's positions.
    """
    if extension.parameters is not None or not targets:
        return
    facts = ModelFacts.read(folder)
    positions = int(facts.config.get("max_position_embeddings") or 0)
    rope = facts.rope.get("full_attention", facts.rope)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "dynamic"):
        return
    if kind == "dynamic":  # keeps its first window in the config
        positions = round(positions * float(rope.get("factor") or 1.0))
    if 0 < positions < max(targets):
        raise LengthenError(
            f"positions.targets reach {max(targets):,}, but the model has {positions:,} positions, and this stage does "
            "not extend them.",
            why="the model's RoPE would be trained, unchanged, far outside of its range",
            fix=f"set the stage's length to {max(targets)} (rope.type auto extends it), or lower the targets to "
            f"{positions}",
        )


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


BY_LENGTH = ("dynamic", "longrope")
"""RoPE types whose frequencies follow the length of what is read."""


def by_document(model: Any) -> Any:
    """Give each document of a packed row the frequencies that it has alone (in place; other RoPE types stay as is).

    transformers chooses the frequencies of `dynamic` and `longrope` by the largest position of the whole row, and
    `dynamic` keeps those of the longest row so far: a short document beside or behind a long one would differ from
    itself alone, and a resumed training from an uninterrupted one. Where the model is called with `doc_lens`, they are
    computed for each document by itself, by transformers' own code in its first state. Calls without `doc_lens`
    (generation) are left to transformers.
    """
    for owner in list(model.modules()):
        for rotary in owner.children():
            if _layer_types(rotary):
                _follow_borders(owner, rotary)
    return model


def _layer_types(rotary: Any) -> list[str | None]:
    """Layer types whose frequencies follow the length; [None] where all layers share them, [] where none do."""
    kinds = getattr(rotary, "rope_type", None)
    if not hasattr(rotary, "original_max_seq_len"):
        return []
    named = kinds.items() if isinstance(kinds, dict) else [(None, kinds)]
    return [name for name, kind in named if kind in BY_LENGTH]


def _follow_borders(owner: Any, rotary: Any) -> None:
    plain, lens = rotary.forward, []

    def told(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs.get("doc_lens")
        lens[:] = torch.as_tensor(given).flatten().tolist() if given is not None else []

    def forward(x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
        more = {} if layer_type is None else {"layer_type": layer_type}
        # Other sums are refused by the attention, which knows the queries.
        if layer_type not in _layer_types(rotary) or sum(lens) != position_ids.shape[-1]:
            return plain(x, position_ids, **more)
        parts = []
        for positions in position_ids.split(lens, dim=-1):
            _forget(rotary, layer_type)
            parts.append(plain(x, positions, **more))
        _forget(rotary, layer_type)
        cos, sin = (torch.cat(values, dim=1) for values in zip(*parts, strict=True))
        return cos, sin

    owner.register_forward_pre_hook(told, with_kwargs=True)
    rotary.forward = forward


def _forget(rotary: Any, layer_type: str | None) -> None:
    """Back to the state of a model that has read nothing yet."""
    prefix = "" if layer_type is None else f"{layer_type}_"
    now = getattr(rotary, f"{prefix}inv_freq")
    first = getattr(rotary, f"{prefix}original_inv_freq").to(now.device, copy=True)
    rotary.register_buffer(f"{prefix}inv_freq", first, persistent=False)
    setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)
