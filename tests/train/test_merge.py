"""Merging: the arithmetic, the config check, and a folder that plain transformers loads."""

from __future__ import annotations

import json

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.merge import MergeStage
from lengthen.recipe.stages.train import TrainStage
from lengthen.train import merge as merging
from lengthen.train.merge import merge
from lengthen.train.run import train
from tests.train.rows import ordinary_rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("merge")
    rows = ordinary_rows(folder / "rows")
    settings = TrainStage.model_validate(
        {"name": "t", "model": str(model_folder), "rows": str(rows), "steps": 6, "batch_rows": 2, "lr": 3e-3,
         "length": 2048, "dtype": "float32", "save_every": 2, "keep": 3, "keep_after": 3}
    )  # fmt: skip
    train(settings, StageContext(folder=folder / "out", seed=1))
    return folder / "out"


def weights_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").state_dict()


def test_weighted_average_with_the_longer_config(tmp_path, model_folder, trained, monkeypatch):
    import torch

    stage = {"models": [str(model_folder), str(trained)], "weights": [0.25, 0.75], "config_from": str(trained)}
    result = merge(MergeStage.model_validate(stage), StageContext(folder=tmp_path / "one"))
    old, new = weights_of(model_folder), weights_of(trained / "model")
    merged = weights_of(tmp_path / "one" / "model")
    for name, value in merged.items():
        assert torch.allclose(value, 0.25 * old[name] + 0.75 * new[name], atol=1e-7)
    config = json.loads((tmp_path / "one" / "model" / "config.json").read_text())
    assert config["max_position_embeddings"] == 2048
    assert any("rope_parameters" in note for note in result.notes)
    assert (tmp_path / "one" / "model" / "tokenizer.json").exists()
    # Many files instead of one: the same weights.
    monkeypatch.setattr(merging, "_SHARD", 100_000)
    merge(MergeStage.model_validate(stage), StageContext(folder=tmp_path / "many"))
    assert len(list((tmp_path / "many" / "model").glob("model-*.safetensors"))) > 1
    for name, value in weights_of(tmp_path / "many" / "model").items():
        assert torch.equal(value, merged[name])


def test_other_rope_is_refused(tmp_path, model_folder, trained):
    stage = MergeStage(models=[str(model_folder), str(trained)])
    with pytest.raises(LengthenError, match="config_from"):
        merge(stage, StageContext(folder=tmp_path))
    assert not (tmp_path / "model").exists()


def test_last_checkpoints_of_a_run(tmp_path, trained):
    import torch

    merge(MergeStage(checkpoints=str(trained), last=3), StageContext(folder=tmp_path))
    parts = [weights_of(trained / "checkpoints" / f"checkpoint-{n}") for n in (2, 4, 6)]
    merged = weights_of(tmp_path / "model")
    for name, value in merged.items():
        assert torch.allclose(value, sum(part[name] for part in parts) / 3, atol=1e-6)
    assert not (tmp_path / "model" / "trainer_state.json").exists()
    with pytest.raises(LengthenError, match="keep_after"):
        merge(MergeStage(checkpoints=str(trained), last=4), StageContext(folder=tmp_path / "more"))


def test_adapters_of_checkpoints_are_refused(tmp_path, model_folder):
    settings = TrainStage.model_validate(
        {"name": "t", "model": str(model_folder), "rows": str(ordinary_rows(tmp_path / "rows")), "steps": 2,
         "batch_rows": 2, "dtype": "float32", "save_every": 1, "keep_after": 2, "lora": {"rank": 2}}
    )  # fmt: skip
    train(settings, StageContext(folder=tmp_path / "out", seed=1))
    with pytest.raises(LengthenError, match=r"(?s)hold adapters.*merge finished models"):
        merge(MergeStage(checkpoints=str(tmp_path / "out"), last=2), StageContext(folder=tmp_path / "merged"))
    assert not (tmp_path / "merged" / "model").exists()


def test_last_without_checkpoints_is_refused():
    with pytest.raises(ValueError, match="last has no effect with models"):
        MergeStage(models=["a", "b"], last=4)


def test_other_architecture_is_refused(tmp_path, model_folder):
    from tests.conftest import make_model

    wide = make_model(tmp_path / "wide", hidden=96)
    with pytest.raises(LengthenError, match="shape"):
        stage = MergeStage(models=[str(model_folder), str(wide)], config_from=str(wide))
        merge(stage, StageContext(folder=tmp_path / "out"))
