"""Asking: every sample once, each answer on disk before the next one counts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lengthen.common.files import append_json_line, read_json_lines
from lengthen.common.progress import Bar
from lengthen.evaluate.prompts import Prompts
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.suites import Scored, Suite
from lengthen.generate.engine import OUT_OF_MEMORY, Answer, Engine

PREDICTIONS = "predictions.jsonl"
_QUADRATIC = 8192
_PER_NEW_TOKEN = 20
CHARACTERS_SHOWN = 200


@dataclass
class Predictions:
    """The answers of an evaluation, by sample id; errors are kept apart and asked again by the next run."""

    path: Path
    by_id: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Predictions:
        """Read what an interrupted attempt left; a line that a kill tore is cut off and its sample asked again."""
        found = cls(folder / PREDICTIONS)
        for row in read_json_lines(found.path, repair=True):
            if row["finish_reason"] != "error":
                found.by_id[row["id"]] = row
        return found

    def add(self, sample: Sample, answer: Answer, score: float | None) -> None:
        row = {
            "id": sample.id, "suite": sample.suite, "task": sample.task, "length": sample.length,
            "context": sample.context, "depth": sample.depth, "output": answer.text,
            "finish_reason": answer.finish_reason, "prompt_tokens": answer.prompt_tokens,
            "new_tokens": answer.new_tokens, "seconds": round(answer.seconds, 3), "score": score,
            "refs": list(sample.refs), "asked": asked(sample),
        }  # fmt: skip
        if answer.error is not None:
            row["error"] = answer.error
        append_json_line(self.path, row)
        (self.errors if answer.finish_reason == "error" else self.by_id)[sample.id] = row

    def open_samples(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those that have no answer yet. An answer to another question of the same id (a suite's options have changed
        since) is let go of."""
        for sample in samples:
            row = self.by_id.get(sample.id)
            if row is not None and "asked" in row and row["asked"] != asked(sample):
                del self.by_id[sample.id]
        return [sample for sample in samples if sample.id not in self.by_id]

    def scored(self, suite: Suite, samples: Sequence[Sample]) -> list[Scored]:
        """Answered samples. Scores are computed from the outputs, so a corrected scorer needs no new answers."""
        found = []
        for sample in samples:
            row = self.by_id.get(sample.id)
            if row is not None:
                output = row["output"]
                found.append(Scored(sample, output, suite.score(sample, output), row["finish_reason"]))
        return found


def asked(sample: Sample) -> str:
    """Stands for all that the model is given: the question, the beginning of the answer, the room."""
    text = f"{sample.new_tokens}\0{sample.prefix}\0{sample.user}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cost(sample: Sample) -> float:
    """Work of a sample for the progress bar, in thousands of tokens of short text: the prompt grows with its square,
    a written token costs about as much as reading twenty (SmolLM2-135M on two cores)."""
    tokens = sample.tokens or sample.length or len(sample.user) // 4
    return (tokens + tokens * tokens / _QUADRATIC + _PER_NEW_TOKEN * sample.new_tokens) / 1000


def costs(samples: Sequence[Sample]) -> dict[str, float]:
    """`cost` by id; samples that share a beginning pay it once, together."""
    sharing: dict[str, int] = {}
    for sample in samples:
        if sample.share is not None:
            sharing[sample.share] = sharing.get(sample.share, 0) + 1
    return {s.id: cost(s) / (sharing.get(s.share, 1) if s.share is not None else 1) for s in samples}


@dataclass
class Asked:
    """How asking a cell ended. out_of_memory: the first sample's error, when the length does not fit."""

    out_of_memory: str | None = None
    errors: int = 0


def ask(
    engine: Engine, prompts: Prompts, suite: Suite, samples: Sequence[Sample], kept: Predictions, bar: Bar,
    weights: Mapping[str, float], now: Callable[[], str],
) -> Asked:  # fmt: skip
    """Ask the samples that have no answer yet and keep each answer at once.

    A prompt that does not fit into memory ends the cell: the others of its length would not fit either.
    """
    ended = Asked()
    by_id = {sample.id: sample for sample in kept.open_samples(samples)}
    answers = engine.generate([prompts.request(sample) for sample in by_id.values()]) if by_id else iter(())
    for answer in answers:
        sample = by_id[answer.id]
        good = answer.finish_reason != "error"
        kept.add(sample, answer, suite.score(sample, answer.text) if good else None)
        bar.advance(weights.get(sample.id, 0.0), note=now())
        if not good:
            ended.errors += 1
            if (answer.error or "").startswith(OUT_OF_MEMORY):
                ended.out_of_memory = answer.error
                _close(answers)
                break
    return ended


def _close(answers: Iterator[Answer]) -> None:
    close = getattr(answers, "close", None)
    if close is not None:
        close()
