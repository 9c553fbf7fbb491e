"""The machine's check list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lengthen import doctor
from lengthen.doctor import Check, Extra, examine, render


def test_examine_knows_this_machine():
    checks = {check.name: check for check in examine()}
    assert checks["Python"].state == "good" and checks["torch"].state == "good"
    assert checks["transformers"].state == "good" and "TFLOP/s" in checks["bf16"].found
    assert str(os.environ["LENGTHEN_CACHE"]) in checks["cache"].found
    assert checks["default model"].state == "absent"  # each test has an empty cache
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert {extra.name for extra in doctor.EXTRAS} == set(project["optional-dependencies"]) <= set(checks)


def test_render_gives_advice_and_a_verdict():
    good = render([Check("Python", "good", "3.12")])
    assert good.endswith("Ready. Start with: lengthen run quickstart")
    bad = render([Check("Python", "good", "3.12"), Check("disk", "bad", "0 GiB free here", "free some space")])
    assert "-> free some space" in bad and "Not ready: disk." in bad


def test_absent_extra_says_how_to_install_it():
    check = doctor._extra(Extra("x", "something", ("no_such_module_at_all",)), "pip install 'lengthen[x]'")
    assert check.state == "absent" and "no_such_module_at_all" in check.found and check.advice.startswith("pip install")
    assert Extra("x", "", ("json",), ("no-such-program", "python3", os.path.basename(sys.executable))).missing() == []


def test_unwritable_cache_is_bad(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "file" / "cache"))
    checks = {check.name: check for check in examine()}
    assert checks["cache"].state == "bad" and "LENGTHEN_CACHE" in checks["cache"].advice


def test_a_library_out_of_range_is_bad(monkeypatch):
    real = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.0" if name == "transformers" else real(name))
    check = doctor._library("transformers")
    assert check.state == "bad" and "needs" in check.found and "pip install" in check.advice


@pytest.mark.parametrize("threads", ["1"])
def test_command_prints_the_list(threads, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "LENGTHEN_CACHE": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "lengthen", "doctor"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "Ready." in run.stdout and "OMP_NUM_THREADS=1" in run.stdout
    assert json.dumps(run.stdout).count("BAD") == 0
