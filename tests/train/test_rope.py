"""Formulas against the published numbers, and every type through transformers: forward, save, load."""

from __future__ import annotations

import pytest

from lengthen.common.errors import LengthenError
from lengthen.recipe.base import ModelFacts
from lengthen.recipe.rope import RopeSettings, dynamic_ntk_base, extend, ntk_base


def facts(tmp_path, **config) -> ModelFacts:
    plain = {"num_attention_heads": 32, "hidden_size": 4096, "max_position_embeddings": 8192}
    return ModelFacts(tmp_path, {**plain, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, **config})


@pytest.mark.parametrize(
    ("base", "s", "published"),
    [(5e5, 10, 48_877_309.5), (5e5, 16, 131_460_972.7), (1e6, 4, 13_540_197.3), (5e5, 8, 30_388_963.6)],
)
def test_longrecipe_bases(base, s, published):
    # arXiv 2409.00509, Table 4: 48.9M, 131.5M, 13.5M.
    assert dynamic_ntk_base(base, s, 128) == pytest.approx(published, rel=1e-6)


def test_ntk_rule_and_prolong():
    # arXiv 2410.02660: the NTK rule gives 4.13e6 for 8K -> 64K, against the chosen 8e6.
    assert ntk_base(5e5, 8, 128) == pytest.approx(4.134e6, rel=1e-3)


def test_derived_values(tmp_path):
    found = extend(facts(tmp_path), 65536, RopeSettings(type="ntk"))
    assert found.parameters == {"rope_type": "default", "rope_theta": pytest.approx(4.134e6, rel=1e-3)}
    assert found.window == 65536 and {d.key for d in found.derived} == {"rope.factor", "rope.base"}
    given = extend(facts(tmp_path), 524288, RopeSettings(type="base", base=1.28e8))
    assert given.parameters == {"rope_type": "default", "rope_theta": 1.28e8} and given.window == 524288
    assert extend(facts(tmp_path), 8192, RopeSettings()).parameters is None
    assert extend(facts(tmp_path), 131072, RopeSettings()).parameters["rope_theta"] == pytest.approx(131.46e6, rel=1e-3)


def test_second_stage_counts_from_the_original_window(tmp_path):
    once = extend(facts(tmp_path), 32768, RopeSettings(type="yarn"))
    again = facts(tmp_path, max_position_embeddings=once.window, rope_parameters=once.parameters)
    twice = extend(again, 131072, RopeSettings(type="yarn"))
    assert twice.parameters["factor"] == 16.0 and twice.parameters["original_max_position_embeddings"] == 8192
    with pytest.raises(LengthenError, match="already scales"):
        extend(again, 131072, RopeSettings(type="linear"))
    with pytest.raises(LengthenError, match="already scales"):
        extend(again, 131072, RopeSettings())


def test_only_full_attention_layers_are_extended(tmp_path):
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    found = extend(facts(tmp_path, rope_parameters=rope), 32768, RopeSettings(type="linear"))
    assert found.parameters["full_attention"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}
    assert found.parameters["sliding_attention"] == rope["sliding_attention"]


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "base", "base": 8e6},
        {"type": "ntk"},
        {"type": "dynamic-ntk-base"},
        {"type": "linear"},
        {"type": "dynamic"},
        {"type": "yarn"},
        {"type": "yarn", "beta_fast": 16, "attention_factor": 1.1},
        {"type": "llama3"},
        {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]},
    ],
    ids=lambda s: "-".join(str(v) for v in list(s.values())[:2])[:24],
)
def test_transformers_takes_each_type(tmp_path, model_folder, settings):
    import torch
    from transformers import AutoModelForCausalLM

    from lengthen.train.load import load_model

    wanted = RopeSettings(**settings)
    found = extend(ModelFacts.read(model_folder), 2048, wanted)
    model = load_model(str(model_folder), dtype="float32", rope=found.parameters, window=found.window)
    model.config.validate_rope()
    ids = torch.randint(0, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    far = (torch.arange(40) * 50)[None]
    with torch.no_grad():
        plain = load_model(str(model_folder), dtype="float32")(ids, position_ids=far, use_cache=False).logits
        before = model(ids, position_ids=far, use_cache=False).logits
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(
            tmp_path, attn_implementation="lengthen", dtype=torch.float32
        ).eval()
        after = again(ids, position_ids=far, use_cache=False).logits
    assert (before - after).abs().max() == 0
    assert (before - plain).abs().max() > 1e-6
    # transformers and vLLM read dynamic's original window from max_position_embeddings.
    assert again.config.max_position_embeddings == (512 if settings["type"] == "dynamic" else 2048)
