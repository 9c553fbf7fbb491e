"""Numbers that the report derives."""

from __future__ import annotations

import pytest

from lengthen.report.collect import Arm, StageRecord
from lengthen.report.compare import averages, depth_maps, paired


def arm(label, folder, scores=(), answers=()):
    return Arm(label, "m", StageRecord("measure", "evaluate", folder, {}), tuple(scores), (), tuple(answers), ())


def row(task, length, score, low=None, high=None, n=10):
    return {"suite": "ruler", "task": task, "length": length, "score": score, "low": low, "high": high, "n": n}


def answer(index, score, length=4096, context=None, **more):
    found = {"id": f"s/t/{length}/{index}", "suite": "s", "task": "t", "length": length, "score": score, **more}
    return found | ({"context": context} if context else {})


def test_average_over_tasks_leaves_out_average_rows(tmp_path):
    one = arm("a", tmp_path, [row("vt", 4096, 0.8, 0.7, 0.9), row("cwe", 4096, 0.4, 0.3, 0.5), row("average", 4096, 1)])
    point = averages(one, "ruler")[4096]
    assert point.score == pytest.approx(0.6) and point.tasks == ("vt", "cwe") and point.n == 20
    # Two half-widths of 0.1 in quadrature over two tasks: 0.1 * sqrt(2) / 2.
    assert point.high - point.score == pytest.approx(0.0707, abs=1e-4)


def test_pairs_are_matched_by_sample_and_drawn_over_contexts(tmp_path):
    before = arm("a", tmp_path / "a", answers=[answer(i, float(i % 2), context=f"c{i // 4}") for i in range(40)])
    after = arm("b", tmp_path / "b", answers=[answer(i, 1.0, context=f"c{i // 4}") for i in range(60)])
    (pair,) = paired(before, after)
    assert (pair.contexts, pair.better, pair.worse) == (10, 20, 0)
    assert pair.difference == pytest.approx(0.5)
    # All ten contexts gain the same half; the interval says how many others may still differ: t = 0.025^(1/10) = 0.69.
    assert pair.low == pytest.approx(0.037, abs=1e-3) and pair.high == pytest.approx(0.654, abs=1e-3)


def test_paired_interval_covers_what_varies(tmp_path):
    before = arm("a", tmp_path / "a", answers=[answer(i, 0.0) for i in range(20)])
    after = arm("b", tmp_path / "b", answers=[answer(i, float(i < 10)) for i in range(20)])
    (pair,) = paired(before, after)
    assert pair.low < 0.35 and pair.high > 0.65 and pair.low > 0.2


def test_cells_with_other_sample_files_are_not_paired(tmp_path):
    for name, mark in (("a", "1111"), ("b", "2222")):
        (tmp_path / name / "samples").mkdir(parents=True)
        (tmp_path / name / "samples" / f"s-t-4096-{mark}.jsonl").write_text("")
    one, two = (arm(n, tmp_path / n, answers=[answer(i, 1.0) for i in range(3)]) for n in "ab")
    assert paired(one, two) == []
    (tmp_path / "b" / "samples" / "s-t-4096-1111.jsonl").write_text("")
    assert len(paired(one, two)) == 1


def test_depth_map_shows_missing_cells_as_none(tmp_path):
    rows = [answer(i, 1.0, depth=i / 19) for i in range(20)]
    rows += [answer(i, 0.0, length=8192, depth=0.05) for i in range(2)]
    (found,) = depth_maps([arm("a", tmp_path, answers=rows)])["s", "t"]
    assert found.lengths == (4096, 8192) and len(found.depths) == 10
    assert found.scores[0] == (1.0, 0.0) and found.samples[0] == (2, 2)
    assert found.scores[5] == (1.0, None)
    # Depth 1.0 falls into the last row.
    assert sum(cells[0] for cells in found.samples) == 20


def test_few_exact_depths_make_their_own_rows(tmp_path):
    rows = [answer(i, 1.0, depth=d) for i, d in enumerate((0.0, 0.5, 1.0))]
    (found,) = depth_maps([arm("a", tmp_path, answers=rows)])["s", "t"]
    assert found.depths == ("0%", "50%", "100%")
