"""Settings of a self-lengthen stage that its method, its source of instructions or its server does not read.

They are refused: a user who sets `instruct.seeds` beside `source: templates` expects seeds. A default that is written
out is no mistake, since a resolved recipe carries them all. Those of `serve` are only told: a preset has some, and who
goes from one server to another, or to none, may leave them where they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from lengthen.recipe.stages.self_lengthen import SelfLengthenStage

_LOOP = (
    "iterations", "extend", "select", "constraints", "respond.samples", "final.count", "final.samples", "final.pool",
    "final.start",
)  # fmt: skip
_SELF = tuple(
    f"instruct.{name}"
    for name in ("seeds", "shown", "block", "grow", "judge", "judge_temperature", "max_new_tokens",
                 "candidates_per_instruction")
)  # fmt: skip
_REMOTE = tuple(f"serve.{name}" for name in ("port", "arguments", "base_seconds", "slowest_tokens_per_second", "key"))


def unread(stage: SelfLengthenStage) -> str | None:
    """A sentence about the settings that nothing reads, or None."""
    if stage.serve.endpoint and stage.serve.start_vllm:
        return "serve.endpoint and serve.start_vllm are both set, and a server is either there or started: drop one"
    for reason, keys in _rules(stage):
        found = [one for key in keys for one in _changed(stage, key)]
        if found:
            back = ", ".join(f"{key}={_text(default)}" for key, _, default in found)
            return f"{_nothing_reads(reason, found)}: drop it, or set it back to its default ({back})"
    return None


def unread_serve(stage: SelfLengthenStage) -> list[str]:
    """A sentence about the settings of `serve` that nothing reads, for each reason."""
    found = [(reason, [one for key in keys for one in _changed(stage, key)]) for reason, keys in _serve_rules(stage)]
    sentences = [_nothing_reads(reason, changed) for reason, changed in found if changed]
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences]


def _nothing_reads(reason: str, found: list[tuple[str, Any, Any]]) -> str:
    return f"{reason} nothing reads " + ", ".join(f"{key} ({_text(value)})" for key, value, _ in found)


def _rules(stage: SelfLengthenStage) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(when, keys or whole sections that nothing reads then)."""
    instruct, method = stage.instruct, stage.method
    if method != "self-lengthen":
        yield f"with method '{method}'", _LOOP
    if method != "back-translation":
        yield f"with method '{method}'", ("texts",)
    if method == "back-translation":
        yield f"with method '{method}'", ("instruct.source", "instruct.file", *_SELF, "respond.tries")
    elif instruct.source != "self":
        yield f"with instruct.source '{instruct.source}'", (*_SELF, "instruct.tries")
    if instruct.source != "file":
        yield f"with instruct.source '{instruct.source}'", ("instruct.file",)
    if not instruct.judge:
        yield "without instruct.judge", ("instruct.judge_temperature",)
    if not instruct.grow:
        yield "without instruct.grow", ("instruct.block",)


def _serve_rules(stage: SelfLengthenStage) -> Iterator[tuple[str, tuple[str, ...]]]:
    remote = bool(stage.serve.endpoint) or stage.serve.start_vllm
    if remote:
        yield "with a server, which batches by itself,", ("serve.batch",)
    else:
        yield "without a server (serve.endpoint or serve.start_vllm)", _REMOTE
    if not stage.serve.start_vllm:
        yield "without serve.start_vllm", ("serve.start_minutes",)


def _changed(stage: SelfLengthenStage, key: str) -> Iterator[tuple[str, Any, Any]]:
    """(key, value, default) of a setting, or of each one of a section, that is not at its default."""
    section, _, name = key.partition(".")
    value, default = getattr(stage, section), type(stage).model_fields[section].get_default(call_default_factory=True)
    if not isinstance(value, BaseModel):
        if value != default:
            yield key, value, default
        return
    for field in [name] if name else type(value).model_fields:
        if getattr(value, field) != getattr(default, field):
            yield f"{section}.{field}", getattr(value, field), getattr(default, field)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
