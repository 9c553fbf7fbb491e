"""The short set: checks of instructions, losses of turns, divergence, and rows that are measured once."""

# ruff: noqa: E501

from __future__ import annotations

import pytest

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json_lines
from lengthen.evaluate.short import measure
from lengthen.evaluate.short.instructions import INSTRUCTIONS
from lengthen.generate.local import LocalEngine
from tests.conftest import make_model
from tests.evaluate.helpers import job

GOOD = {
    "bullets-3": "- one\n- two\n- three", "bullets-5": "\n".join(["- a"] * 5), "bullets-4": "- a\n- b\n- c\n- d\n",
    "numbered-4": "1. a\n2. b\n3. c\n4. d", "numbered-3": "1. a\n\n2. b\n3. c", "numbered-6": "\n".join(f"{i}. x" for i in range(1, 7)),
    "json-2": '{"name": "Tom", "colour": "grey"}', "json-3": '```json\n{"title": "a", "author": "b", "year": 1}\n```',
    "json-1": '{"capital": "Paris"}', "lower-1": "rain falls on the roof.", "lower-2": "a house of books.",
    "upper-1": "ICE ON THE ROAD!", "upper-2": "HELLO, FRIEND!", "begins-1": "In the garden bees fly. They sing.",
    "begins-2": "Because we tire.", "ends-1": "It roars. It fell silent and the tide came in.", "ends-2": "All was snow.",
    "holds-1": "A lantern by the river shone for seven nights.", "holds-2": "An onion asks for patience.",
    "lacks-comma": " ".join(["tree"] * 16), "lacks-the": " ".join(["wheel"] * 12), "words-short": "A force that pulls.",
    "words-1": "Yellow.", "words-2": "Cold", "choice-1": "No.", "choice-2": "true", "quoted": '"Fresh every day"',
    "paragraphs-2": "Leaves fall.\n\nWind blows.", "sentences-2": "It is a mountain. It spits fire.",
    "table": "| Fruit | Colour |\n|---|---|\n| plum | blue |\n| kiwi | green |\n| fig | black |",
}  # fmt: skip
BAD = {
    "bullets-3": "- one\n- two", "bullets-5": "1. a\n2. b", "bullets-4": "a\nb\nc\nd", "numbered-4": "1. a\n2. b\n4. c",
    "numbered-3": "- a\n- b\n- c", "numbered-6": "1. a", "json-2": '{"name": "Tom"}', "json-3": "title: a",
    "json-1": '{"capital": "Paris", "x": 1}', "lower-1": "Rain falls.", "lower-2": "123", "upper-1": "Ice!",
    "upper-2": "Hello", "begins-1": "Bees fly.", "begins-2": "We tire because.", "ends-1": "The tide.", "ends-2": "Snowy.",
    "holds-1": "A lantern by the rivers, seventy.", "holds-2": "Onions.", "lacks-comma": "tree, " * 16,
    "lacks-the": "the " + "wheel " * 12, "words-short": "a " * 11, "words-1": "It is yellow.", "words-2": "",
    "choice-1": "No, it is not.", "choice-2": "yes", "quoted": "Fresh", "paragraphs-2": "One.\nTwo.",
    "sentences-2": "It is a mountain.", "table": "| Fruit |\n|---|\n| plum |",
}  # fmt: skip


@pytest.mark.parametrize("item", INSTRUCTIONS, ids=lambda item: item.name)
def test_checks_pass_what_was_asked_and_nothing_else(item):
    assert item.check(GOOD[item.name])
    assert not item.check(BAD[item.name])


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = LocalEngine(make_model(tmp_path_factory.mktemp("model"), window=4096), dtype="float32")
    yield made
    made.close()


CHAT = (
    {"role": "user", "content": "How many crates?"},
    {"role": "assistant", "content": "105 bundles."},
    {"role": "user", "content": "And lamps?"},
    {"role": "assistant", "content": "Seven lamps."},
)


@pytest.mark.parametrize("template", ["on", "off"])
def test_only_the_assistants_turns_count(engine, tmp_path, template):
    _, this = job("short", engine.tokenizer, tmp_path, template)
    ids, marks = measure._chat(this, CHAT)
    assert len(ids) == len(marks)
    counted = engine.tokenizer.decode([i for i, mark in zip(ids, marks) if mark])
    rest = engine.tokenizer.decode([i for i, mark in zip(ids, marks) if not mark])
    assert "105 bundles." in counted and "Seven lamps." in counted and "crates" not in counted
    assert "How many crates?" in rest and "And lamps?" in rest and "bundles" not in rest


def test_divergence_is_zero_from_itself_and_by_its_definition(engine, tmp_path):
    import torch

    ids = engine.tokenizer("The harbour wakes before the town.")["input_ids"]
    start_TV = measure.log_probs(engine, ids)
    assert start_TV.shape == (len(ids), len(engine.tokenizer))
    assert torch.allclose(start_TV.exp().sum(-1), torch.ones(len(ids)), atol=1e-4)
    assert measure.divergence(start_TV, start_TV).abs().max() < 1e-6
    now_TV = torch.log_softmax(start_TV * 0.5, dim=-1)
    expected = torch.nn.functional.kl_div(now_TV, start_TV, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(measure.divergence(start_TV, now_TV), expected, atol=1e-5)
    # The logits are those of which loss_by_token is the loss.
    losses_T = -start_TV[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert torch.allclose(losses_T, engine.loss_by_token(ids), atol=1e-4)


def test_a_loss_has_an_interval_over_its_texts(engine, tmp_path):
    _, this = job("short", engine.tokenizer, tmp_path)
    texts = [measure._plain(engine, f"The harbour wakes before town {i}. Boats come in.") for i in range(8)]
    row = measure._loss(this, engine, "prose", texts)
    losses = [engine.loss_by_token(ids) for ids, _ in texts]
    assert row["tokens"] == sum(map(len, losses)) and row["n"] == 8
    assert row["value"] == pytest.approx(float(sum(map(sum, losses))) / row["tokens"], abs=1e-4)
    assert row["low"] < row["value"] < row["high"]


def test_instructions_are_asked_once(engine, tmp_path):
    suite, this = job("short", engine.tokenizer, tmp_path, tasks=["instructions"], model="unused")
    ((key, row),) = suite.run(this, engine, frozenset())
    assert key == "instructions" and row["n"] == len(INSTRUCTIONS) and row["low"] <= row["score"] <= row["high"]
    kept = list(read_json_lines(tmp_path / measure.PREDICTIONS))
    assert len(kept) == len(INSTRUCTIONS)

    class Silent:
        def generate(self, requests):
            assert not requests
            return iter(())

    ((_, again),) = suite.run(this, Silent(), frozenset())
    assert again == row
    assert list(suite.run(this, Silent(), frozenset({"instructions"}))) == []


def test_what_cannot_be_measured_says_so(engine, tmp_path):
    suite, this = job("short", engine.tokenizer, tmp_path, tasks=["kl"])
    with pytest.raises(LengthenError, match="needs the starting model"):
        list(suite.run(this, engine, frozenset()))
    with pytest.raises(LengthenError, match="an endpoint gives no token losses"):
        measure._local(object())
