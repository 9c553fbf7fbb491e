"""Asking: every sample once, each answer on disk before the next one counts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lengthen.common.files import append_json_line, read_json_lines, write_atomic
from lengthen.common.progress import Bar
from lengthen.evaluate.prompts import Prompts
from lengthen.evaluate.samples import Sample
from lengthen.evaluate.suites import Scored, Suite
from lengthen.generate.engine import OUT_OF_MEMORY, Answer, Engine

PREDICTIONS = "predictions.jsonl"
NOT_ASKED_NOW = "predictions-not-asked-now.jsonl"
_QUADRATIC = 8192
_PER_NEW_TOKEN = 20
CHARACTERS_SHOWN = 200


@dataclass
class Predictions:
    """The answers of an evaluation, by sample id; errors are kept apart and asked again by the next run.

    others: answers to questions that are not asked now (fewer samples, other options), by id and question. They stand
    in a file of their own, so that predictions.jsonl holds what the scores tell, and are found again when they are
    asked for again.
    """

    path: Path
    by_id: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Predictions:
        """Read what an interrupted attempt left; a line that a kill tore is cut off and its sample asked again."""
        found = cls(folder / PREDICTIONS)
        found.others = {_key(row): row for row in read_json_lines(folder / NOT_ASKED_NOW, repair=True)}
        for row in read_json_lines(found.path, repair=True):
            if row["finish_reason"] != "error":
                found._let_go(row["id"])
                found.by_id[row["id"]] = row
        return found

    def _let_go(self, sample_id: str) -> None:
        row = self.by_id.pop(sample_id, None)
        if row is not None:
            self.others[_key(row)] = row

    def settle(self, samples: Sequence[Sample]) -> None:
        """Keep in predictions.jsonl the answers to these samples alone; the other answers go to the other file."""
        before = {_key(row) for row in read_json_lines(self.path)}, {_key(r) for r in self._aside()}
        self.open_samples(samples)
        wanted = {sample.id for sample in samples}
        for sample_id in [i for i in self.by_id if i not in wanted]:
            self._let_go(sample_id)
        if before == ({_key(row) for row in self.by_id.values()}, set(self.others)):
            return
        # Killed between two of these writes, each answer still stands in one of the files.
        aside = self.path.with_name(NOT_ASKED_NOW)
        rows = {**{_key(row): row for row in self._aside()}, **self.others}
        write_atomic(aside, _lines(rows.values()))
        write_atomic(self.path, _lines(self.by_id.values()))
        write_atomic(aside, _lines(self.others.values()))

    def _aside(self) -> list[dict[str, Any]]:
        return list(read_json_lines(self.path.with_name(NOT_ASKED_NOW)))

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
        since) does not count; one from before such a change does, when its question is asked again."""
        for sample in samples:
            row = self.by_id.get(sample.id)
            if row is None and not self.others:
                continue
            question = asked(sample)
            if row is not None:
                self.others.pop(_key(row), None)
            if row is not None and row.get("asked", question) != question:
                self._let_go(sample.id)
                row = None
            again = None
            if row is None:
                # Answers of older versions do not tell their question.
                again = self.others.pop((sample.id, question), None) or self.others.pop((sample.id, ""), None)
            if again is not None:
                self.by_id[sample.id] = again
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


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["id"], row.get("asked", "")


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def asked(sample: Sample) -> str:
    """Stands for all that the model is given: the question, the beginning of the answer, the room."""
    text = f"{sample.new_tokens}\0{sample.prefix}\0{sample.user}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def costs(samples: Sequence[Sample]) -> dict[str, float]:
    """Work of each sample for the progress bar, by id, in thousands of tokens of short text: reading grows with the
    square of the prompt and is shared by samples with a common beginning; a written token costs about as much as
    reading twenty (SmolLM2-135M on two cores)."""
    sharing = Counter(sample.share for sample in samples if sample.share is not None)
    found = {}
    for sample in samples:
        tokens = sample.tokens or sample.length or len(sample.user) // 4
        reading = (tokens + tokens * tokens / _QUADRATIC) / (1 if sample.share is None else sharing[sample.share])
        found[sample.id] = (reading + _PER_NEW_TOKEN * sample.new_tokens) / 1000
    return found


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
