"""Effective lengths, weighted averages and HELMET's categories, and where a reader finds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lengthen.evaluate.helmet.tasks import TASKS, category_metrics
from lengthen.report.collect import Arm, StageRecord
from lengthen.report.lengths import effective, helmet_categories
from lengthen.report.run import write_comparison
from tests.report.folders import write_stage


def arm(folder, scores, values=(), native=0):
    return Arm(
        "a", "m", StageRecord("measure", "evaluate", folder, {}), tuple(scores), tuple(values), (), (), {}, native
    )


def row(task, length, score, suite="ruler"):
    low, high = max(0.0, score - 0.1), min(1.0, score + 0.1)
    return {"suite": suite, "task": task, "length": length, "score": score, "low": low, "high": high, "n": 10}


def test_effective_length_follows_rulers_rule_and_the_own_score(tmp_path):
    scores = {4096: 0.95, 8192: 0.86, 16384: 0.856, 32768: 0.5, 65536: 0.9}
    found = effective(arm(tmp_path, [row("vt", n, s) for n, s in scores.items()]), "ruler")
    # 85.6 itself is not above 85.6; 0.856 is 90% of the own 0.95; the good 64K lies behind a bad 32K.
    assert found is not None and (found.absolute, found.relative, found.base) == (8192, 16384, 4096)
    weak = effective(arm(tmp_path, [row("vt", 4096, 0.2), row("vt", 8192, 0.18)]), "ruler")
    assert weak is not None and (weak.absolute, weak.relative) == (None, 8192)
    nothing = effective(arm(tmp_path, [row("vt", 4096, 0.0), row("vt", 8192, 0.0)]), "ruler")
    assert nothing is not None and (nothing.absolute, nothing.relative) == (None, None)
    assert effective(arm(tmp_path, [row("vt", 4096, 1.0)]), "ruler") is None


def test_own_score_is_taken_at_the_native_length_where_it_was_measured(tmp_path):
    rows = [row("vt", n, s) for n, s in ((4096, 1.0), (8192, 0.8), (16384, 0.7))]
    for native, base, relative in ((0, 4096, 4096), (8192, 8192, 16384), (2048, 4096, 4096)):
        found = effective(arm(tmp_path, rows, native=native), "ruler")
        assert found is not None and (found.base, found.relative) == (base, relative)


def test_arms_that_call_different_lengths_native_are_judged_from_the_shortest(tmp_path):
    """A raised RoPE base leaves no trace of the first window in the config: the trained arm names 2K, its start 1K."""
    runs = []
    for name, native, scores in (("start", 1024, (0.9, 0.8, 0.1)), ("trained", 2048, (0.9, 0.85, 0.3))):
        run = evaluation(tmp_path / name, [row("vt", n, s) for n, s in zip((512, 1024, 2048), scores)])
        path = run / "stages" / "measure" / "scores.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "native": native}))
        runs.append(run)
    for chosen, base, reach in ((runs, "512", 1024), (runs[1:], "2K", 2048)):
        write_comparison(chosen, tmp_path / f"out-{len(chosen)}")
        summary = json.loads((tmp_path / f"out-{len(chosen)}" / "summary.json").read_text())
        found = {r["arm"]: r["value"] for r in summary["rows"] if f"85% of own score at {base}" in r["task"]}
        assert len(found) == len(chosen) and set(found.values()) == {reach}


def test_lengths_without_all_tasks_are_left_out_and_named(tmp_path):
    rows = [row("vt", n, 0.9) for n in (512, 1024, 2048)] + [row("cwe", n, 0.5) for n in (1024, 2048)]
    found = effective(arm(tmp_path, rows), "ruler")
    assert found is not None and (found.lengths, found.left_out) == ((1024, 2048), (512,))
    assert found.tasks == ("vt", "cwe") and found.absolute is None
    assert found.rising == found.falling == pytest.approx(0.7)


def whole_helmet(length, score):
    """Rows of every number that enters HELMET's averages: scores, and judged values."""
    rows = [row(task.name, length, score, "helmet") for task in TASKS.values()]
    values = [{"suite": "helmet", "task": f"{task.name}:{metric}", "length": length, "value": score, "n": 10}
              for task in TASKS.values() for metric in task.metrics if metric != "score"]  # fmt: skip
    return rows, values


def test_categories_of_helmet_only_where_whole(tmp_path):
    names = ("json_kv", "ruler_niah_mk_2", "ruler_niah_mk_3", "ruler_niah_mv", "nq")
    part = [row(name, 8192, s, "helmet") for name, s in zip(names, (0.2, 0.4, 0.6, 0.8, 1.0))]
    (only,) = helmet_categories(arm(tmp_path, part))
    assert (only.name, only.parts) == ("recall", category_metrics()["recall"])
    point = only.points[8192]
    assert (point.score, point.n) == (pytest.approx(0.5), 40)
    # Four half-widths of 0.1 in quadrature over four sets.
    assert point.low is not None and point.score - point.low == pytest.approx(0.05)
    scores, values = whole_helmet(16384, 0.25)
    found = helmet_categories(arm(tmp_path, [*part, *scores], values))
    assert [one.name for one in found] == [*category_metrics(), "helmet"]
    assert found[-1].points.keys() == {16384} and found[-1].points[16384].score == 0.25
    assert next(one for one in found if one.name == "summ").points[16384].low is None, "judged numbers have no interval"


def evaluation(run: Path, rows, values=()):
    folder = write_stage(run, "measure", "evaluate")
    found = {"model": "m", "arm": run.name, "rows": [*rows, *values], "notes": ["cwe at 512 could not be made: short"]}
    (folder / "scores.json").write_text(json.dumps(found))
    (folder / "predictions.jsonl").write_text("")
    return run


def test_reader_finds_them_in_page_text_and_summary(tmp_path):
    rows = [row("vt", n, s) for n, s in ((512, 1.0), (1024, 0.9), (2048, 0.6))]
    rows += [row("cwe", n, s) for n, s in ((1024, 0.9), (2048, 0.6))]
    rows += [row("longen", 0, 0.3, "longform"), row("longbench_write", 0, 0.7, "longform")]
    scores, values = whole_helmet(16384, 0.25)
    write_comparison([evaluation(tmp_path / "one", [*rows, *scores], values)], tmp_path / "out")
    page, text = (tmp_path / "out/report.html").read_text(), (tmp_path / "out/report.md").read_text()
    # wAvg over 1K and 2K: (0.9 + 2 * 0.6) / 3 and (2 * 0.9 + 0.6) / 3.
    for part in ("70.0%", "80.0%", "wAvg (inc)", "1 of 2 tasks", "a task is missing", "all seven", "json_kv",
                 "longform: longen", "cwe at 512 could not be made", "Llama-3.1-8B-Instruct", "NVIDIA/RULER at c3f5e3b",
                 "good to about one point"):  # fmt: skip
        assert part in page, part
        assert part in text, part
    assert ">0</th>" not in page and "| 0 |" not in text, "a task without length has no column 0"
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    by_task = {r["task"]: r for r in summary["rows"] if "value" in r or r["task"] in ("longen", "longform")}
    assert "longform" not in by_task and by_task["longen"]["score"] == 0.3
    assert by_task["ruler: wAvg (inc)"]["value"] == pytest.approx(0.7)
    assert by_task["ruler: wAvg (dec)"]["tasks"] == ["vt", "cwe"] and by_task["ruler: wAvg (dec)"]["lengths"] == [
        1024,
        2048,
    ]
    assert by_task["ruler: effective length (above 85.6%)"]["value"] == 1024
    assert by_task["ruler: effective length (85% of own score at 1K)"]["value"] == 1024
    assert by_task["helmet: recall"]["value"] == 0.25 and len(by_task["helmet: recall"]["tasks"]) == 4
    assert by_task["helmet: helmet"]["length"] == 16384
