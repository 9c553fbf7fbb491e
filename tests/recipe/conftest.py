"""A model of paper scale without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def config_only(folder: Path, **changes) -> Path:
    """A folder with the published config of an 8B model and no weights."""
    config = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
        "rope_theta": 500000.0, "tie_word_embeddings": False, **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def eight_billion(tmp_path_factory) -> Path:
    return config_only(tmp_path_factory.mktemp("8b"))
