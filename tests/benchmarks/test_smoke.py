"""The training benchmark runs from end to end on a tiny model, with TRL beside us, in fresh processes."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import common

SHAPE = ["id", "work", "peer", "ours", "theirs", "unit", "ratio", "runs", "spread"]


def run_tiny(out, name: str, *more: str) -> dict:
    common.launch(
        [sys.executable, "-m", "benchmarks.train", "--tiny", "--only", name, "--runs", "1", "--out", str(out), *more]
    )
    found = json.loads(out.read_text())
    assert [one["id"] for one in found["rows"]] == [name]
    row = found["rows"][0]
    assert [key for key in row if key in SHAPE] == SHAPE and row["runs"] == 1
    assert row["ours"] > 0 and row["theirs"] > 0 and row["ratio"] > 0
    return row


def test_packed_rows_and_the_same_first_loss(tmp_path):
    row = run_tiny(tmp_path / "train.json", "packed-16k", "--layers", "1")
    assert row["work"].endswith("first 1 of 2 layers")
    assert row["details"]["number_format"] == "float32" and row["details"]["number_format_reason"]
    # A row exists only when both sides' first losses agree: about log(vocabulary) for a random model.
    assert row["details"]["first_loss"] == pytest.approx(6.4, abs=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single-16k", "memory-32k", "start", "dp2"])
def test_the_other_rows(tmp_path, name):
    run_tiny(tmp_path / "train.json", name)
