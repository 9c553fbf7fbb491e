"""ProLong's, LongAlign's and LongRecipe's presets hold the papers' numbers, and say where each comes from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lengthen.commands import plan_text, show_text
from lengthen.recipe.load import load_recipe, read_recipe
from lengthen.recipe.schema import Recipe

K, B = 2**10, 2**30
ADAM = {"betas": (0.9, 0.95), "weight_decay": 0.1, "grad_clip": 1.0}
# ProLong: arXiv 2410.02660, Table 9, and the scripts of princeton-nlp/ProLong at 907dcf4. LongAlign: 2401.18058,
# sections 3 and 4 and its training script. LongRecipe: 2409.00509, section 4, Table 4 and its training script.
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
        found = found[part]
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


@pytest.mark.parametrize("preset", PAPERS)
def test_every_number_of_a_paper_preset_has_its_source(preset):
    data = read_recipe(preset)
    sources = data["sources"]
    for stage in data["stages"]:
        plain = {key: part for key, part in stage.items() if key not in ("kind", "name", "title")}
        for path in numbers(plain, [stage.get("name") or stage["kind"]]):
            known = [".".join(path[:end]) for end in range(2, len(path) + 1)]
            assert any(key in sources for key in known), f"{preset}: where does {'.'.join(path)} come from?"


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
