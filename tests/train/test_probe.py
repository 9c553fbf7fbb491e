"""The leak probe: clean on the families that we train, and it catches what the field gets wrong in silence."""

from __future__ import annotations

import pytest
import torch

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.train import PositionSettings
from lengthen.train import probe as probing
from lengthen.train.collate import Batch, Collator
from tests.train.test_attention_models import SIZES, model_of

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "olmo2", "olmo3", "smollm3"]
SKIPPING = Collator(PositionSettings(type="skip", targets=[100], unit=(4, 8)))


def failed(findings) -> set[str]:
    return {finding.check for finding in findings if not finding.good}


@pytest.mark.parametrize("family", FAMILIES)
def test_clean_on(family):
    forward = probing.model_forward(model_of(family))
    rows = probing.synthetic_rows(SIZES["vocab_size"])
    findings = [*probing.probe(forward, Collator(), rows), *probing.probe(forward, SKIPPING, rows)]
    assert {f.check for f in findings} == {"isolated", "own", "joined", "jump"}
    assert not failed(findings), probing.verdict(family, findings).text


def test_clean_in_bfloat16():
    forward = probing.model_forward(model_of("llama").bfloat16())
    assert not failed(probing.probe(forward, Collator(), probing.synthetic_rows(97)))


def plain_transformers(attention: str, ones: bool):
    """The field's way: boundaries only as positions, with or without the mask of ones that most collators add."""
    model = model_of("llama", attention).eval()

    def forward(batch: Batch) -> torch.Tensor:
        mask = torch.ones_like(batch.input_ids) if ones else None
        with torch.no_grad():
            inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": mask}
            return model(**inputs, use_cache=False).logits[0]

    return forward


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_catches_the_mask_of_ones(attention):
    """Reset positions and an all-ones mask: transformers attends across documents without a word."""
    rows = probing.synthetic_rows(97)
    assert failed(probing.probe(plain_transformers(attention, ones=True), Collator(), rows)) == {"isolated"}
    assert not failed(probing.probe(plain_transformers(attention, ones=False), Collator(), rows))


def test_catches_positions_that_are_read_as_documents():
    """Skipped positions without a mask: transformers cuts the document at each jump."""
    rows = probing.synthetic_rows(97)[2:]
    assert failed(probing.probe(plain_transformers("sdpa", ones=False), SKIPPING, rows)) == {"jump"}
    assert not failed(probing.probe(plain_transformers("sdpa", ones=True), SKIPPING, rows))


def test_catches_a_joined_row_that_is_cut():
    """Pieces of one text, taken for documents: what interleaving was meant to teach is lost."""
    forward = probing.model_forward(model_of("llama"))

    def cut(batch: Batch) -> torch.Tensor:
        from dataclasses import replace

        return forward(replace(batch, doc_lens=torch.tensor([19, 11, 18])))

    assert failed(probing.probe(cut, Collator(), probing.synthetic_rows(97)[1:2])) == {"joined"}


def test_catches_a_model_that_remembers_outside_of_attention():
    """Convolution layers carry text over the border, whatever the attention is told."""
    sizes = {**SIZES, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("lfm2", **sizes), attn_implementation="lengthen")
    row = {"input_ids": list(range(5, 45)), "doc_lens": [20, 20], "attend": "isolated"}
    with pytest.raises(LengthenError, match="does not keep documents apart") as caught:
        probing.probe_training(model, Collator(), [row])
    assert "isolated: a document is seen by another one" in (caught.value.why or "")


def test_probe_model_tells(model_folder, tmp_path):
    found = probing.probe_model(str(model_folder))
    assert found.clean and "kept apart and whole" in found.text
    for check in ("isolated", "joined", "jump"):
        assert check in found.text
    missing = probing.probe_model(str(tmp_path / "nothing"))
    assert not missing.clean and "no such folder" in missing.text


def test_doctor_runs_the_probe(model_folder):
    from lengthen.commands import doctor_text

    assert "kept apart and whole" in doctor_text(str(model_folder))[0]


def test_rows_are_shortened():
    row = {"input_ids": list(range(100)), "doc_lens": [40, 5, 30, 25], "attend": "joined", "loss_mask": [1] * 100}
    short = probing.shorten(row)
    assert short["doc_lens"] == [16, 5, 16] and short["attend"] == "joined"
    assert short["input_ids"] == [*range(16), *range(40, 45), *range(45, 61)]


def test_a_leak_stops_training_before_its_first_step(tmp_path, model_folder, monkeypatch):
    """The whole way through the train stage, with an attention that ignores the borders."""
    from lengthen.recipe.stages.train import TrainStage
    from lengthen.train import attention
    from lengthen.train.run import train
    from tests.train.rows import ordinary_rows

    told = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *a, doc_lens, **k: told(*a, doc_lens=None, **k))
    settings = TrainStage(model=str(model_folder), rows=[str(ordinary_rows(tmp_path / "rows"))], steps=2, batch_rows=2)
    with pytest.raises(LengthenError, match="Training was not started"):
        train(settings, StageContext(folder=tmp_path / "out"))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
