"""The whole loop on a tiny real model in this process: two macro-iterations with real training in between."""

import json
import sqlite3

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.self_lengthen import SelfLengthenStage
from lengthen.selflengthen.loop import self_lengthen
from lengthen.selflengthen.serve import role_folder
from lengthen.selflengthen.store import describe
from tests.selflengthen.parts import TINY


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    settings = SelfLengthenStage.model_validate({**TINY, "model": str(tiny)})
    return settings, folder, self_lengthen(settings, StageContext(folder, seed=3, stage="loop"))


def test_the_loop_trains_and_exports(run):
    _, folder, result = run
    for iteration in (1, 2):
        for role in ("generator", "extender"):
            place = role_folder(folder, iteration, role)
            assert (place / "model" / "config.json").exists() and (place / "adapter" / "adapter_config.json").exists()
            steps = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
            assert steps and all(step["loss"] == step["loss"] for step in steps)
    assert (folder / "model" / "config.json").exists()
    rows = [json.loads(line) for line in (folder / "chat.jsonl").read_text().splitlines()]
    assert rows and result.counts["rows"] == len(rows)
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
    assert all(row["meta"]["demand"] in row["messages"][0]["content"] for row in rows)
    growth = json.loads((folder / "growth.json").read_text())["rows"]
    assert {row["iteration"] for row in growth if row["name"] == "clean words, median"} == {0, 1, 2, 3}
    assert result.drops["cut_by_limit"]["items"] > 0 and result.counts["errors"] == 0


def test_parquet_opens_as_chat_messages(run):
    from datasets import load_dataset

    _, folder, result = run
    data = load_dataset("parquet", data_files=str(folder / "chat.parquet"), split="train", cache_dir=str(folder / "c"))
    assert len(data) == result.counts["rows"] and data[0]["messages"][0]["role"] == "user"


def test_a_finished_stage_asks_nothing_when_it_runs_again(run):
    settings, folder, result = run
    with sqlite3.connect(folder / "state.sqlite") as db:
        before = db.execute("SELECT COUNT(*), SUM(sends) FROM requests").fetchone()
    again = self_lengthen(settings, StageContext(folder, seed=3, stage="loop"))
    with sqlite3.connect(folder / "state.sqlite") as db:
        assert db.execute("SELECT COUNT(*), SUM(sends) FROM requests").fetchone() == before
    assert again.counts == result.counts and again.figures == result.figures


def test_the_page_and_the_reasons(run):
    _, folder, _ = run
    page = describe(folder / "state.sqlite")
    for word in ("Phases", "write", "cut_by_limit", "Measured after each macro-iteration", "generator-1", "final"):
        assert word in page
    rules = json.loads((folder / "rejections.json").read_text())["rules"]
    cut = next(row for row in rules if row["rule"] == "cut_by_limit")
    assert cut["count"] > 0 and cut["examples"][0]["beginning"] and 0 < cut["share"] <= 1
    with pytest.raises(LengthenError, match="no state file"):
        describe(folder / "chat.jsonl")


def test_stacked_adapters_equal_the_merged_model(run, tiny):
    """What vLLM is given by name (starting model + adapter) is what was trained (merged twice)."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    _, folder, _ = run
    place = role_folder(folder, 2, "generator")
    assert json.loads((place / "adapter" / "adapter_config.json").read_text())["r"] == 8
    ids = torch.arange(3, 40).unsqueeze(0)
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    plain = base(ids).logits
    served = PeftModel.from_pretrained(base, place / "adapter")(ids).logits
    trained = AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32)(ids).logits
    moved = (trained - plain).abs().max()
    assert moved > 0.01 and (served - trained).abs().max() < 1e-3 * moved


def test_other_settings_or_a_second_process_are_refused(run):
    from filelock import FileLock

    settings, folder, _ = run
    for changed, said in (
        ({"iterations": 3}, "iterations was 2 and is now 3: .* macro-iteration 3"),
        ({"select": {"strength": 1.5}}, r"select\.strength was 2.0 and is now 1.5: .* `write`"),
    ):
        other = SelfLengthenStage.model_validate({**settings.model_dump(), **changed})
        with pytest.raises(LengthenError, match=said):
            self_lengthen(other, StageContext(folder, seed=3, stage="loop"))
    with FileLock(folder / ".lock"), pytest.raises(LengthenError, match="Another process"):
        self_lengthen(settings, StageContext(folder, seed=3, stage="loop"))


@pytest.mark.slow
def test_a_launched_training_leaves_the_same_files(run, tiny, tmp_path):
    """`training.launch` runs the same two stages as a recipe of its own; here with plain Python as the launcher."""
    import sys

    from safetensors.torch import load_file

    from lengthen.models import resolve_model
    from lengthen.selflengthen.training import train_on

    settings, folder, _ = run
    place = role_folder(folder, 1, "generator")
    rows = [json.loads(line) for line in (place / "chat.jsonl").read_text().splitlines()]
    made = {}
    for name, launch in (("here", []), ("launched", [sys.executable])):
        training = settings.training.model_copy(update={"launch": launch})
        made[name] = train_on(
            rows, str(resolve_model(str(tiny))), training, StageContext(tmp_path, seed=1), tmp_path / name
        )
        assert (made[name] / "adapter" / "adapter_config.json").exists()
        steps = (made[name] / "metrics.jsonl").read_text().splitlines()
        assert len(steps) == -(-len(rows) // 4)
    weights = [load_file(made[name] / "model" / "model.safetensors") for name in made]
    assert all(weights[0][key].shape == weights[1][key].shape for key in weights[1])


def test_several_ranks_are_refused(run, monkeypatch):
    settings, folder, _ = run
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LengthenError, match="runs as one process"):
        self_lengthen(settings, StageContext(folder, seed=3, stage="loop"))


def test_a_model_without_chat_template_is_refused(tiny, tmp_path):
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    for name in ("chat_template.jinja",):
        (base / name).unlink(missing_ok=True)
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    settings = SelfLengthenStage.model_validate({**TINY, "model": str(base)})
    with pytest.raises(LengthenError, match="no chat template"):
        self_lengthen(settings, StageContext(tmp_path / "run", seed=1))


def test_too_few_survivors_stop_with_the_reasons(tiny, tmp_path):
    changed = {**TINY, "extend": {"tries": 1, "rounds": 1, "growth": 50.0}, "held_out": {"count": 0}}
    settings = SelfLengthenStage.model_validate({**changed, "model": str(tiny)})
    with pytest.raises(LengthenError, match="leaves 0 texts to train on") as caught:
        self_lengthen(settings, StageContext(tmp_path, seed=1))
    assert "extension: " in str(caught.value) and "lower extend.growth" in str(caught.value)
