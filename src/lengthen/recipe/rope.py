"""Longer positions: which RoPE parameters a model gets for a target length, and why. Plain arithmetic, no torch.

The result is what transformers calls `rope_parameters`; it is saved in the model's config, so that transformers and
vLLM load the trained folder with no code of ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from lengthen.common.errors import LengthenError
from lengthen.recipe.base import Derived, ModelFacts, Settings, Size, size_text

RopeType = Literal["auto", "none", "base", "ntk", "dynamic-ntk-base", "linear", "dynamic", "yarn", "longrope", "llama3"]
_SCALED = ("linear", "dynamic", "yarn", "longrope", "llama3")
_ONLY_FOR = {
    "base": ("base",),
    "factor": ("ntk", "dynamic-ntk-base", *_SCALED),
    "window": ("ntk", "dynamic-ntk-base", *_SCALED),
    "attention_factor": ("yarn", "longrope"),
    "beta_fast": ("yarn",),
    "beta_slow": ("yarn",),
    "low_freq_factor": ("llama3",),
    "high_freq_factor": ("llama3",),
    "short_factor": ("longrope",),
    "long_factor": ("longrope",),
}


class RopeSettings(Settings):
    """How positions are extended from the model's window to the stage's `length`."""

    type: RopeType = Field(
        default="auto",
        description="none: as the model has it. base: a given rope_theta. ntk: base x s^(d/(d-2)). dynamic-ntk-base: "
        "base x (s^2-s+1)^(d/(d-2)), LongRecipe's published bases. linear, dynamic, yarn, longrope, llama3: "
        "transformers' scalings of that name. auto: dynamic-ntk-base where the length exceeds the window, else none.",
    )
    base: float | None = Field(default=None, gt=1, description="rope_theta for type base (ProLong: 8e6 and 1.28e8).")
    factor: float | None = Field(default=None, ge=1, description="Length factor s. Default: length / window.")
    window: Size | None = Field(
        default=None, gt=0, description="Positions that the model was made for. Default: from its config."
    )
    attention_factor: float | None = Field(default=None, gt=0, description="yarn, longrope: scale of cos and sin.")
    beta_fast: float | None = Field(default=None, gt=0, description="yarn: default 32.")
    beta_slow: float | None = Field(default=None, gt=0, description="yarn: default 1.")
    low_freq_factor: float | None = Field(default=None, gt=0, description="llama3: default 1.")
    high_freq_factor: float | None = Field(default=None, gt=0, description="llama3: default 4.")
    short_factor: list[float] | None = Field(default=None, description="longrope: one factor per frequency, short.")
    long_factor: list[float] | None = Field(default=None, description="longrope: one factor per frequency, long.")


@dataclass(frozen=True)
class Extension:
    """What changes in a model's config.

    parameters: new `rope_parameters`, or None when they stay.
    window: new `max_position_embeddings`, or None when it stays.
    """

    parameters: dict[str, Any] | None
    window: int | None
    derived: tuple[Derived, ...] = ()


def ntk_base(base: float, s: float, d: int) -> float:
    """base x s^(d/(d-2)): the NTK rule, s the length factor, d the head size (ProLong, arXiv 2410.02660, B.1)."""
    return base * s ** (d / (d - 2))


def dynamic_ntk_base(base: float, s: float, d: int) -> float:
    """base x (s^2 - (s - 1))^(d/(d-2)): transformers' dynamic NTK evaluated at full length. Gives the bases of
    LongRecipe's Table 4 (arXiv 2409.00509): 48.9M, 131.5M, 13.5M."""
    return base * (s * s - (s - 1)) ** (d / (d - 2))


def extend(facts: ModelFacts, length: int | None, settings: RopeSettings) -> Extension:
    """RoPE parameters for `length` positions.

    Raises:
        LengthenError: a setting that its type does not use, a length beyond the window with type none, a model whose
            scaling cannot be combined with the one asked for, a type without its numbers.
    """
    _refuse_unused(settings)
    kind, reasons = _kind(facts, length, settings)
    if kind == "none":
        return Extension(None, None, tuple(reasons))
    now = _flat(facts.rope)
    present = str(now.get("rope_type") or now.get("type") or "default")
    theta = float(now.get("rope_theta") or facts.rope_theta)
    if kind == "base":
        if settings.base is None:
            raise LengthenError("rope.base is missing: type base needs it.", fix="rope: {type: base, base: 8e6}")
        return _done(facts, {**now, "rope_type": present, "rope_theta": settings.base}, length, reasons)
    # With the first window given, the scaling in the config is replaced and not added to (UltraLong on Llama 3.1).
    if present not in ("default", kind) and settings.window is None:
        raise LengthenError(
            f"rope.type {kind}: this model already scales its positions ({present}).",
            why="two scalings on top of each other have no published meaning",
            fix="use `rope: {type: base, base: ...}`, which keeps its scaling, `type: none`, or give rope.window (the "
            "positions before that scaling) to replace it",
        )
    window = settings.window or _original_window(facts, now, present)
    factor = settings.factor or _factor(length, window, kind)
    if settings.factor is None:
        reasons.append(Derived("rope.factor", factor, f"length {size_text(length or 0)} / window {size_text(window)}"))
    if kind in ("ntk", "dynamic-ntk-base"):
        d = int(facts.head_size * float(now.get("partial_rotary_factor", 1.0)))
        rule = ntk_base if kind == "ntk" else dynamic_ntk_base
        base = rule(theta, factor, d)
        power = "s" if kind == "ntk" else "(s^2-s+1)"
        reasons.append(Derived("rope.base", base, f"{theta:,.0f} x {power}^(d/(d-2)), s = {factor:g}, d = {d}"))
        return _done(facts, {**now, "rope_type": "default", "rope_theta": base}, length, reasons)
    parameters = _scaled(kind, settings, now, theta, factor, window)
    # transformers (and vLLM) read the original window of `dynamic` from max_position_embeddings itself.
    return _done(facts, parameters, window if kind == "dynamic" else (length or round(window * factor)), reasons)


def _kind(facts: ModelFacts, length: int | None, settings: RopeSettings) -> tuple[str, list[Derived]]:
    present = int(facts.config.get("max_position_embeddings") or 0)
    beyond = length is not None and present > 0 and length > present
    if settings.type == "auto":
        if not beyond:
            why = "the length lies within the model's positions" if length else "no length is set"
            return "none", [Derived("rope.type", "none", why)]
        why = (
            f"{size_text(length or 0)} is beyond the model's {size_text(present)}; the plain NTK rule gives too small "
            "a base (arXiv 2410.02660, Table 4), LongRecipe's gave its published results"
        )
        return "dynamic-ntk-base", [Derived("rope.type", "dynamic-ntk-base", why)]
    if settings.type == "none" and beyond:
        raise LengthenError(
            f"length {size_text(length or 0)} is beyond the model's {size_text(present)} positions, and rope.type is "
            "none.",
            fix="choose an extension (rope.type auto, base, yarn ...), or a shorter length",
        )
    return settings.type, []


def _refuse_unused(settings: RopeSettings) -> None:
    for key, types in _ONLY_FOR.items():
        if getattr(settings, key) is not None and settings.type not in types:
            raise LengthenError(
                f"rope.{key} has no meaning with rope.type {settings.type}.",
                fix=f"drop it, or use one of the types {', '.join(types)}",
            )


def _flat(rope: dict[str, Any]) -> dict[str, Any]:
    """The global layers' parameters: Gemma 3 and its like keep one set per layer type, and only full-attention layers
    see far positions."""
    inner = rope.get("full_attention")
    return dict(inner) if isinstance(inner, dict) else dict(rope)


def _original_window(facts: ModelFacts, now: dict[str, Any], present: str) -> int:
    window = int(now.get("original_max_position_embeddings") or facts.window)
    if present == "linear" and not now.get("original_max_position_embeddings"):
        window = round(window / float(now.get("factor") or 1.0))
    if window <= 0:
        raise LengthenError("The model's config does not say how many positions it has.", fix="set rope.window")
    return window


def _factor(length: int | None, window: int, kind: str) -> float:
    if length is None:
        raise LengthenError(f"rope.type {kind} needs a length.", fix="set the stage's length, or rope.factor")
    if length <= window:
        raise LengthenError(
            f"rope.type {kind}: length {size_text(length)} does not exceed the model's window {size_text(window)}.",
            fix="raise the length, or set rope.type none",
        )
    return length / window


def _scaled(
    kind: str, settings: RopeSettings, now: dict[str, Any], theta: float, factor: float, window: int
) -> dict[str, Any]:
    made: dict[str, Any] = {"rope_type": kind, "rope_theta": theta, "factor": float(factor)}
    if "partial_rotary_factor" in now:
        made["partial_rotary_factor"] = now["partial_rotary_factor"]
    if kind in ("yarn", "longrope", "llama3"):
        made["original_max_position_embeddings"] = window
    if kind == "llama3":
        made["low_freq_factor"] = settings.low_freq_factor or float(now.get("low_freq_factor") or 1.0)
        made["high_freq_factor"] = settings.high_freq_factor or float(now.get("high_freq_factor") or 4.0)
    for key in ("attention_factor", "beta_fast", "beta_slow"):
        value = getattr(settings, key) if getattr(settings, key) is not None else now.get(key)
        if value is not None and kind in _ONLY_FOR[key]:
            made[key] = value
    if kind == "longrope":
        for key in ("short_factor", "long_factor"):
            made[key] = getattr(settings, key) or now.get(key)
            if not made[key]:
                raise LengthenError(
                    f"rope.{key} is missing.",
                    why="LongRoPE's factors are found by a search for each model (arXiv 2402.13753)",
                    fix="give short_factor and long_factor, or use yarn, which needs no search",
                )
    return made


def _done(facts: ModelFacts, parameters: dict[str, Any], window: int | None, reasons: list[Derived]) -> Extension:
    parameters.pop("type", None)
    rope = facts.rope
    if isinstance(rope.get("full_attention"), dict):
        parameters = {**rope, "full_attention": parameters}
    return Extension(parameters, window, tuple(reasons))
