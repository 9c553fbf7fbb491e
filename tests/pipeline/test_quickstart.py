"""The whole way on a small model: measure, write data, pack, train, measure again, report; killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lengthen.common.files import read_json
from lengthen.recipe.load import load_recipe
from lengthen.runner import run_recipe
from tests.conftest import make_model


def small_recipe(folder: Path, model: Path, texts: Path) -> Path:
    """The quickstart's stages, shrunk: the same kinds, references and report, with a model made here."""
    questions = {"documents": [str(texts)], "count": 4, "min_tokens": 1000, "max_tokens": 1500}
    data = {
        "extends": "quickstart",
        "name": "small",
        "model": str(model),
        "without": ["code"],
        "stages": [
            {"name": "as-is", "lengths": [512, 1024], "samples": 3, "haystack": "noise"},
            {"name": "yarn-untrained", "lengths": [512, 1024], "samples": 3, "haystack": "noise"},
            {"name": "tables", "count": 4, "min_tokens": 600, "max_tokens": 900},
            {"name": "prose", **questions},
            {"name": "prepare", "row_length": 2048, "sources": [
                {"kind": "chat", "name": "tables", "paths": ["@tables"], "packing": "none"},
                {"kind": "chat", "name": "prose", "paths": ["@prose"], "packing": "none"},
            ]},
            {"name": "train", "length": 2048, "positions": {"type": "skip", "targets": [2048, 1024]}, "steps": 6,
             "warmup": 2, "save_every": 2, "dtype": "float32"},
            {"name": "after", "lengths": [512, 1024], "samples": 3, "haystack": "noise"},
            {"name": "report", "data": ["@tables", "@prose", "@prepare"]},
        ],
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    make_model(folder / "model")
    (folder / "texts").mkdir()
    for number in range(3):
        lines = [
            f"In the year {1700 + number * 7 + i} the harbour of the {i}th town was built anew." for i in range(200)
        ]
        (folder / "texts" / f"{number}.txt").write_text("\n".join(lines))
    return small_recipe(folder, folder / "model", folder / "texts")


@pytest.fixture(scope="module")
def whole_run(material) -> Path:
    os.environ["LENGTHEN_CACHE"] = str(material.parent / "cache")
    return run_recipe(load_recipe(str(material)), material.parent / "whole", say=lambda _: None)


def test_every_stage_leaves_a_whole_manifest(whole_run):
    for name in load_recipe(str(whole_run.parent / "small.yaml")).names:
        assert read_json(whole_run / "stages" / name / "manifest.json")["status"] == "done", name


def test_plain_transformers_loads_and_runs_the_model(whole_run):
    """In a process that never imports lengthen."""
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        f"m, t = M.from_pretrained({str(whole_run / 'model')!r}), T.from_pretrained({str(whole_run / 'model')!r})\n"
        "c = [{'role': 'user', 'content': 'What is the number?'}]\n"
        "x = t.apply_chat_template(c, add_generation_prompt=True, return_tensors='pt', return_dict=True)\n"
        "print(m.generate(**x, max_new_tokens=3, do_sample=False).shape[1] - x['input_ids'].shape[1])\n"
        "print(m.config.rope_parameters['rope_type'], m.config.max_position_embeddings, 'lengthen' in sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    new, *config = out.stdout.split()
    assert 1 <= int(new) <= 3, out.stderr
    assert config == ["yarn", "2048", "False"]


def test_the_model_card_holds_the_measured_figures(whole_run):
    card = (whole_run / "model" / "README.md").read_text()
    assert "yarn-untrained" in card and "as-is" in card


def test_the_report_is_one_offline_page(whole_run):
    page = (whole_run / "report.html").read_text()
    assert "<script" not in page and "http-equiv" not in page
    for word in ("as-is", "yarn-untrained", "quickstart"):
        assert word in page
    assert list((whole_run / "stages/report").rglob("*.csv")), "a CSV lies beside every picture"


def test_metrics_are_one_line_a_step(whole_run):
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_all_arms_were_asked_the_same(whole_run):
    asked = []
    for arm in ("as-is", "yarn-untrained", "after"):
        samples = sorted((whole_run / "stages" / arm / "samples").glob("*"))
        asked.append([path.read_bytes() for path in samples])
    assert asked[0] == asked[1] == asked[2] and asked[0]


def test_killed_again_and_again_it_ends_where_the_whole_run_ended(material, whole_run, tmp_path):
    """SIGKILL while it measures, trains, measures again: the training losses of the two runs are the same."""
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "lengthen", "run", str(material), "--out", str(run)]
    marks = ["stages/as-is/predictions.jsonl", "stages/train/checkpoints", "stages/after/predictions.jsonl"]
    for mark in marks:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while not (run / mark).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    last = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert last.returncode == 0, last.stderr
    assert "Result:" in last.stdout and "Report:" in last.stdout and "More:" in last.stdout

    def losses(folder: Path) -> list[float]:
        return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]

    assert losses(run) == pytest.approx(losses(whole_run), abs=1e-6)
    ids = [json.loads(line)["id"] for line in (run / "stages/as-is/predictions.jsonl").read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 24, "four questions on each of six texts, and none was asked twice"


def test_asking_for_more_samples_keeps_the_answers_it_has(whole_run, material, tmp_path):
    import shutil

    run = tmp_path / "grown"
    shutil.copytree(whole_run, run, symlinks=True)
    before = (run / "stages/as-is/predictions.jsonl").read_text()
    run_recipe(load_recipe(str(material), changes=["as-is.samples=4"]), run, say=lambda _: None)
    after = (run / "stages/as-is/predictions.jsonl").read_text()
    assert after.startswith(before) and len(after.splitlines()) == len(before.splitlines()) + 8
    assert not (run / "stages/as-is.old-1").exists()
