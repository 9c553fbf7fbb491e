"""What `lengthen plan` says: against plain counts, published runs, the documentation, and a measured training."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.estimate import LLAMA_8B, QWEN3_4B, ROOT, rows, table

from lengthen.commands import dry_run_text, plan_text
from lengthen.common.errors import LengthenError
from lengthen.recipe.base import ModelFacts
from lengthen.recipe.load import load_recipe
from lengthen.recipe.stages.train import TrainStage
from lengthen.train.devices import Devices, DeviceType, parse_devices
from lengthen.train.estimate import ModelSize, estimate, flops_per_token, render

CPU = DeviceType("cpu", 24, 1e12, 0.2, 0.2, 0.95, 0.5)


def stage(**settings) -> TrainStage:
    return TrainStage(**{"rows": ["-"], "batch_rows": 8, "steps": 10, **settings})


def facts(config=LLAMA_8B) -> ModelFacts:
    return ModelFacts(Path("."), config)


def test_weights_are_counted_as_transformers_does(model_folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    assert ModelSize.of(ModelFacts.read(model_folder)).weights == sum(p.numel() for p in model.parameters())


def test_known_sizes():
    assert ModelSize.of(facts()).weights == pytest.approx(8.03e9, rel=1e-3)
    assert ModelSize.of(facts(QWEN3_4B)).weights == pytest.approx(4.02e9, rel=2e-3)


def test_experts_weigh_more_than_they_work():
    config = {**LLAMA_8B, "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000}
    size = ModelSize.of(facts(config))
    assert size.weights == pytest.approx(46.7e9, rel=1e-2)  # Mixtral 8x7B
    assert size.layers * size.active == pytest.approx(12.6e9, rel=1e-2)


def test_operations_by_hand():
    size = ModelSize.of(facts())
    linear = 6 * size.layers * size.active + 8 * size.embedding
    attention = 2 * 32 * 4096 * 65536 * 3.5
    assert flops_per_token(size, 65536, False) == pytest.approx(linear + attention)


def test_published_runs_stay_within_the_stated_errors():
    found = {row["id"]: row for row in rows()}
    # Ulysses and plain FSDP: within a quarter. Ring attention (torchtitan from 128K) is another algorithm.
    for name, row in found.items():
        if name not in ("torchtitan-128k", "torchtitan-256k"):
            assert abs(row["error"]) < 0.25, row
    assert abs(found["prolong-64k-hours"]["error"]) < 0.1 and abs(found["prolong-512k-hours"]["error"]) < 0.15


def test_documentation_shows_the_computed_table():
    assert table(rows()) in (ROOT / "docs" / "plan.md").read_text()


def test_what_does_not_fit_is_told_with_what_would():
    found = estimate(stage(length="512k"), facts(), parse_devices("8xH100"))
    assert not found.fits
    assert any("sequence_parallel: 8" in line for line in found.advice)
    better = estimate(stage(length="512k", sequence_parallel=8), facts(), parse_devices("8xH100"))
    assert better.fits and better.advice == ()
    assert "does NOT fit" in render(found) and "sequence parallel over 8" in render(better)


def test_advice_saves_what_it_says():
    found = estimate(stage(length="64k", sharding="ddp"), facts(), parse_devices("8xH100"))
    saved = next(float(line.split()[2]) for line in found.advice if "lora" in line)
    lora = estimate(stage(length="64k", sharding="ddp", lora={}), facts(), parse_devices("8xH100"))
    assert found.total_gib - lora.total_gib == pytest.approx(saved, rel=0.05)


def test_hours_follow_from_tokens():
    one = estimate(stage(length="64k", steps=None, tokens="1B"), facts(), parse_devices("8xH100"))
    two = estimate(stage(length="64k", steps=None, tokens="2B"), facts(), parse_devices("16xH100"))
    assert one.hours == pytest.approx(two.hours)
    assert one.hours == pytest.approx(2**30 / one.tokens_per_second / 0.9 / 3600)
    unknown = estimate(stage(length="64k", steps=None, epochs=1), facts(), parse_devices("8xH100"))
    assert unknown.hours is None and "1 billion tokens take" in render(unknown)


@pytest.mark.parametrize(("text", "count", "name"), [
    ("8xH100-80GB", 8, "H100-80GB"), ("h100", 1, "H100-80GB"), ("4 x a100-40gb", 4, "A100-40GB"),
    ("A100", 1, "A100-80GB"),
])  # fmt: skip
def test_devices_are_read(text, count, name):
    found = parse_devices(text)
    assert (found.count, found.type.name) == (count, name)


@pytest.mark.parametrize("text", ["8xH1000", "many", "8x", "0xH100"])
def test_unknown_devices_are_refused(text):
    with pytest.raises(LengthenError):
        parse_devices(text)


def test_parallelism_must_divide_the_devices():
    with pytest.raises(LengthenError, match="does not divide 4 devices"):
        estimate(stage(length="64k", sequence_parallel=3), facts(), parse_devices("4xH100"))


@pytest.mark.parametrize(
    "change", [{"micro_batch": 2}, {"sequence_parallel": 4}, {"micro_batch": 2, "sequence_parallel": 2}]
)
@pytest.mark.parametrize("length", [1024, 2048, 4096, 8192])
def test_recomputes_where_the_run_does(change, length):
    """The memory is that of the same stage with the run's decision written out."""
    open_, on = stage(length=length, **change), parse_devices("4xH100")
    found = estimate(open_, facts(), on)
    assert found.recompute == (length * open_.micro_batch > 4096)
    assert found.memory == estimate(stage(length=length, checkpointing=found.recompute, **change), facts(), on).memory
    other = estimate(stage(length=length, checkpointing=not found.recompute, **change), facts(), on)
    assert (found.memory["activations"] < other.memory["activations"]) == found.recompute


def test_heads_that_cannot_be_shared_out_are_refused():
    with pytest.raises(LengthenError, match="sequence_parallel 3 does not fit a model with 32 query and 8") as caught:
        estimate(stage(length="64k", sequence_parallel=3), facts(), parse_devices("6xH100"))
    assert caught.value.fix == "use sequence_parallel 2, 4, 8, 16, 32, or 1"


CHAIN = """
name: chain
model: {big}
stages:
  - {{kind: train, name: own, model: {small}, rows: [r], length: 2k, steps: 10, batch_rows: 4}}
  - {{kind: train, name: next, model: "@own", rows: [r], length: 2k, steps: 10, batch_rows: 4}}
  - {{kind: merge, name: both, models: ["@own", "@next"]}}
  - {{kind: train, name: last, model: "@both", rows: [r], length: 2k, steps: 10, batch_rows: 4}}
  - {{kind: train, name: other, rows: [r], length: 2k, steps: 10, batch_rows: 4, sequence_parallel: 3}}
"""


def test_each_stage_is_priced_for_the_model_that_it_starts_from(tmp_path, model_folder):
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "big" / "tokenizer.json").write_text("{}")
    (tmp_path / "chain.yaml").write_text(CHAIN.format(big=tmp_path / "big", small=model_folder))
    recipe = load_recipe(str(tmp_path / "chain.yaml"))
    parts = dict(zip(("own", "next", "last", "other"), plan_text(recipe, "3xH100").split("\n\n"), strict=True))
    small = estimate(recipe.stage("own"), ModelFacts.read(model_folder), parse_devices("3xH100"))  # type: ignore[arg-type]
    for name in ("own", "next", "last"):
        assert parts[name] == render(replace(small, stage=name))
    assert "other on 3 x H100-80GB: would be refused. sequence_parallel 3 does not fit" in parts["other"]
    assert "use sequence_parallel 2, 4" in parts["other"] and "GiB" not in parts["other"]
    assert "would be refused. sequence_parallel 3 does not divide 1 devices" in dry_run_text(recipe, tmp_path / "run")


def test_a_model_that_is_not_there_leaves_the_dry_run_without_prices(tmp_path, model_folder):
    (tmp_path / "chain.yaml").write_text(CHAIN.format(big=model_folder, small=tmp_path / "gone"))
    recipe = load_recipe(str(tmp_path / "chain.yaml"))
    with pytest.raises(LengthenError, match="gone"):
        plan_text(recipe, "3xH100")
    text = dry_run_text(recipe, tmp_path / "run")
    assert "5 of 5 stages remain" in text and "not known. model '" in text


@pytest.mark.slow
@pytest.mark.parametrize(("length", "dtype", "checkpointing"), [
    (2048, "bfloat16", "off"), (4096, "bfloat16", "on"), (2048, "float32", "off"),
])  # fmt: skip
def test_memory_within_15_percent_of_a_measured_training(tmp_path, length, dtype, checkpointing):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import make_tokenizer
    from tests.train.rows import make_row, write_rows

    make_tokenizer(tmp_path / "model")
    config = LlamaConfig(
        vocab_size=16384, hidden_size=512, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=8192, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    data = write_rows(tmp_path / "data", [make_row(random.Random(i), [length], 500) for i in range(3)])
    command = [sys.executable, "-m", "tests.train.measure_memory", str(tmp_path / "model"), str(data),
               str(tmp_path / "out"), "8192", dtype, checkpointing]  # fmt: skip
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr[-2000:]
    peak = json.loads(run.stdout.strip().splitlines()[-1])["peak_gib"]
    settings = stage(length=8192, dtype=dtype, checkpointing=checkpointing == "on", batch_rows=1)
    found = estimate(settings, ModelFacts.read(tmp_path / "model"), Devices(1, CPU), length)
    assert found.total_gib == pytest.approx(peak, rel=0.15)
