"""Judgements that are kept: no answer is judged twice by the same judge and prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from lengthen.common.files import append_json_line, read_json_lines
from lengthen.evaluate.judge import Rubric, Verdict, judge
from lengthen.evaluate.suites import Job

FILE = "judgements.jsonl"
UNREADABLE = "unreadable judgements"
"""Name of the row with the number of texts that are left out of judged means."""
PART = 16  # texts between two writes, or as many as keep the endpoint busy


def judged(job: Job, name: str, rubric: Rubric, items: Mapping[str, Mapping[str, str]]) -> dict[str, Verdict]:
    """Verdicts of a judge about id -> slots; raw answers stand in `judgements.jsonl` of the stage's folder.

    Failed requests (an endpoint that is away) are asked for again by the next run; unreadable answers are not.
    """
    path = job.ctx.folder / FILE
    keys = {i: _key(name, rubric, slots) for i, slots in items.items()}
    known: dict[str, Verdict] = {}
    for row in read_json_lines(path, repair=True):
        if not row["failed"]:
            known[row["key"]] = Verdict(row["id"], row["scores"], tuple(row["raw"]), row["error"])
    found = {i: known[key] for i, key in keys.items() if key in known}
    waiting = [(i, items[i]) for i in items if i not in found]
    if not waiting:
        return found
    engine = job.judges.get(name, job.settings)
    part = max(PART, 2 * job.settings.endpoint.concurrency)
    for begin in range(0, len(waiting), part):
        for i, verdict in judge(engine, rubric, waiting[begin : begin + part]).items():
            found[i] = verdict
            failed = verdict.scores is None and not any(verdict.raw)
            row = {"key": keys[i], "id": i, "judge": name, "rubric": rubric.name, "prompt_sha256": rubric.sha256}
            row |= {"scores": verdict.scores, "raw": verdict.raw, "error": verdict.error, "failed": failed}
            append_json_line(path, row)
    return found


def _key(name: str, rubric: Rubric, slots: Mapping[str, str]) -> str:
    return hashlib.sha256("\x1f".join([name, rubric.sha256, rubric.fill(slots)]).encode()).hexdigest()[:24]
