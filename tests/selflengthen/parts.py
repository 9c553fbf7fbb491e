"""Parts that several tests use: a work folder with small settings, and answers given by hand to a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lengthen.generate.engine import Answer, Request
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.pipeline import Task
from lengthen.selflengthen.store import Store
from lengthen.selflengthen.wording import wordings
from lengthen.selflengthen.work import Work

# A random model writes word salad, so that the rules about language stay off and short texts must do.
TINY = {
    "name": "loop",
    "iterations": 2,
    "instruct": {"source": "templates", "count": 6},
    "respond": {"samples": 1, "tries": 12},
    "extend": {"tries": 12, "rounds": 1, "growth": 1.0},
    "sampling": {"max_new_tokens": 56, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0},
    "checks": {
        "repeated_share": 1.0, "longest_copy": 9999, "sentence_end": False, "min_words": 3, "meta": False,
        "refusals": False, "language": False,
    },
    "retry": {"after_cut": "same"},
    "constraints": {"low": "auto", "high": "auto", "step": "auto", "weave": "append"},
    "training": {"epochs": 1, "row_length": 2048, "rows_per_step": 4, "lora_rank": 4, "lora_alpha": 8,
                 "dtype": "float32", "learning_rate": 2e-3},
    "final": {"count": 6},
    "held_out": {"count": 4},
}  # fmt: skip


def new_work(folder: Path, window: int = 8192, seed: int = 1, **settings) -> Work:
    """Words count as tokens here, so that room is easy to reckon."""
    stage = SelfLengthenStage.model_validate({"name": "loop", **settings})
    store = Store(folder / "state.sqlite")
    return Work(stage, store, wordings(list(stage.languages), stage.prompts), seed, window, lambda t: len(t.split()))


def drive(work: Work, task: Task, reply: Callable[[Request], Answer | str]) -> list[Request]:
    """Run one task to its end as the pipeline does: the store first, then `reply`. Returns what was asked."""
    asked: list[Request] = []
    try:
        ask = next(task)
        while True:
            answer = work.store.answer(ask.key)
            if answer is None:
                asked.append(ask.request)
                work.store.sending(ask.key, ask.request)
                said = reply(ask.request)
                answer = (
                    said if isinstance(said, Answer) else Answer(ask.request.id, said, "stop", 5, len(said.split()))
                )
                work.store.answered(ask.key, answer)
            ask = task.send(answer)
    except StopIteration:
        return asked


def prose(words: int, seed: int = 0) -> str:
    """About so many words of sentences that never repeat, in paragraphs."""
    sentences, count = [], 0
    while count < words:
        n = len(sentences) + 1000 * seed
        sentences.append(f"On day {n} the crew of boat {n * 7} saw {n * 13} gulls over cape {n * 17} and sailed home.")
        count += 18
    return "\n\n".join(" ".join(sentences[i : i + 4]) for i in range(0, len(sentences), 4))
