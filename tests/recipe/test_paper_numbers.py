"""The paper-scale presets hold the published numbers, and say where each number comes from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from lengthen.commands import plan_text, show_text
from lengthen.recipe.load import load_recipe, read_recipe
from lengthen.recipe.schema import Recipe

K, M, B = 2**10, 2**20, 2**30
ADAM = {"betas": (0.9, 0.95), "weight_decay": 0.1, "grad_clip": 1.0}
# ProLong: arXiv 2410.02660, Table 9, and the scripts of princeton-nlp/ProLong at 907dcf4. LongAlign: 2401.18058,
# sections 3 and 4 and its training script. LongRecipe: 2409.00509, section 4, Table 4 and its training script.
# LongSkywork: the abstract of 2406.00605, and what others say of it (k = 2, tables of 2K to 100K tokens). Llama 3.1:
# 2407.21783, sections 3.4.2 and 3.4.3, and the scaling in its released configs. OLMo 3: 2512.13961 and OLMo-core's
# script. SmolLM3: its authors' page. UltraLong: 2504.06214. Gradient: its model cards.
LLAMA3 = {"rope.type": "llama3", "rope.factor": 8, "rope.low_freq_factor": 1, "rope.high_freq_factor": 4,
          "rope.window": 8 * K}  # fmt: skip
PAPERS: dict[str, dict[str, dict[str, Any]]] = {
    "prolong": {
        "mix-64k": {"row_length": 64 * K, "tokens": 20 * B},
        "train-64k": {"length": 64 * K, "rope.base": 8e6, "steps": 5000, "batch_rows": 64, "lr": 1e-5, "lr_floor": 0.1,
                      "schedule": "cosine", "warmup": 0.1, "save_every": 125, "sequence_parallel": 1, **ADAM},
        "mix-512k": {"row_length": 512 * K, "tokens": 20 * B},
        "train-512k": {"length": 512 * K, "rope.base": 1.28e8, "steps": 2500, "batch_rows": 16, "lr": 1e-5,
                       "lr_floor": 0.1, "schedule": "cosine", "warmup": 0.1, "save_every": 125, "sequence_parallel": 8,
                       "optimizer_from": "@train-64k", **ADAM},
        "chats": {"row_length": 64 * K},
        "sft": {"steps": 250, "batch_rows": 64, "lr": 2e-5, "lr_floor": 0.1, "schedule": "cosine", "warmup": 0.05,
                "loss": "token", "length": None, **ADAM},
    },
    "longalign": {
        "long-pretraining": {"length": 64 * K, "rope.base": 200 * 10_000, "tokens": 10_000_000_000},
        "instructions": {"count": 10_000, "min_tokens": 8 * K, "questions": 5,
                         "prompts": ["general", "summary", "reasoning", "extraction"]},
        "sft-rows": {"row_length": 64 * K},
        "sft": {"epochs": 2, "batch_rows": 8, "lr": 2e-5, "schedule": "cosine", "warmup": 0.03, "betas": (0.9, 0.95),
                "weight_decay": 0.0, "loss": "sequence"},
    },
    "longrecipe": {
        "documents": {"row_length": 80 * K},
        "analyse-tokens": {"top": 0.2},
        "choose-sentences": {"row_length": 24 * K},
        "long": {"length": 80 * K, "steps": 104, "batch_rows": 96, "lr": 5e-5, "schedule": "constant",
                 "betas": (0.9, 0.999), "weight_decay": 0.1},
        "replay": {"tokens": 68_000_000, "batch_rows": 96, "lr": 5e-6},
        "merge": {"weights": [0.5, 0.5], "config_from": "@replay"},
    },
    "longskywork": {
        "interleaved": {"row_length": 200_000, "sources.documents.interleave.method": "cip",
                        "sources.documents.interleave.chunks": 2},
        "long-pretraining": {"length": 200_000, "model": "default"},
        "sft": {"model": "@long-pretraining"},
        "tables": {"min_tokens": 2 * K, "max_tokens": 100 * K, "families": ["retrieval", "reasoning", "global"]},
        "long-sft": {"model": "@sft", "steps": 200},
    },
    "llama31": {
        "train-16k": {"model": "meta-llama/Meta-Llama-3-8B", **LLAMA3},
        "train-128k": {"length": 128 * K, "model": "@train-96k", "optimizer_from": "@train-96k", **LLAMA3},
        "anneal": {"tokens": 40_000_000, "schedule": "linear", "lr_floor": 0.0},
        "merge": {"checkpoints": "@anneal"},
    },
    "olmo3": {
        "mix": {"row_length": 65_536, "tokens": 50 * B, "sources.long.share": 0.34, "sources.replay.share": 0.66,
                "sources.long.packing": "best_fit"},
        "train": {"length": 65_536, "rope.type": "yarn", "rope.factor": 8, "rope.window": 8192, "rope.beta_fast": 32,
                  "rope.beta_slow": 1, "tokens": 50 * B, "batch_rows": 64, "lr": 2.07e-4, "schedule": "linear",
                  "lr_floor": 0.0, "warmup": 200, "sequence_parallel": 8, **ADAM},
        "merge": {"last": 3},
    },
    "smollm3": {
        "train-32k": {"length": 32 * K, "rope.base": 1.5e6, "tokens": 50 * B},
        "train-64k": {"length": 64 * K, "rope.base": 5e6, "tokens": 50 * B, "optimizer_from": "@train-32k"},
        "after": {"rope.type": "yarn", "rope.factor": 2},
    },
    "ultralong": {
        "rows": {"row_length": M, "tokens": B, "sources.documents.interleave.chunks": 1},
        "train": {"length": M, "tokens": B, "rope.type": "yarn", "rope.factor": 128, "rope.beta_slow": 1,
                  "rope.beta_fast": 4, "model": "meta-llama/Llama-3.1-8B-Instruct"},
        "sft": {"model": "@train"},
    },
    "gradient": {
        "train-64k": {"rope.base": 15.3e6, "tokens": 63_000_000, "lr": 2e-5},
        "train-256k": {"rope.base": 207.1e6, "tokens": 101_000_000, "lr": 2e-5},
        "train-512k": {"rope.base": 1.06e9, "tokens": 419_000_000, "lr": 2e-5},
        "train-1m": {"rope.base": 2.8e9, "tokens": 839_000_000, "lr": 2e-5, "length": M},
    },
}  # fmt: skip
# Table 9, percent of all tokens.
SHORT = {
    "fineweb-edu": 10,
    "fineweb-2023-50": 10,
    "wikipedia": 4,
    "stackexchange": 4,
    "tulu-v2": 3,
    "openwebmath": 3,
    "arxiv": 3,
}
SHARES = {
    "mix-64k": {"repositories": 30, "books": 30, "textbooks": 3, **SHORT},
    "mix-512k": {
        "repositories-512k": 15,
        "repositories-64k": 15,
        "books-512k": 5,
        "books-64k": 25,
        "textbooks": 3,
        **SHORT,
    },
}


def value(recipe: Recipe, stage: str, key: str) -> Any:
    found: Any = recipe.stage(stage).model_dump()
    for part in key.split("."):
        found = next(item for item in found if item["name"] == part) if isinstance(found, list) else found[part]
    return found


@pytest.mark.parametrize(
    ("preset", "stage", "key"), [(p, s, k) for p, stages in PAPERS.items() for s, keys in stages.items() for k in keys]
)
def test_a_published_number_stands_in_the_preset(preset, stage, key):
    assert value(load_recipe(preset), stage, key) == PAPERS[preset][stage][key]


@pytest.mark.parametrize("stage", SHARES)
def test_prolongs_shares_are_table_nine(stage):
    found = {source["name"]: 100 * source["share"] for source in value(load_recipe("prolong"), stage, "sources")}
    assert found == pytest.approx(SHARES[stage])


def test_own_sources_have_table_nines_shares_and_packing():
    """Long sources lose what is shorter than their pieces; in the second stage half of the code and a sixth of the
    books stay whole at 512K; everything short is joined."""
    recipe = load_recipe("prolong-sources")
    first, second = ({s["name"]: s for s in value(recipe, stage, "sources")} for stage in SHARES)
    assert {name: 100 * s["share"] for name, s in first.items()} == pytest.approx(SHARES["mix-64k"])
    parts = {
        f"{name}-{bucket['piece_length'] // K}k": 100 * source["share"] * bucket["share"]
        for name, source in second.items()
        for bucket in source["buckets"]
    }
    whole = {name: 100 * s["share"] for name, s in second.items() if not s["buckets"]}
    assert whole | parts == pytest.approx(SHARES["mix-512k"])
    for bucket in (b for source in second.values() for b in source["buckets"]):
        assert bucket["min_tokens"] == bucket["piece_length"] and bucket["max_tokens"] in (None, 512 * K - 1)
    for name, source in [*first.items(), *second.items()]:
        long = name in ("repositories", "books", "textbooks")
        assert (source["packing"], source["pool"]) == (("whole_documents", "") if long else ("concatenate", "short"))
        assert source["kind"] != "mds"
    same, base = (r.model_dump()["stages"] for r in (recipe, load_recipe("prolong")))
    trained = [[s for s in stages if s["kind"] in ("train", "evaluate")] for stages in (same, base)]
    assert trained[0] == trained[1], "only the data differ"


def test_llama31_goes_six_lengths_and_asks_before_each():
    stages = [s for s in load_recipe("llama31").model_dump()["stages"] if s["name"].startswith("train-")]
    assert len(stages) == 6 and stages[-1]["length"] == 128 * K
    assert sum(s["tokens"] for s in stages) == pytest.approx(800e9, rel=0.1), "about 800B tokens"
    for before, stage in itertools.pairwise(stages):
        needle, short = stage["requires"]
        assert before["length"] < stage["length"] and (needle["task"], needle["length"]) == ("needle", before["length"])
        assert needle["at_least"] == 1.0, "the needle test is perfect at the present length"
        assert short["compared_to"] == "@before" and short["at_least"] > 0.9, "short scores have recovered"


def numbers(part: Any, path: list[str]) -> Iterator[list[str]]:
    """Paths of all numbers (and sizes such as 64k) written into a preset."""
    if isinstance(part, dict):
        for key, inner in part.items():
            yield from numbers(inner, [*path, str(key)])
    elif isinstance(part, list):
        for number, inner in enumerate(part):
            name = inner.get("name") if isinstance(inner, dict) else None
            yield from numbers(inner, [*path, str(name or number)])
    elif not isinstance(part, bool) and (isinstance(part, int | float) or str(part)[:1].isdigit()):
        yield path


@pytest.mark.parametrize("preset", [*PAPERS, "prolong-sources"])
def test_every_number_of_a_paper_preset_has_its_source(preset):
    data = read_recipe(preset)
    sources = data["sources"]
    for stage in data["stages"]:
        plain = {key: part for key, part in stage.items() if key not in ("kind", "name", "title", "arm")}
        for path in numbers(plain, [stage.get("name") or stage["kind"]]):
            known = [".".join(path[:end]) for end in range(1, len(path) + 1)]
            assert any(key in sources for key in known), f"{preset}: where does {'.'.join(path)} come from?"


@pytest.mark.parametrize("preset", ["longalign", "longskywork", "llama31"])
def test_a_start_model_that_is_not_the_papers_is_said_to_differ(preset):
    assert "the paper" in read_recipe(preset)["sources"]["model"]


def test_both_rates_of_the_512k_stage_are_named_where_it_is_shown(eight_billion):
    text = show_text(load_recipe("prolong", model=str(eight_billion)))
    (line,) = (line for line in text.splitlines() if "lr: 1.0e-05" in line and "script" in line)
    assert "Table 9" in line and "1e-5" in line and "5e-6" in line and "--set train-512k.lr=5e-6" in line
    changed = load_recipe("prolong", changes=["train-512k.lr=5e-6"])
    assert value(changed, "train-512k", "lr") == 5e-6


def test_eight_devices_price_every_stage_of_prolong(eight_billion):
    """What `lengthen plan prolong --devices 8xH100-80GB` prints; the paper has 2,200 and 12,200 hours of one H100."""
    text = plan_text(load_recipe("prolong", model=str(eight_billion)), "8xH100-80GB")
    lines = [line for line in text.splitlines() if "device hours" in line]
    for line, (low, high) in zip(lines, ((1800, 2700), (9_500, 14_000), (50, 300)), strict=True):
        found = float(line.removesuffix(" device hours").rpartition(", ")[2].replace(",", ""))
        assert low < found < high, line
