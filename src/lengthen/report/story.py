"""The words of a report: the headline, its key figures, failures to read, what was dropped, what it cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lengthen.common.progress import clock
from lengthen.recipe.base import size_text
from lengthen.report.collect import Arm, DataSet, Evidence, Growth, StageRecord
from lengthen.report.compare import Point, averages, suites_of
from lengthen.report.lengths import effective

_FIRST_SUITES = ("needle", "ruler")
_GOOD = 0.85
_GROWTH = "clean words, median"  # as the loop measures it; clean: up to the first repetition
_PHRASES = {"as-is": "as it was", "yarn-untrained": "with untrained YaRN"}


@dataclass(frozen=True)
class Failure:
    """A wrong answer to read."""

    suite: str
    task: str
    length: int
    depth: float | None
    score: float
    question: str
    expected: tuple[str, ...]
    output: str
    finish_reason: str


@dataclass(frozen=True)
class Outcomes:
    """How an arm's answers ended."""

    arm: str
    answers: int
    empty: int
    cut: int
    errors: int


@dataclass(frozen=True)
class Cost:
    """Time and memory of one stage."""

    name: str
    kind: str
    seconds: float
    peak_memory_gib: float | None
    attempts: int


def percent(value: float) -> str:
    """0.974 -> `97%`; values near an end keep a digit, so that 99.6% never reads as 100%."""
    shown = 100 * value
    return f"{shown:.1f}%" if 0 < shown < 1 or 99 < shown < 100 else f"{shown:.0f}%"


def interval(point: Point) -> str:
    if point.low is None or point.high is None:
        return _samples(point)
    return f"95% interval {percent(point.low).rstrip('%')}–{percent(point.high)}, {_samples(point)}"


def _samples(point: Point) -> str:
    return f"{point.n} samples" + (f" on {point.contexts} texts" if 0 < point.contexts < point.n else "")


def counted(row: Any) -> str:
    """`n 24 on 6 texts` where several samples ask about one text, else `n 24`."""
    n, texts = (row["n"], row.get("contexts")) if isinstance(row, Mapping) else (row.n, row.contexts)
    return f"n {n} on {texts} texts" if texts and texts < n else f"n {n}"


def main_suite(arms: Sequence[Arm]) -> str | None:
    """The suite that the headline speaks of: needle, else RULER, else the first."""
    found = suites_of(arms)
    return next((suite for suite in _FIRST_SUITES if suite in found), found[0] if found else None)


def headline(evidence: Evidence) -> str:
    """One sentence with numbers and intervals: what was achieved."""
    final = evidence.final
    suite = main_suite(evidence.arms)
    if final is not None and suite is not None and averages(final, suite):
        return _reading(evidence.arms, final, suite)
    words = next((value for value in final.values if value.get("unit") == "words"), None) if final else None
    if final is not None and words is not None:
        return _writing(evidence.arms, final, words)
    for growth in evidence.growths:
        sentence = _growth(growth)
        if sentence:
            return sentence
    for training in evidence.trainings:
        if training.steps:
            first, last = training.steps[0]["loss"], training.steps[-1]["loss"]
            return f"Trained for {len(training.steps)} steps; the loss went from {first:.2f} to {last:.2f}."
    return f"{len(evidence.stages)} stages are done."


def _reading(arms: Sequence[Arm], final: Arm, suite: str) -> str:
    points = averages(final, suite)
    good = [length for length, point in points.items() if point.score >= _GOOD]
    length = max(good) if good else max(points)
    point = points[length]
    # A suite of one task, or a task of the suite's own name, needs no second name.
    what = "the needle test" if suite == "needle" else f"{suite} ({len(point.tasks)} tasks)"
    if suite != "needle" and len(point.tasks) == 1:
        what = suite if point.tasks[0] in suite else f"{suite}: {point.tasks[0]}"
    where = f"At {size_text(length)} tokens it" if length else "It"
    sentence = f"{where} scores {percent(point.score)} on {what} ({interval(point)})"
    others = [
        f"{_PHRASES.get(arm.label, arm.label)} {percent(found.score)}"
        for arm in arms[:-1]
        if (found := averages(arm, suite).get(length)) is not None
    ]
    return sentence + (f"; {', '.join(others)}." if others else ".")


def _writing(arms: Sequence[Arm], final: Arm, row: dict[str, Any]) -> str:
    def value(arm: Arm) -> float | None:
        return next((v["value"] for v in arm.values if v["task"] == row["task"] and v.get("unit") == "words"), None)

    others = [
        f"{_PHRASES.get(arm.label, arm.label)} {found:,.0f}" for arm in arms[:-1] if (found := value(arm)) is not None
    ]
    return f"It writes {row['value']:,.0f} words ({row['task']})" + (f"; {', '.join(others)}." if others else ".")


def _growth(growth: Growth) -> str:
    """The median of the words up to the first repetition: a mean can come from one lucky text."""
    names = [m.name for m in growth.measures if m.unit == "words"]
    if not names:
        return ""
    name = _GROWTH if _GROWTH in names else names[0]
    rows = sorted((m for m in growth.measures if m.name == name), key=lambda m: m.iteration)
    first, last = rows[0], rows[-1]
    return (
        f"{first.name}: {first.value:,.0f} words before, {last.value:,.0f} at the end "
        f"(95% interval {last.low:,.0f}–{last.high:,.0f}, {last.n} prompts)."
    )


def reach(arm: Arm, suite: str) -> str:
    """`16K`, `at least 32K` or `under 4K`: effective length by RULER's rule."""
    found = effective(arm, suite)
    if found is None:
        return ""
    if found.absolute is None:
        return f"under {size_text(found.shortest)}"
    return size_text(found.absolute) if found.absolute < found.longest else f"at least {size_text(found.absolute)}"


def key_figures(evidence: Evidence) -> list[tuple[str, str]]:
    """(name, value) for the head of the page; only what is known."""
    found: list[tuple[str, str]] = []
    suite = main_suite(evidence.arms)
    if suite is not None and evidence.final is not None:
        first, last = reach(evidence.arms[0], suite), reach(evidence.final, suite)
        if last:
            both = len(evidence.arms) > 1 and first
            found.append((f"reads well to ({suite})", f"{first} → {last}" if both else last))
    tokens = sum(int(t.stage.counts.get("tokens", 0)) for t in evidence.trainings)
    if tokens:
        found.append(("tokens trained on", f"{tokens:,}"))
    spent = sum(cost.seconds for cost in costs(evidence.stages))
    if spent:
        found.append(("time, all stages", clock(spent)))
    peaks = [cost.peak_memory_gib for cost in costs(evidence.stages) if cost.peak_memory_gib]
    if peaks:
        found.append(("peak memory", f"{max(peaks):.1f} GiB"))
    return found


def failures(arm: Arm, most: int) -> list[Failure]:
    """Wrong answers (score under one half), shortest first: a miss in a short text tells more than one in a long text.
    Tasks take turns, so that none fills the list alone."""
    by_task: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    wrong = [a for a in arm.answers if a.get("score") is not None and float(a["score"]) < 0.5]
    for answer in sorted(wrong, key=lambda a: (int(a.get("length") or 0), float(a["score"]), str(a["id"]))):
        by_task[str(answer.get("suite")), str(answer.get("task"))].append(answer)
    chosen: list[Failure] = []
    queues = list(by_task.values())
    while queues and len(chosen) < most:
        queues = [queue for queue in queues if queue]
        for queue in queues[: most - len(chosen)]:
            chosen.append(_failure(arm, queue.pop(0)))
    return chosen


def _failure(arm: Arm, answer: dict[str, Any]) -> Failure:
    refs = answer.get("refs") or answer.get("expected") or []
    return Failure(
        suite=str(answer.get("suite")),
        task=str(answer.get("task")),
        length=int(answer.get("length") or 0),
        depth=answer.get("depth"),
        score=float(answer["score"]),
        question=_end(str(answer.get("question") or arm.asked(answer))),
        expected=tuple(str(ref) for ref in ([refs] if isinstance(refs, str) else refs)),
        output=str(answer.get("output") or ""),
        finish_reason=str(answer.get("finish_reason") or ""),
    )


def _end(text: str, most: int = 260) -> str:
    """The end of a prompt, where the question stands."""
    return text.strip() if len(text) <= most else "… " + text[-most:].strip()


def outcomes(arm: Arm) -> Outcomes:
    """Empty answers, answers cut by the token limit, and errors, counted apart from wrong ones."""
    answered = [a for a in arm.answers if a.get("finish_reason") != "error"]
    return Outcomes(
        arm=arm.label,
        answers=len(answered),
        empty=sum(not str(a.get("output") or "").strip() for a in answered),
        cut=sum(a.get("finish_reason") == "length" for a in answered),
        errors=len(arm.answers) - len(answered),
    )


def notes(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """(models, note of their evaluations): what several arms say alike stands once."""
    found: dict[str, list[str]] = {}
    for arm in arms:
        for note in dict.fromkeys(arm.notes):
            found.setdefault(note, []).append(arm.title)
    return [("all" if len(names) == len(arms) > 1 else ", ".join(names), note) for note, names in found.items()]


def costs(stages: Sequence[StageRecord]) -> list[Cost]:
    """Time and memory of the stages whose manifests tell."""
    return [
        Cost(s.name, s.kind, float(m["seconds"]), m.get("peak_memory_gib"), int(m.get("attempts", 1)))
        for s in stages
        if (m := s.manifest).get("seconds") is not None
    ]


def drops(sets: Sequence[DataSet]) -> list[dict[str, Any]]:
    """What did not go on, by stage and rule."""
    return [
        {"stage": one.stage.name, "rule": rule, "items": row.get("items", 0), "tokens": row.get("tokens", 0)}
        for one in sets
        for rule, row in one.stage.drops.items()
    ]
