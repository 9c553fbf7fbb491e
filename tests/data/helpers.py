"""Small corpora and prepared stages for the data tests."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from lengthen.common.manifest import StageContext, StageResult
from lengthen.data.prepare import prepare
from lengthen.recipe.stages.prepare import PrepareStage
from tests.conftest import make_tokenizer

WORDS = [
    "harbour",
    "boats",
    "lamps",
    "carts",
    "stones",
    "keeper",
    "crates",
    "herring",
    "crab",
    "rope",
    "number",
    "price",
    "stock",
    "return",
    "town",
    "wet",
]


def model_folder(path: Path) -> Path:
    """A folder that is enough of a model for the data engine: tokenizer and config."""
    make_tokenizer(path)
    (path / "config.json").write_text("{}")
    return path


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def corpus(path: Path, documents: int, seed: int = 0, longest: int = 400, domain: str = "") -> Path:
    """JSONL of random texts whose lengths are spread over two orders of magnitude."""
    rng = random.Random(seed)
    rows = [
        {
            "id": f"{seed}-{n}",
            "text": words(rng, round(longest ** rng.random())),
            **({"domain": domain} if domain else {}),
        }
        for n in range(documents)
    ]
    return write_jsonl(path, rows)


def stage(model: Path, sources: list[dict[str, Any]], **settings: Any) -> PrepareStage:
    base: dict[str, Any] = {"name": "prepare", "model": str(model), "row_length": 256, "executor": {"workers": 1}}
    return PrepareStage.model_validate({**base, "sources": sources, **settings})


def run(settings: PrepareStage, folder: Path, seed: int = 7) -> StageResult:
    folder.mkdir(parents=True, exist_ok=True)
    return prepare(settings, StageContext(folder, seed=seed, recipe="test", stage="prepare"))
