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


# ---- types whose frequencies follow the length ----

WINDOW = 32
BY_LENGTH = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "longrope": {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": WINDOW,
        "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}  # fmt: skip


def _model(kind: str, family: str = "llama"):
    from tests.train.test_attention_models import model_of

    rope, more = BY_LENGTH[kind], {}
    if family == "gemma3_text":
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
        more = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    model = model_of(family, rope_parameters=rope, **more).eval()
    # As in a saved folder: `dynamic` reads the original window there.
    model.config.max_position_embeddings = WINDOW
    for module in model.modules():
        if hasattr(module, "original_max_seq_len"):
            module.max_seq_len_cached = module.original_max_seq_len = WINDOW
    return model


def _logits(model, ids, lens):
    import torch

    positions = torch.cat([torch.arange(n) for n in lens])[None]
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions, doc_lens=torch.tensor(lens), use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("kind", BY_LENGTH)
def test_a_short_document_beside_a_long_one_is_as_alone(kind, family):
    import torch

    from lengthen.train.rope import by_document
    from tests.train.test_attention_models import row

    lens = [20, 90, 50, 8]
    ids, _ = row(*lens)
    alone = torch.cat([_logits(_model(kind, family), part, [part.shape[1]]) for part in ids.split(lens, dim=1)], dim=1)
    size = float(alone.abs().max())
    plain, ours = _model(kind, family), by_document(_model(kind, family))
    # What transformers does with such a row, and what it must not become.
    assert float((_logits(plain, ids, lens) - alone)[:, :20].abs().max()) > 1e-2 * size
    assert float((_logits(ours, ids, lens) - alone).abs().max()) < 1e-5 * size
    # Nor does a row depend on the rows before it.
    middle = ids[:, 110:160]
    assert torch.equal(_logits(ours, middle, [50]), _logits(by_document(_model(kind, family)), middle, [50]))


def test_generation_is_left_to_transformers():
    import torch

    from lengthen.train.rope import by_document
    from tests.train.test_attention_models import row

    ids, _ = row(40)
    made = [
        model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
        for model in (_model("dynamic"), by_document(_model("dynamic")))
    ]
    assert torch.equal(*made)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_the_train_stage_keeps_lengths_apart(tmp_path, model_folder, kind):
    """The way through the stage: a model that it builds gives a short document its own frequencies."""
    import torch

    from lengthen.train.load import load_model
    from lengthen.train.rope import extension_for
    from tests.train.test_attention_models import row

    factors = {"short_factor": [1.0] * 8, "long_factor": [1.0 + i for i in range(8)]} if kind == "longrope" else {}
    found = extension_for(model_folder, 2048, RopeSettings.model_validate({"type": kind, **factors}))
    model = load_model(model_folder, dtype="float32", rope=found.parameters, window=found.window)
    lens = [30, 700]
    ids, _ = row(*lens)
    with torch.no_grad():
        both, alone = _logits(model, ids, lens)[:, :30], _logits(model, ids[:, :30], [30])
    assert torch.allclose(both, alone, atol=1e-5)
