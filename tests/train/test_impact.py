"""LongRecipe's impactful tokens, and the rows of chosen sentences that follow from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.data.sentences import Sentence, choose_sentences, draw, sentences_of
from lengthen.data.shards import open_rows, read_row
from lengthen.data.wordclass import word_classes
from lengthen.models import load_tokenizer
from lengthen.recipe.stages.analyse_tokens import AnalyseTokensStage
from lengthen.recipe.stages.choose_sentences import ChooseSentencesStage
from lengthen.recipe.stages.train import PositionSettings
from lengthen.train.impact import SPACE, Tally, analyse_tokens, token_classes, token_scores
from lengthen.train.load import load_model
from lengthen.train.positions import positions_of_row
from tests.conftest import make_model
from tests.data.helpers import run, stage

TEXT = "The keeper counted 4821 crates. They were wet and cold. Boats came in. He wrote 12 lines of it in Bristol.\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """A model, and the same with other weights in its last layer."""
    folder = tmp_path_factory.mktemp("models")
    base, tuned = make_model(folder / "base"), folder / "tuned"
    model = load_model(base, dtype="float32")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.model.layers[-1].parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tuned)
    load_tokenizer(base).save_pretrained(tuned)
    return base, tuned


@pytest.fixture
def rows(tmp_path, models) -> Path:
    (tmp_path / "texts").mkdir()
    for n in range(4):
        lines = [f"{TEXT}On day {n}{i} the harbour was quiet. " for i in range(12)]
        (tmp_path / "texts" / f"{n}.txt").write_text("".join(lines))
    sources = [{"kind": "text", "paths": str(tmp_path / "texts")}]
    run(stage(models[0], sources, row_length=480), tmp_path / "rows")
    return tmp_path / "rows"


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("It is 4,821.", ["pronoun", "auxiliary", "number", "punctuation"]),
        ("The keeper of Bristol", ["determiner", "content", "adposition", "name"]),
        ("Boats and twelve carts", ["content", "conjunction", "number", "content"]),
        ("don't", ["auxiliary"]),
        ("我们在一百二十", ["pronoun", "adposition", "number"]),
        ("这些船和灯", ["pronoun", "content", "conjunction", "content"]),
        (" \n", []),
    ],
)
def test_word_classes(text, classes):
    found = word_classes(text)
    assert [name for _, _, name in found] == classes
    assert all(text[b:e].strip() == text[b:e] and e > b for b, e, _ in found)


def test_each_token_has_the_class_of_its_word(models):
    tokenizer = load_tokenizer(models[0])
    ids = np.array([*tokenizer.encode("It is 4821.\n", add_special_tokens=False), tokenizer.eos_token_id])
    classes = token_classes(ids, tokenizer)
    pieces = [tokenizer.decode([int(i)]) for i in ids]
    assert classes[-1] == SPACE
    assert {name for piece, name in zip(pieces, classes) if any(c.isdigit() for c in piece)} == {"number"}
    assert "pronoun" in classes and "auxiliary" in classes and "punctuation" in classes


def test_scores_are_the_plain_models_logits_at_the_true_tokens(models):
    from transformers import AutoModelForCausalLM

    ids = np.random.default_rng(0).integers(5, 300, size=700)
    scores = token_scores(load_model(models[0], dtype="float32"), ids, [500, 200])
    plain = AutoModelForCausalLM.from_pretrained(models[0])
    for begin, end in ((0, 500), (500, 700)):
        part = torch.from_numpy(ids[begin:end])
        with torch.no_grad():
            logits = plain(part[None]).logits[0, :-1]
        wanted = logits.gather(1, part[1:, None])[:, 0].numpy()
        assert np.isnan(scores[begin])
        np.testing.assert_allclose(scores[begin + 1 : end], wanted, atol=1e-4)
        logs = token_scores(load_model(models[0], dtype="float32"), ids[begin:end], [end - begin], log_prob=True)
        np.testing.assert_allclose(logs[1:], logits.log_softmax(-1).gather(1, part[1:, None])[:, 0].numpy(), atol=1e-4)


def test_the_tally_counts_the_top_share_by_hand():
    tally = Tally(top=0.2)
    classes = ["number", *["content"] * 8, "pronoun", SPACE]
    gain = np.array([9.0, *[0.0] * 8, 5.0, 100.0])
    tally.add(np.array([7, 1, 1, 1, 1, 1, 1, 1, 1, 8, 2]), gain, classes)
    found = tally.classes()
    # Ten positions count, white space does not; the top two are the number and the pronoun.
    assert found["number"]["share"] == pytest.approx(0.1)
    assert found["number"]["among_impactful"] == pytest.approx(0.5)
    assert found["number"]["weight"] == pytest.approx(5.0)
    assert found["content"]["weight"] == 0.0
    assert tally.gain[7] == 9.0 and tally.seen[1] == 8


def test_the_stage_writes_weights_and_token_types_and_goes_on_after_a_kill(tmp_path, models, rows):
    base, tuned = models
    settings = AnalyseTokensStage(rows=[str(rows)], base=str(base), tuned=str(tuned), samples=3, length=256,
                                  dtype="float32")  # fmt: skip
    result = analyse_tokens(settings, StageContext(tmp_path / "a"))
    weights = json.loads((tmp_path / "a/weights.json").read_text())
    shares = [row["share"] for row in weights["classes"].values()]
    among = [row["among_impactful"] for row in weights["classes"].values()]
    assert sum(shares) == pytest.approx(1) and sum(among) == pytest.approx(1)
    assert result.counts["samples"] == 3 and 100 < result.counts["positions"] <= 3 * 256
    lines = (tmp_path / "a/tokens.csv").read_text().splitlines()
    assert len(lines) == 1 + result.counts["token_types"]
    gains = [float(line.rsplit(",", 2)[1]) for line in lines[1:]]
    assert gains == sorted(gains, reverse=True)
    # A killed attempt has the base model's scores and a part of the tuned one's.
    for file in sorted((tmp_path / "a/.scores").glob("tuned-*"))[1:]:
        file.unlink()
    (tmp_path / "a/weights.json").unlink()
    analyse_tokens(settings, StageContext(tmp_path / "a"))
    assert json.loads((tmp_path / "a/weights.json").read_text()) == weights


def test_models_of_different_vocabularies_are_refused(tmp_path, models, rows):
    from tests.conftest import make_tokenizer

    other = make_model(tmp_path / "other")
    make_tokenizer(other, size=400)
    settings = AnalyseTokensStage(rows=[str(rows)], base=str(models[0]), tuned=str(other))
    with pytest.raises(LengthenError, match="different vocabularies"):
        analyse_tokens(settings, StageContext(tmp_path / "a"))
    with pytest.raises(ValueError, match="same model"):
        AnalyseTokensStage(rows=["x"], base="m", tuned="m")


def test_sentences_hold_every_token_of_the_text_once(models):
    tokenizer = load_tokenizer(models[0])
    ids = np.array([*tokenizer.encode(TEXT * 3, add_special_tokens=False), tokenizer.eos_token_id])
    found = sentences_of(ids, 0, tokenizer, {"number": 4.0})
    assert np.concatenate([s.ids for s in found]).tolist() == ids.tolist()
    assert len(found) >= 9
    for sentence in found:
        text = str(tokenizer.decode(sentence.ids.tolist()))
        assert (sentence.weight > 1) == any(sign.isdigit() for sign in text), text


def test_weighted_drawing_prefers_heavy_sentences_and_fits_the_budget():
    sentences = [Sentence(0, np.zeros(10, np.int32), 4.0 if i % 2 else 1.0) for i in range(40)]
    heavy = 0
    for seed in range(100):
        chosen = draw(sentences, 105, "weighted", seed)
        assert chosen == sorted(chosen) and len(chosen) == 10
        heavy += sum(i % 2 for i in chosen)
    assert 0.68 < heavy / 1000 < 0.88
    even = sum(sum(i % 2 for i in draw(sentences, 105, "random", s)) for s in range(100))
    assert 0.42 < even / 1000 < 0.58
    assert draw(sentences, 35, "first", 0) == [0, 1, 2]
    assert draw([Sentence(0, np.zeros(9, np.int32), 0.0)], 10, "weighted", 0) == [0]


def test_chosen_rows_keep_their_sentences_contiguous_under_skipped_positions(tmp_path, models, rows):
    base, tuned = models
    analyse = AnalyseTokensStage(rows=[str(rows)], base=str(base), tuned=str(tuned), samples=2, dtype="float32")
    analyse_tokens(analyse, StageContext(tmp_path / "weights"))
    settings = ChooseSentencesStage(model=str(base), rows=[str(rows)], weights=str(tmp_path / "weights"),
                                    row_length=144)  # fmt: skip
    result = choose_sentences(settings, StageContext(tmp_path / "short", seed=3))
    long, short = open_rows(rows), open_rows(tmp_path / "short")
    assert len(short) == len(long) == result.counts["rows"]
    left = result.drops["sentence_left_out"]["tokens"]
    total = sum(len(read_row(long, i).ids) for i in range(len(long)))
    assert abs(left + result.counts["tokens"] - total) <= 0.02 * total
    row = max((read_row(short, i) for i in range(len(short))), key=lambda row: len(row.ids))
    assert 100 < len(row.ids) <= 144 and row.unit_lens is not None and row.unit_lens.sum() == len(row.ids)
    rng = np.random.default_rng(0)
    positions = positions_of_row(
        row.doc_lens.tolist(), PositionSettings(type="skip", targets=[480]), rng, row.unit_lens.tolist()
    )
    begin = 0
    for unit in row.unit_lens.tolist():
        assert (np.diff(positions[begin : begin + unit]) == 1).all()
        begin += unit
    edges = np.cumsum(row.unit_lens)[:-1]
    assert (np.diff(positions)[edges - 1] != 1).any(), "between sentences there are gaps"
    again = choose_sentences(settings, StageContext(tmp_path / "again", seed=3))
    assert again.counts == result.counts
    other = open_rows(tmp_path / "again")
    assert all(read_row(other, i).ids.tolist() == read_row(short, i).ids.tolist() for i in range(len(short)))


def test_conversations_and_missing_weights_are_refused(tmp_path, models, rows):
    with pytest.raises(ValueError, match="needs weights"):
        ChooseSentencesStage(rows=["x"], row_length=100)
    nowhere = ChooseSentencesStage(model=str(models[0]), rows=[str(rows)], weights=str(tmp_path), row_length=100)
    with pytest.raises(LengthenError, match=r"weights\.json"):
        choose_sentences(nowhere, StageContext(tmp_path / "a"))
    chat = {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven."}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat) + "\n")
    run(stage(models[0], [{"kind": "chat", "paths": str(tmp_path / "chat.jsonl")}]), tmp_path / "chats")
    chats = ChooseSentencesStage(model=str(models[0]), rows=[str(tmp_path / "chats")], choose="random", row_length=99)
    with pytest.raises(LengthenError, match="conversations"):
        choose_sentences(chats, StageContext(tmp_path / "b"))
