"""Documentation says what the results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import common, tables
from lengthen.common.errors import LengthenError

HEAD = {
    "machine": {"processor": "Some CPU", "cores": 2, "memory_gib": 15.6},
    "versions": {"torch": "2.13.0", "python": "3.11.7"},
    "date": "2026-01-02",
    "commit": "0123abcd",
}


def repository(root: Path, page: str) -> Path:
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text("# x\n\n<!-- results:quickstart -->\n<!-- /results:quickstart -->\n\nend\n")
    (root / "docs" / "page.md").write_text(page)
    return root


def put(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def score(arm: str, length: int, value: float) -> dict:
    return {"arm": arm, "recipe": "quickstart", "model": "M", "suite": "needle", "task": "single", "length": length,
            "score": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.05), "n": 20}  # fmt: skip


def test_the_repositorys_pages_agree_with_its_results():
    assert tables.differences() == []


def test_a_benchmark_becomes_a_table_and_a_change_is_seen(tmp_path):
    root = repository(tmp_path, "<!-- results:benchmarks/train -->\nold\n<!-- /results:benchmarks/train -->\n")
    made = common.row("packed-16k", "a step | a row", "TRL", [2100.0, 2000.0], [400.0, 500.0], "tokens/s",
                      better="higher")  # fmt: skip
    file = root / "results" / "benchmarks" / "train.json"
    put(file, {**HEAD, "rows": [made]})
    assert tables.main(["--check", "--root", str(root)]) == 1
    assert tables.main(["--root", str(root)]) == 0
    page = (root / "docs" / "page.md").read_text()
    assert "| `packed-16k` | a step \\| a row | TRL | 2,050 tokens/s | 450 tokens/s | 4.62 (range 1.25) | 2 |" in page
    assert "old" not in page and "Some CPU, 2 cores, 16 GiB; torch 2.13.0; measured 2026-01-02 at 0123abcd" in page
    assert tables.main(["--check", "--root", str(root)]) == 0
    put(file, {**HEAD, "rows": [{**made, "ours": 2060.0}]})
    assert tables.main(["--check", "--root", str(root)]) == 1


def test_a_result_on_no_page_is_an_error(tmp_path, capsys):
    root = repository(tmp_path, "nothing\n")
    put(root / "results" / "benchmarks" / "lonely.json", {**HEAD, "rows": []})
    assert tables.main(["--root", str(root)]) == 1
    assert "lonely.json is on no page" in capsys.readouterr().err


def test_the_readme_shows_the_headline(tmp_path):
    root = repository(tmp_path, "nothing\n")
    empty = (root / "README.md").read_text()
    assert tables.main(["--root", str(root)]) == 0 and (root / "README.md").read_text() == empty
    minutes = {"arm": "quickstart", "recipe": "", "model": "M", "task": "time", "value": 9.0, "unit": "minutes"}
    other = {**score("as-is", 4096, 0.5), "suite": "ruler", "task": "vt"}
    rows = [score("quickstart", 16384, 0.9), score("as-is", 4096, 0.95), score("as-is", 16384, 0.0), minutes, other]
    put(root / "results" / "quickstart" / "summary.json",
        {**HEAD, "command": "lengthen run quickstart", "seed": 0, "rows": rows})  # fmt: skip
    assert tables.main(["--root", str(root)]) == 0
    page = (root / "README.md").read_text()
    assert "| arm | 4K | 16K |" in page
    assert "| as-is | **95%** (85%-100%; n 20) | **0%** (0%-5%; n 20) |" in page
    assert "| quickstart | - | **90%** (80%-95%; n 20) |" in page
    assert "`lengthen run quickstart`, seed 0" in page and "(results/quickstart/)" in page
    assert page.startswith("# x\n") and page.endswith("\nend\n")


def test_marks_inside_code_are_left_alone():
    page = "```\n<!-- results:benchmarks/train -->\nshown\n<!-- /results:benchmarks/train -->\n```\n"
    assert tables.render(page) == page


@pytest.mark.parametrize("better, expected", [("lower", 2.0), ("higher", 0.5)])
def test_the_ratio_says_how_many_times_better_we_are(better, expected):
    assert common.row("a", "w", "p", [10.0, 10.0], [20.0], "s", better=better)["ratio"] == expected


def test_the_peer_and_we_take_turns():
    order = []
    common.alternate(3, lambda n: order.append(f"ours {n}"), lambda n: order.append(f"theirs {n}"))
    assert order == ["ours 0", "theirs 0", "theirs 1", "ours 1", "ours 2", "theirs 2"]


def test_a_row_replaces_only_its_own(tmp_path):
    out = tmp_path / "train.json"
    first, second = (common.row(name, "w", "p", [1.0], [2.0], "s", better="lower") for name in "ab")
    common.store("train", [first, second], out)
    common.store("train", [{**second, "ours": 0.5}], out)
    found = json.loads(out.read_text())
    assert [(r["id"], r["ours"]) for r in found["rows"]] == [("a", 1.0), ("b", 0.5)]
    assert {"machine", "versions", "date", "commit", "rows"} == set(found)
    found["machine"]["processor"] = "another"
    out.write_text(json.dumps(found))
    with pytest.raises(LengthenError, match="another machine"):
        common.store("train", [first], out)
