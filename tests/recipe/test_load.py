"""Recipes: reading, extending, changing, and errors that a newcomer can act on."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml

from lengthen.commands import show_text
from lengthen.common.errors import LengthenError
from lengthen.recipe.base import parse_size, size_text
from lengthen.recipe.load import PRESETS, _Loader, load_recipe, merge_recipes, preset_names, read_recipe
from lengthen.recipe.schema import json_schema

BASE = """
name: base
stages:
  - kind: prepare
    name: rows
    row_length: 2k
    sources: [{name: a, paths: a.jsonl, kind: chat}]
  - kind: train
    rows: "@rows"
    steps: 10
"""


def write(folder: Path, text: str, name: str = "r.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("text", "value"), [("64k", 65536), ("64K", 65536), ("20B", 20 * 2**30), ("1.5k", 1536), ("2e6", 2_000_000), (7, 7)]
)
def test_sizes_are_powers_of_1024(text, value):
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["64 kilo", "many", "0.3", True])
def test_a_wrong_size_is_refused(text):
    with pytest.raises(ValueError, match=r"no size|whole number"):
        parse_size(text)


def test_size_text_is_the_inverse_for_round_values():
    assert [size_text(v) for v in (65536, 20 * 2**30, 1000)] == ["64K", "20B", "1,000"]


def test_set_changes_a_stage_by_name_a_list_item_by_name_and_the_recipe(tmp_path):
    recipe = load_recipe(
        write(tmp_path, BASE), changes=["train.steps=3", "train.lr=1e-4", "rows.sources.a.paths=[b.jsonl]", "seed=5"]
    )
    train = recipe.stage("train").model_dump()
    assert (train["steps"], train["lr"], recipe.seed) == (3, 1e-4, 5)
    assert recipe.stage("rows").model_dump()["sources"][0]["paths"] == ["b.jsonl"]


def test_extends_merges_stages_by_name_and_without_removes_one(tmp_path):
    write(tmp_path, BASE + "\nsources: {train.steps: a paper, rows.row_length: another}", "base.yaml")
    child = write(
        tmp_path,
        "extends: base.yaml\nname: child\nwithout: [train]\nstages:\n  - {name: rows, row_length: 4k}\n"
        "  - {kind: prepare, name: more, after: rows, row_length: 2k,"
        " sources: [{name: b, paths: b.jsonl, kind: chat}]}\n",
    )
    recipe = load_recipe(child)
    assert recipe.names == ["rows", "more"]
    assert list(recipe.sources) == ["rows.row_length"], "sources of a removed stage go with it"
    assert recipe.stage("rows").model_dump()["row_length"] == 4096


def test_a_list_that_is_replaced_takes_its_notes_along(tmp_path):
    """As in `extends: prolong` with sources of one's own: notes on sources that are gone would be an error."""
    write(tmp_path, BASE + "\nsources: {rows.sources.a.paths: a paper, rows.sources: all, train.steps: x}", "base.yaml")
    change = "extends: base.yaml\nname: child\nstages:\n  - {name: rows, sources: [{name: b, paths: b, kind: chat}]}\n"
    assert list(load_recipe(write(tmp_path, change)).sources) == ["rows.sources", "train.steps"]
    with pytest.raises(LengthenError, match=r"rows\.sources\.a\.paths"):
        load_recipe(write(tmp_path, change + "sources: {rows.sources.a.paths: my own note}", "own.yaml"))


def test_at_model_is_the_start_model_wherever_it_stands(tmp_path):
    stages = (
        "  - {kind: analyse-tokens, rows: '@rows', base: '@model', tuned: '@train'}\n"
        "  - {kind: merge, models: ['@model', '@train']}\n"
        "  - {kind: evaluate, model: '@merge', suites: [{suite: short, options: {reference: '@model'}}]}\n"
    )
    file = write(tmp_path, BASE.rstrip() + "\n" + stages.replace("rows: '@rows'", "rows: ['@rows']"))
    for model, expected in ((None, "default"), ("./mine", "./mine")):
        recipe = load_recipe(file, model=model)
        assert recipe.stage("analyse-tokens").model_dump()["base"] == expected
        assert recipe.stage("merge").model_dump()["models"] == [expected, "@train"]
        assert recipe.stage("evaluate").model_dump()["suites"][0]["options"] == {"reference": expected}
        assert recipe.stage("train").model_dump()["model"] == expected
        assert "model" not in {name for stage in recipe.stages for name in stage.references()}


@pytest.mark.parametrize("name", preset_names())
def test_another_start_model_leaves_none_of_the_presets_own(name):
    """`--model M` reaches every stage: the preset's start model is named nowhere else."""
    start = load_recipe(name).model
    changed = load_recipe(name, model="./mine").model_dump(exclude={"description", "sources"})
    assert f"'{start}'" not in str(changed) and changed["model"] == "./mine"


def test_a_note_on_the_start_model_and_on_a_whole_stage_is_shown(tmp_path):
    notes = "sources: {model: the paper has another, train: as in the paper}"
    text = show_text(load_recipe(write(tmp_path, f"{BASE}\n{notes}")))
    assert "model: default   # the paper has another" in text
    assert "# source of all of it: as in the paper" in text
    child = write(tmp_path, "extends: r.yaml\nname: child\nwithout: [train]", "child.yaml")
    assert list(load_recipe(child).sources) == ["model"], "the note of a removed stage goes with it"


def test_merging_leaves_the_base_alone():
    base = {"stages": [{"name": "a", "x": {"y": 1}}]}
    merge_recipes(base, {"stages": [{"name": "a", "x": {"y": 2}}]})
    assert base == {"stages": [{"name": "a", "x": {"y": 1}}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: x\nstages: [{kind: trian}]", ["trian", "did you mean 'train'"]),
        (BASE.replace("steps", "stpes"), ["stages.train.stpes", "did you mean 'steps'"]),
        (BASE.replace("row_length: 2k", "row_length: long"), ["stages.rows.row_length", "long", "64k"]),
        (BASE.replace('"@rows"', '"@rowz"'), ["@rowz", "did you mean 'rows'"]),
        (BASE.replace("kind: train", "kind: train\n    name: rows"), ["two stages", "rows"]),
        ("name: x\nstages: []", ["stages", "at least one"]),
        ("name: [", ["not YAML"]),
        ("just words", ["not a recipe"]),
        (BASE + "\nseed: 1\nseed: 2", ["stands twice", "seed"]),
        (BASE + "\nsources: {train.stepz: ProLong}", ["train.stepz"]),
        (BASE.replace("kind: train", "kind: train\n    name: model"), ["no stage can be called 'model'", "`name`"]),
        (BASE.replace('"@rows"', '"@model/rows"'), ["train", "@model", "stands alone"]),
        (BASE + "\nmodel: '@model'", ["model", "@model stands for this key"]),
    ],
)
def test_errors_name_the_place_and_the_way_out(tmp_path, text, words):
    with pytest.raises(LengthenError) as error:
        load_recipe(write(tmp_path, text))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [("train.steps", "key=value"), ("tain.steps=1", "did you mean 'train'"), ("rows.sources.z.path=1", "no item 'z'")],
)
def test_a_wrong_set_is_explained(tmp_path, change, word):
    with pytest.raises(LengthenError, match=word):
        load_recipe(write(tmp_path, BASE), changes=[change])


def test_a_circle_of_extends_is_refused(tmp_path):
    write(tmp_path, "extends: b.yaml\nname: a", "a.yaml")
    write(tmp_path, "extends: a.yaml\nname: b", "b.yaml")
    with pytest.raises(LengthenError, match="circle"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_an_unknown_recipe_names_the_nearest_preset():
    with pytest.raises(LengthenError, match="quickstart"):
        load_recipe("quickstrat")


WRITTEN = sorted([*PRESETS.glob("*.yaml"), *(Path(__file__).parents[2] / "experiments").rglob("*.yaml")])


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_valid_against_the_schema_that_editors_get(path):
    """As it is written, with `extends`, `without` and `after`, and as it is when these are followed."""
    load_recipe(str(path))
    for data in (yaml.load(path.read_text(), Loader=_Loader), read_recipe(str(path))):
        jsonschema.validate(data, json_schema())


def test_the_schema_refuses_an_unknown_key():
    bad = yaml.safe_load(BASE)
    bad["stages"][1]["stpes"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, json_schema())
