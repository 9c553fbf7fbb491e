"""The benchmarks run from end to end on a tiny model, with their peers beside us, in fresh processes."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from benchmarks import common
from tests.conftest import make_model

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


def test_a_peer_that_is_asked_some_of_the_questions(tmp_path):
    make_model(tmp_path / "model", window=2048)
    out = tmp_path / "evaluate.json"
    common.launch(
        [
            sys.executable, "-m", "benchmarks.evaluate", "many-questions", "--model", str(tmp_path / "model"),
            "--longest", "1024", "--questions", "4", "--peer-questions", "2", "--out", str(out),
        ]
    )  # fmt: skip
    (row,) = json.loads(out.read_text())["rows"]
    details = row["details"]
    assert details["peer_questions"] == details["answers"] == details["identical_answers"] == 2
    assert "the peer was asked 2, its time multiplied by 4/2" in row["work"]
    assert row["theirs"] == pytest.approx(2 * details["theirs_measured_seconds"], rel=0.01)
    assert row["runs"] == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra lm-eval")
def test_a_whole_evaluation_beside_the_harness(tmp_path):
    from benchmarks import evaluate_end

    make_model(tmp_path / "model", window=8192)
    # The task with the longest units: the harness makes 500 samples, whatever its limit.
    (row,) = evaluate_end.rows(str(tmp_path / "model"), samples=2, tasks=["niah_multikey_3"])
    details = row["details"]
    assert [key for key in row if key in SHAPE] == SHAPE and row["id"] == "end-to-end"
    assert set(details["scores"]) == set(details["theirs_scores"]) == {"niah_multikey_3"}
    assert 0 < details["making_seconds"] < row["ours"] and 0 < details["theirs_making_seconds"] < row["theirs"]
