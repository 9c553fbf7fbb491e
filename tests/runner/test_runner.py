"""The runner on real stages: skipping, changing, resuming, locking, links. The stages here need no model weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json
from lengthen.recipe.load import load_recipe
from lengthen.recipe.schema import build_recipe
from lengthen.runner import plan_run, run_recipe


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, model_folder: Path) -> Path:
    """Two kinds of tables, packed together: three stages, the last reading the two before it."""
    tables = {
        "kind": "tables",
        "count": 6,
        "min_tokens": 500,
        "max_tokens": 900,
        "languages": ["en"],
        "families": ["retrieval"],
    }
    data = {
        "name": "small",
        "model": str(model_folder),
        "stages": [
            {**tables, "name": "one"},
            {**tables, "name": "two", "tasks": ["cell"]},
            {
                "kind": "prepare",
                "name": "rows",
                "row_length": 2048,
                "sources": [
                    {"kind": "chat", "name": "a", "paths": ["@one"]},
                    {"kind": "chat", "name": "b", "paths": ["@two"]},
                ],
            },
        ],
    }
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(scope="module")
def whole(recipe_file: Path) -> Path:
    """One finished run; tests that change it work on a copy."""
    return run_recipe(load_recipe(str(recipe_file)), recipe_file.parent / "whole", say=lambda _: None)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))


def states(recipe, run: Path) -> list[str]:
    return [plan.state for plan in plan_run(recipe, run)]


def test_a_run_does_its_stages_once(recipe_file, run, tmp_path):
    recipe, said = load_recipe(str(recipe_file)), []
    assert states(recipe, tmp_path / "empty") == ["new", "new", "new"]
    assert states(recipe, run) == ["done", "done", "done"]
    before = (run / "stages/rows/manifest.json").stat().st_mtime_ns
    run_recipe(recipe, run, say=said.append)
    assert (run / "stages/rows/manifest.json").stat().st_mtime_ns == before
    assert sum("skipped" in line for line in said) == 3


def test_the_manifest_says_what_was_read_made_and_dropped(run):
    manifest = read_json(run / "stages/rows/manifest.json")
    assert manifest["status"] == "done"
    assert set(manifest["inputs"]) >= {"@one", "@two"}
    assert all(len(row["sha256"]) == 64 for row in manifest["outputs"].values())
    assert manifest["seconds"] > 0 and manifest["peak_memory_gib"] > 0
    assert manifest["versions"]["torch"] and manifest["machine"]["cores"] >= 1


def test_a_changed_setting_reruns_that_stage_and_its_readers_only(recipe_file, run):
    changed = load_recipe(str(recipe_file), changes=["two.max_tokens=1000"])
    assert states(changed, run) == ["done", "changed", "changed"]
    said: list[str] = []
    run_recipe(changed, run, say=said.append)
    assert any("settings or inputs have changed" in line and "two.old-1" in line for line in said)
    assert read_json(run / "stages/two/manifest.json")["settings"]["max_tokens"] == 1000
    assert (run / "stages/two.old-1/chat.jsonl").exists(), "the earlier result is kept aside"
    assert (run / "stages/rows.old-1").exists() and not (run / "stages/one.old-1").exists()


def test_the_same_recipe_gives_the_same_bytes(recipe_file, whole, tmp_path):
    again = run_recipe(load_recipe(str(recipe_file)), tmp_path / "again", say=lambda _: None)
    shards = [{p.relative_to(run): p.read_bytes() for p in run.rglob("*.parquet")} for run in (whole, again)]
    assert shards[0] == shards[1] and shards[0]


def test_redo_runs_a_done_stage_anew_and_spares_readers_when_nothing_differs(recipe_file, run):
    said: list[str] = []
    run_recipe(load_recipe(str(recipe_file)), run, redo=["one"], say=said.append)
    assert [("skipped" in line) for line in said if "done" in line] == [False, True, True]


def test_an_output_that_was_deleted_is_made_again(recipe_file, run):
    (run / "stages/one/chat.jsonl").unlink()
    assert states(load_recipe(str(recipe_file)), run)[0] == "changed"


def test_two_runs_cannot_share_a_folder(recipe_file, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(LengthenError, match="Another process"):
        run_recipe(load_recipe(str(recipe_file)), tmp_path / "run", say=lambda _: None)


def test_a_missing_input_of_the_last_stage_stops_the_run_before_the_first(recipe_file, tmp_path):
    texts = {"kind": "text", "name": "texts", "paths": [str(tmp_path / "texts")]}
    data = yaml.safe_load(recipe_file.read_text())
    data["stages"][-1]["sources"].append(texts)
    recipe = build_recipe(data, "late")
    with pytest.raises(LengthenError) as error:
        run_recipe(recipe, tmp_path / "run", say=lambda _: None)
    assert "Nothing was started" in str(error.value) and "--set" in str(error.value)
    assert f"{tmp_path}/texts: rows.sources.texts.paths" in str(error.value)
    assert not list((tmp_path / "run/stages").iterdir()), "no stage has begun"
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("The harbour wakes before the town. " * 40)
    run_recipe(recipe, tmp_path / "run", say=lambda _: None)
    assert states(recipe, tmp_path / "run") == ["done", "done", "done"]


def test_an_unknown_stage_to_redo_names_the_nearest(recipe_file, tmp_path):
    with pytest.raises(LengthenError, match="did you mean 'rows'"):
        run_recipe(load_recipe(str(recipe_file)), tmp_path / "run", redo=["row"])


def lengthen(*arguments: str, cwd: Path, **more) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **more.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-m", "lengthen", *arguments],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
    )  # fmt: skip


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(recipe_file, whole, tmp_path):
    for wait in (1.0, 2.0, 3.0):
        process = lengthen("run", str(recipe_file), "--out", "killed", cwd=tmp_path)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = lengthen("run", str(recipe_file), "--out", "killed", cwd=tmp_path)
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, out + err
    made = {p.relative_to(whole): p.read_bytes() for p in whole.rglob("*.parquet")}
    again = {p.relative_to(tmp_path / "killed"): p.read_bytes() for p in (tmp_path / "killed").rglob("*.parquet")}
    assert made == again and made


def test_a_finished_run_says_so_and_how_to_run_a_step_anew(recipe_file, run, tmp_path):
    out, _ = lengthen("run", str(recipe_file), "--out", "run", cwd=tmp_path).communicate(timeout=300)
    assert "done before; nothing ran" in out and "--redo" in out
    dry, _ = lengthen("run", str(recipe_file), "--out", "run", "--dry-run", cwd=tmp_path).communicate(timeout=300)
    assert dry.count(" done ") >= 3 and "All is done" in dry


def test_ctrl_c_stops_with_one_line_and_loses_nothing(recipe_file, tmp_path):
    process = lengthen("run", str(recipe_file), "--out", "run", "--set", "one.count=4000", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/stages/one/manifest.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert "run the same command again" in err and "Traceback" not in err
    assert json.loads((tmp_path / "run/stages/one/manifest.json").read_text())["status"] == "running"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where others may not")
def test_a_folder_without_write_permission_is_explained(recipe_file, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(LengthenError, match="cannot be written"):
        run_recipe(load_recipe(str(recipe_file)), tmp_path / "locked" / "run")


def test_a_full_disk_stops_with_a_plain_sentence(recipe_file, tmp_path):
    """/dev/full accepts opening and answers every write with ENOSPC, as a full disk does."""
    from lengthen.common.files import explain_disk

    with (
        pytest.raises(LengthenError, match="disk is full"),
        explain_disk(Path("/dev/full")),
        open("/dev/full", "wb") as file,
    ):
        file.write(b"x" * 10_000_000)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["run", "quickstrat"], ["did you mean 'quickstart'"], 1),
        (["run", "quickstart", "--model", "./nowhere"], ["no such folder"], 1),
        (["run", "quickstart", "--colour"], ["--colour", "--help"], 2),
        (["inspect", "nowhere"], ["There is no nowhere"], 1),
    ],
)
def test_the_command_line_explains_mistakes_without_a_traceback(arguments, words, code, tmp_path):
    process = lengthen(*arguments, cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    assert all(word in err for word in words) and "Traceback" not in err


def test_no_torch_before_a_stage_needs_it(tmp_path):
    code = (
        "import sys, lengthen, lengthen.cli, lengthen.commands, lengthen.recipe.load as l; l.load_recipe('quickstart');"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert out.stdout.split() == ["False", "False"], out.stderr
