"""Instructions, answers and extensions of one macro-iteration against an endpoint, in a process that may be killed:
`python -m tests.selflengthen.run_phases FOLDER URL MODEL COUNT IN_FLIGHT SECONDS [steps]`. With `steps` each step waits
for all of the one before it, for comparison."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.loop import STATE, _work
from lengthen.selflengthen.phases import Crew, Extensions, Instructions, Responses, instruct, write
from lengthen.selflengthen.serve import Serving, run_digits
from lengthen.selflengthen.store import Store


def settings_for(url: str, model: str, count: int, in_flight: int, seconds: float = 6.0) -> SelfLengthenStage:
    return SelfLengthenStage.model_validate(
        {
            "name": "loop", "model": model, "window": 65536,
            "instruct": {"count": count, "block": max(10, count // 8), "tries": 4},
            "respond": {"samples": 1, "tries": 6},
            "extend": {"tries": 3, "rounds": 2},
            "sampling": {"max_new_tokens": 8192},
            "serve": {"endpoint": url, "in_flight": in_flight, "base_seconds": seconds,
                      "slowest_tokens_per_second": 8192},
        }
    )  # fmt: skip


def step_by_step(crew: Crew, instructions: Instructions) -> None:
    """Answers and extensions as two steps."""
    responses = Responses.of(crew.work, 1, instructions)
    crew.run(responses, 0, ("generator",), "responses", len(instructions))
    crew.run(Extensions(crew.work, 1, responses), 0, ("extender",), "extensions", len(instructions))


def main(folder: Path, url: str, model: str, count: int, in_flight: int, seconds: float, steps: bool) -> None:
    settings = settings_for(url, model, count, in_flight, seconds)
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder / STATE)
    serving = Serving(settings, folder, run_digits(store))
    crew = Crew(_work(settings, store, 5), serving, StageContext(folder, seed=5, stage="loop"))
    try:
        instructions = instruct(crew, 1, count)
        if steps:
            step_by_step(crew, instructions)
        else:
            write(crew, 1, instructions)
    finally:
        serving.stop()
        store.close()
    print(json.dumps({"done": True}))


if __name__ == "__main__":
    given = sys.argv
    main(Path(given[1]), given[2], given[3], int(given[4]), int(given[5]), float(given[6]), "steps" in given)
