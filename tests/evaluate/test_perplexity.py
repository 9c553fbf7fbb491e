"""Loss by position and what far context is worth, against plain arithmetic and a plain model."""

from __future__ import annotations

import numpy as np
import pytest

from lengthen.common.errors import LengthenError
from lengthen.evaluate.perplexity import (
    DocumentLoss,
    document_loss,
    edges,
    far_context,
    long_dependent,
    loss_by_position,
    near_losses,
    over_documents,
)
from lengthen.evaluate.positions import PerplexityOptions, held_out
from tests.evaluate.helpers import job, story


def seen_before(ids):
    """A model that knows a token if it stood in what it sees: loss 0.5, else 4."""
    return np.array([0.5 if ids[t + 1] in ids[: t + 1] else 4.0 for t in range(len(ids) - 1)])


def test_near_loss_is_the_loss_with_a_short_memory():
    ids, near = np.random.default_rng(0).integers(0, 60, 200).tolist(), 16
    found = near_losses(seen_before, ids, near)
    assert np.isnan(found[: 2 * near - 1]).all() and not np.isnan(found[2 * near - 1 :]).any()
    for t in range(2 * near - 1, len(ids) - 1):
        position = t + 1
        begin = position // near * near - near
        assert found[t] == seen_before(ids[begin : position + 1])[-1], position
        assert near <= position - begin < 2 * near, "between one and two times `near` tokens are seen"


def test_a_far_repeat_is_what_far_context_is_worth():
    # Tokens of the last stretch were seen only at the very beginning.
    far = list(range(32))
    ids = far + list(range(100, 196)) + far
    document = document_loss(seen_before, ids, 16)
    chosen = long_dependent(document)
    assert chosen.sum() == 32 and chosen[-32:].all()
    found = far_context([document])
    assert found.dependent == 32 and found.dependent_loss == 0.5
    assert found.tokens == len(ids) - 32 and found.gain == pytest.approx(32 * 3.5 / found.tokens)
    other = far_context([DocumentLoss(document.near, document.near)], [chosen])
    assert other.dependent_loss == 4.0 and other.gain == 0.0, "models are compared on the same tokens"


def test_buckets_hold_every_token_once():
    assert edges(3000) == [0, 512, 1024, 2048, 3000] and edges(512) == [0, 512]
    losses = [np.arange(1, 3000, dtype=float), np.arange(1, 3000, dtype=float)]
    rows = loss_by_position(losses, 3000)
    assert sum(tokens for *_, tokens in rows) == 2 * 2999
    for begin, end, mean, _ in rows:
        # Entry t holds position t + 1, so here each position's loss is its own number.
        assert mean == pytest.approx(np.mean([p for p in range(max(begin, 1), end)]))


def test_intervals_are_drawn_over_documents():
    rng = np.random.default_rng(1)
    covered, one = 0, {}
    for trial in range(60):
        # Tokens of a document fall together: its level varies, its tokens hardly do.
        levels = rng.normal(3.0, 0.5, 12)
        parts = [level + rng.normal(0, 0.01, int(rng.integers(50, 150))) for level in levels]
        one = over_documents(parts, seed=trial)
        covered += one["low"] <= 3.0 <= one["high"]
    assert covered >= 48, "95% in the limit; a little less with 12 documents"
    assert one["high"] - one["low"] > 0.3, "as wide as 12 documents are, not as 1,200 tokens"
    assert over_documents([np.ones(9)] * 5) == {}, "too few documents for a bootstrap"
    assert over_documents([np.ones(9)] * 5 + [np.ones(0)] * 4) == {}, "documents without such a token do not count"
    assert over_documents([np.ones(9)] * 6) == {"low": 1.0, "high": 1.0}


def test_short_documents_have_no_far_context():
    found = far_context([document_loss(seen_before, list(range(20)), 16)])
    assert found.tokens == 0 and np.isnan(found.gain)


def test_rows_equal_a_plain_model_and_survive_a_restart(tmp_path, model_folder):
    import torch
    from transformers import AutoModelForCausalLM

    from lengthen.generate.local import LocalEngine

    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(7):
        (folder / f"{i}.txt").write_text(story(60, i))
    engine = LocalEngine(model_folder, dtype="float32")
    options = {"documents": str(folder), "count": 6, "near": 64}
    suite, this = job("perplexity", engine.tokenizer, tmp_path, options=options, lengths=[400], model=str(model_folder))
    rows = dict(suite.run(this, engine, frozenset()))
    documents = held_out(this.options, engine.tokenizer, 400)
    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    losses = []
    for ids in documents:
        ids_1T = torch.tensor([ids])
        with torch.no_grad():
            logits_TV = plain(ids_1T).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits_TV, ids_1T[0, 1:], reduction="none").numpy())
    assert rows["perplexity/400/loss"]["value"] == pytest.approx(float(np.concatenate(losses).mean()), abs=2e-3)
    assert rows["perplexity/400/loss"]["n"] == 6 and "perplexity/400/gain" in rows
    assert all(row["low"] <= row["value"] <= row["high"] for key, row in rows.items() if "dependent" not in key)
    assert len(list((tmp_path / "losses").iterdir())) == 6
    engine.reader.losses = None  # nothing may be measured again
    again = dict(suite.run(this, engine, frozenset({"perplexity/400/loss"})))
    assert again == {key: row for key, row in rows.items() if key != "perplexity/400/loss"}
    assert dict(suite.run(this, engine, frozenset(rows))) == {}


def test_too_few_documents_are_said(tmp_path, model_folder):
    from lengthen.models import load_tokenizer

    tokenizer = load_tokenizer(model_folder)
    (tmp_path / "a.txt").write_text(story(5))
    (tmp_path / "b.txt").write_text(story(5, 1))
    with pytest.raises(LengthenError, match="gives 0 documents of 300"):
        held_out(PerplexityOptions(documents=str(tmp_path), count=1), tokenizer, 300)
    (joined,) = held_out(PerplexityOptions(documents=str(tmp_path), count=1, join=True), tokenizer, 300)
    assert len(joined) == 300
    with pytest.raises(LengthenError, match="no documents"):
        held_out(PerplexityOptions(documents=str(tmp_path / "none")), tokenizer, 300)
