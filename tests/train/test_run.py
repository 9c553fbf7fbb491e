"""Training end to end: rows and a model in, a plain Hugging Face folder out."""

from __future__ import annotations

import json
import random

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.train import TrainStage, recomputes
from lengthen.train.rope import Extension, check_targets
from lengthen.train.run import train
from tests.train.rows import make_row, ordinary_rows, write_rows


def stage(model, rows, **changes) -> TrainStage:
    plain = {"name": "train", "model": str(model), "rows": str(rows), "steps": 6, "batch_rows": 4, "lr": 3e-3,
             "dtype": "float32", "warmup": 2, "save_every": 3}  # fmt: skip
    return TrainStage.model_validate({**plain, **changes})


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_trained_model_loads_in_plain_transformers(tmp_path, model_folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = ordinary_rows(tmp_path / "rows")
    settings = stage(
        model_folder, rows, length=2048, steps=30, rope={"type": "yarn"}, positions={"type": "skip", "unit": [4, 12]}
    )
    result = train(settings, StageContext(folder=tmp_path / "out", seed=1))
    lines = metrics(tmp_path / "out")
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert all(line["tokens"] == 4 * 96 and 0 < line["trained_tokens"] < 4 * 96 for line in lines)
    assert {"grad_norm", "learning_rate", "tokens_per_second", "imbalance", "padding", "share_of_peak"} <= set(lines[0])
    assert result.counts["tokens"] == 30 * 4 * 96

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert model.config.max_position_embeddings == 2048
    assert model.config.rope_parameters["rope_type"] == "yarn" and model.config.rope_parameters["factor"] == 4.0
    assert tokenizer.chat_template
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        after = model(ids, labels=ids).loss
        before = AutoModelForCausalLM.from_pretrained(model_folder)(ids, labels=ids).loss
    assert after < before
    assert not (tmp_path / "out" / "checkpoints").exists() or not list((tmp_path / "out" / "checkpoints").iterdir())


def test_bfloat16_with_master_weights_learns(tmp_path, model_folder):
    rows = ordinary_rows(tmp_path / "rows")
    train(stage(model_folder, rows, steps=15, dtype="bfloat16"), StageContext(folder=tmp_path / "out", seed=1))
    lines = metrics(tmp_path / "out")
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]


def test_same_settings_same_losses(tmp_path, model_folder):
    rows = ordinary_rows(tmp_path / "rows")
    for name, workers in (("a", 0), ("b", 2)):
        train(stage(model_folder, rows, workers=workers), StageContext(folder=tmp_path / name, seed=3))
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("a", "b")]
    assert losses[0] == losses[1]


def test_derived_values_have_reasons(tmp_path, model_folder):
    rows = ordinary_rows(tmp_path / "rows")
    settings = TrainStage(name="t", model=str(model_folder), rows=[str(rows)], epochs=1, length=1024, dtype="float32")
    result = train(settings, StageContext(folder=tmp_path / "out"))
    assert result.counts["steps"] == 24
    assert {"rope.base", "rope.factor", "batch_rows", "steps", "checkpointing", "save_every"} <= set(result.derived)
    assert all(entry["reason"] for entry in result.derived.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope": {"type": "none"}, "length": 4096}, "rope.type is none"),
        ({"rope": {"type": "ntk", "base": 1e6}, "length": 4096}, "rope.base has no meaning"),
        ({"rope": {"type": "longrope"}, "length": 4096}, "short_factor"),
        ({"rope": {"type": "yarn"}, "length": 256}, "does not exceed"),
        ({"batch_rows": 3, "micro_batch": 2}, "no multiple"),
        ({"optimizer_from": "nowhere"}, "keep_after"),
        ({"activation_offload": True}, "needs a GPU"),
        ({"liger": True}, "needs a GPU"),
        ({"report_to": ["tensorbord"]}, "did you mean 'tensorboard'"),
        ({"steps": None, "tokens": 800, "warmup": 5}, "warmup is 5 steps, the training 2"),
        ({"positions": {"type": "pose", "targets": [4096]}}, "targets reach 4,096, but the model has 512 positions"),
        ({"positions": {"type": "skip", "targets": [513]}, "rope": {"type": "none"}}, "set the stage's length to 513"),
        ({"lora": {"targets": ["q_proj", "v_porj"]}}, "(?s)no layer of the model is called 'v_porj'.*'v_proj'"),
        ({"lora": {"targets": ["self_attn"]}}, r"lora.targets \['self_attn'\]: peft refuses"),
    ],
)
def test_refusals_before_compute(tmp_path, model_folder, change, words):
    rows = ordinary_rows(tmp_path / "rows")
    with pytest.raises(LengthenError, match=words):
        train(stage(model_folder, rows, **change), StageContext(folder=tmp_path / "out"))
    assert not (tmp_path / "out" / "model").exists()


def test_a_unit_setting_that_no_row_heeds_is_refused_and_units_are_counted(tmp_path, model_folder):
    rng = random.Random(4)
    talks = [{**make_row(rng, [60], 300), "loss_mask": [0] * 40 + [1] * 20} for _ in range(8)]
    own = write_rows(tmp_path / "own", [{**talk, "unit_lens": [10, 20, 30]} for talk in talks])
    change = {"positions": {"type": "skip", "targets": [512], "unit": [4, 12]}, "steps": 1, "warmup": 0}
    with pytest.raises(LengthenError, match=r"positions.unit = \[4, 12\] has no effect: all rows"):
        train(stage(model_folder, own, **change), StageContext(folder=tmp_path / "out"))
    del change["positions"]["unit"]
    result = train(stage(model_folder, own, **change), StageContext(folder=tmp_path / "out"))
    assert "; 8 of 8 rows carry their own units" in result.notes[0] and "stay plain" not in result.notes[0]
    whole = write_rows(tmp_path / "whole", [{**talk, "unit_lens": [60]} for talk in talks])
    with pytest.raises(LengthenError, match=r"positions.type skip has no effect: each document of the 8 rows is one"):
        train(stage(model_folder, whole, **change), StageContext(folder=tmp_path / "plain"))
    some = write_rows(tmp_path / "some", [{**t, "unit_lens": u} for t, u in zip(talks, [[60], [10, 50]] * 4)])
    result = train(stage(model_folder, some, **change), StageContext(folder=tmp_path / "mixed"))
    assert "4 of them one a document, so that their positions stay plain" in result.notes[0]


def test_targets_that_the_model_reads_are_trained(tmp_path, model_folder):
    """Within an extended model's window without an extension of its own; a little beyond the length with one."""
    rows, skip = ordinary_rows(tmp_path / "rows"), {"type": "skip", "unit": [4, 12]}
    first = {"length": 1024, "rope": {"type": "yarn"}, "positions": {**skip, "targets": [1200]}, "steps": 1}
    train(stage(model_folder, rows, **first, warmup=0), StageContext(folder=tmp_path / "one"))
    second = {"positions": {**skip, "targets": [1024]}, "steps": 1, "warmup": 0}
    train(stage(tmp_path / "one", rows, **second), StageContext(folder=tmp_path / "two"))
    # How far an extended model may aim is its maker's decision, as in the stage that extended it.
    check_targets(tmp_path / "one" / "model", Extension(None, None), [1300])


def test_a_dynamic_model_reads_its_factor_beyond_its_window(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    config = {"max_position_embeddings": 512, "rope_parameters": rope, "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_targets(tmp_path, Extension(None, None), [2048])
    with pytest.raises(LengthenError, match="2,049, but the model has 2,048"):
        check_targets(tmp_path, Extension(None, None), [2049])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"positions": {"unit": [4, 12]}}, "unit has no effect with positions.type plain"),
        ({"positions": {"type": "pose", "targets": [512], "unit": [4, 12]}}, "unit has no effect"),
        ({"schedule": "constant", "lr_floor": 0.0}, "lr_floor has no effect with schedule constant"),
    ],
)
def test_settings_without_an_effect_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        stage("m", "r", **change)


def test_defaults_written_out_are_no_mistake():
    """As a resolved stage carries them."""
    for change in ({"schedule": "constant"}, {"positions": {"type": "pose", "targets": [512]}}):
        settings = stage("m", "r", **change)
        assert TrainStage.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("change", "length", "expected"),
    [
        ({}, 4096, False), ({}, 4097, True), ({"micro_batch": 2}, 2048, False), ({"micro_batch": 2}, 2049, True),
        ({"sequence_parallel": 4}, 8192, True), ({"checkpointing": False}, 8192, False),
        ({"checkpointing": True, "micro_batch": 2}, 8, True),
    ],
)  # fmt: skip
def test_auto_recomputes_over_4k_tokens_at_once(change, length, expected):
    assert recomputes(stage("m", "r", **change), length) is expected


def test_missing_kernels_and_trackers_are_named(monkeypatch):
    """On a machine with a GPU: torch is told that it has one, the libraries are truly missing."""
    import importlib.util

    import torch
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    from lengthen.common.errors import MissingExtra
    from lengthen.train.run import _refuse_what_is_missing

    if importlib.util.find_spec("liger_kernel") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with pytest.raises(MissingExtra, match=r"(?s)liger.*lengthen\[gpu\]"):
            _refuse_what_is_missing(stage("m", "r", liger=True))
    _refuse_what_is_missing(stage("m", "r", activation_offload=torch.cuda.is_available()))
    if "comet_ml" not in get_available_reporting_integrations():
        with pytest.raises(MissingExtra, match="comet_ml is not installed"):
            _refuse_what_is_missing(stage("m", "r", report_to=["comet_ml"]))


@pytest.mark.parametrize(("warmup", "steps", "good"), [(6, 6, False), (5, 6, True), (1, 1, False), (0.9, 1, True)])
def test_a_warmup_as_long_as_the_run_is_refused(warmup, steps, good):
    if good:
        assert stage("m", "r", warmup=warmup, steps=steps).warmup == warmup
    else:
        with pytest.raises(ValueError, match=f"warmup is {warmup} steps, the training {steps}"):
            stage("m", "r", warmup=warmup, steps=steps)


def test_a_warmup_of_a_part_of_a_step_is_refused():
    with pytest.raises(ValueError, match="neither a share below 1 nor a whole number"):
        stage("m", "r", warmup=2.5)


def test_a_model_with_code_of_its_own_is_refused(tmp_path, model_folder):
    import shutil

    folder = tmp_path / "remote"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mine.Mine"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LengthenError, match="needs code from its own folder"):
        train(stage(folder, ordinary_rows(tmp_path / "rows")), StageContext(folder=tmp_path / "out"))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_bad_rows_are_refused(tmp_path, model_folder):
    import random

    rng = random.Random(0)
    long = write_rows(tmp_path / "long", [make_row(rng, [600], 300)])
    other = make_row(rng, [60], 300)
    foreign = write_rows(tmp_path / "foreign", [{**other, "input_ids": [4999, *other["input_ids"][1:]]}])
    silent = write_rows(tmp_path / "silent", [make_row(rng, [60], 300, masked=2.0)])
    for rows, words in ((long, "512 positions"), (foreign, "tokenizer"), (silent, "No token")):
        with pytest.raises(LengthenError, match=words):
            train(stage(model_folder, rows), StageContext(folder=tmp_path / "out"))
    with pytest.raises(LengthenError, match="holds no rows"):
        train(stage(model_folder, tmp_path), StageContext(folder=tmp_path / "out"))


def test_step_without_targets_gives_zero(tmp_path, model_folder):
    import random

    rng = random.Random(0)
    rows = [make_row(rng, [40, 56], 300, masked=2.0 if i % 2 else 0.0) for i in range(8)]
    folder = write_rows(tmp_path / "rows", rows)
    train(stage(model_folder, folder, batch_rows=1, steps=8), StageContext(folder=tmp_path / "out"))
    losses = [line["loss"] for line in metrics(tmp_path / "out")]
    assert sum(loss == 0 for loss in losses) == 4 and all(loss >= 0 for loss in losses)
