"""Mixtures of experts: the balancing loss is added, weighed by tokens, over accumulation and ranks."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.train.mesh import check_sequence_parallel
from lengthen.train.run import train
from tests.conftest import make_tokenizer
from tests.train.rows import make_row, write_rows
from tests.train.test_trainer import metrics, settings_for, train_on_two_ranks

COEFFICIENT = 0.5  # far above a model's 0.001, so that a wrong share would show
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 512, "num_experts_per_tok": 2}  # fmt: skip
FAMILIES = {
    "mixtral": {"num_local_experts": 4, "intermediate_size": 48},
    "qwen3_moe": {"num_experts": 4, "intermediate_size": 48, "moe_intermediate_size": 24, "head_dim": 8},
}


def make_experts(folder: Path, family: str, coefficient: float = COEFFICIENT) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer(folder)
    sizes = {**SIZES, **FAMILIES[family], "vocab_size": len(tokenizer), "router_aux_loss_coef": coefficient,
             "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # routers that are not all but even
    model.save_pretrained(folder)
    return folder


def uneven_rows() -> list[dict]:
    """Rows of different lengths: a mean over micro-batches would not be the mean over tokens."""
    rng = random.Random(4)
    return [make_row(rng, lens, 300, masked=0.3) for lens in ([30, 20, 46], [96], [10, 12], [25, 15])]


def plain(folder: Path, rows: list[dict]) -> tuple[float, float, float]:
    """Loss, its balancing part and the gradient norm, document by document with full logits."""
    from transformers import AutoModelForCausalLM
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens = sum(len(row["input_ids"]) for row in rows)
    losses, balance = [], torch.zeros(())
    for row in rows:
        routers, start = [], 0
        for n in row["doc_lens"]:
            ids = torch.tensor(row["input_ids"][start : start + n])
            mask = torch.tensor(row["loss_mask"][start : start + n]).bool()
            out = model(ids[None], output_router_logits=True, use_cache=False)
            each = torch.nn.functional.cross_entropy(out.logits[0, :-1], ids[1:], reduction="none")
            losses.append(each[mask[1:]])
            routers.append(out.router_logits)
            start += n
        together = tuple(torch.cat(layer) for layer in zip(*routers, strict=True))
        share = len(row["input_ids"]) / tokens
        balance = balance + share * load_balancing_loss_func(together, 4, 2)
    loss = torch.cat(losses).mean() + COEFFICIENT * balance
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return float(loss.detach()), float(balance.detach()), float(norm)


@pytest.mark.parametrize(("family", "checkpointing"), [("mixtral", False), ("mixtral", True), ("qwen3_moe", False)])
def test_the_balancing_loss_weighs_each_row_by_its_tokens(tmp_path, family, checkpointing):
    folder = make_experts(tmp_path / "start", family)
    rows = write_rows(tmp_path / "rows", uneven_rows())
    loss, balance, norm = plain(folder, uneven_rows())
    settings = settings_for(folder, rows, steps=1, checkpointing=checkpointing)
    result = train(settings, StageContext(folder=tmp_path / "out"))
    line = metrics(tmp_path / "out")[0]
    assert line["loss"] == pytest.approx(loss, abs=1e-5)
    assert line["aux_loss"] == pytest.approx(balance, abs=1e-5)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert result.derived["router_aux_loss_coef"]["value"] == COEFFICIENT
    config, start = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "out" / "model", folder))
    for key in ("output_router_logits", "router_aux_loss_coef"):
        assert config[key] == start[key]


def test_two_ranks_equal_one_process(tmp_path):
    folder = make_experts(tmp_path / "start", "mixtral")
    rows = write_rows(tmp_path / "rows", uneven_rows())
    settings = settings_for(folder, rows, steps=2)
    train(settings, StageContext(folder=tmp_path / "one"))
    train_on_two_ranks([(settings.model_dump(mode="json"), str(tmp_path / "two"))])
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for key in ("loss", "aux_loss", "grad_norm"):
            assert a[key] == pytest.approx(b[key], abs=1e-4), key


def test_a_coefficient_of_zero_adds_nothing(tmp_path):
    folder = make_experts(tmp_path / "start", "mixtral", coefficient=0.0)
    rows = write_rows(tmp_path / "rows", uneven_rows())
    result = train(settings_for(folder, rows, steps=1), StageContext(folder=tmp_path / "out"))
    assert "aux_loss" not in metrics(tmp_path / "out")[0] and "router_aux_loss_coef" not in result.derived


def test_refused_under_sequence_parallelism():
    from transformers import AutoConfig

    config = AutoConfig.for_model("mixtral", **SIZES, **FAMILIES["mixtral"])
    with pytest.raises(LengthenError, match=r"balancing loss of experts \(router_aux_loss_coef 0.001\)"):
        check_sequence_parallel(config, 2)
    config.router_aux_loss_coef = 0.0
    check_sequence_parallel(config, 2)
