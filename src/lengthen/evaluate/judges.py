"""Engines of judge models, each opened once in an evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lengthen.generate import Engine, is_endpoint, open_engine

if TYPE_CHECKING:
    from lengthen.generate.wire import EndpointOptions
    from lengthen.recipe.stages.evaluate import EvaluateStage


def endpoint_options(settings: EvaluateStage) -> EndpointOptions:
    """The stage's `endpoint` settings as the engine takes them."""
    from lengthen.generate.wire import EndpointOptions

    return EndpointOptions(**settings.endpoint.model_dump())


class Judges:
    """Judges by name. Behind an endpoint they get the stage's key, times and number of requests at once."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def get(self, name: str, settings: EvaluateStage) -> Engine:
        if name not in self._engines:
            # endpoint.api is about beginnings of the tested model's answers; a judge is asked in plain chats.
            options = replace(endpoint_options(settings), api="auto") if is_endpoint(name) else None
            self._engines[name] = open_engine(name, endpoint=options)
        return self._engines[name]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
