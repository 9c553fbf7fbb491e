"""What `lengthen inspect` shows."""

from __future__ import annotations

import json

import pytest

from lengthen.common.errors import LengthenError
from lengthen.data.inspect import inspect_path
from tests.conftest import make_tokenizer
from tests.data.helpers import corpus, model_folder, run, stage, write_jsonl


def test_rows_with_boundaries_masks_histograms_and_drops(tmp_path):
    model = model_folder(tmp_path / "model")
    talks = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": f"{n} crates"}],
        }
        for n in range(3)
    ]
    sources = [
        {"kind": "chat", "paths": str(write_jsonl(tmp_path / "chat.jsonl", talks))},
        {"kind": "jsonl", "paths": str(corpus(tmp_path / "in.jsonl", 50))},
    ]
    run(stage(model, sources, filters={"min_tokens": 20}), tmp_path / "out")
    text = inspect_path(tmp_path / "out", rows=99, model=str(model))
    assert "⟦2 crates<|im_end|>⟧ trained" in text and "how many?" in text
    assert "documents do not see each other" in text and "├─ 1: " in text and "└─ end" in text
    assert "too_short" in text and "% full" in text and "█" in text and "100.00%" not in text
    assert "<|im_start|>" not in inspect_path(tmp_path / "out/rows", rows=99)
    other = tmp_path / "other"
    make_tokenizer(other, size=300)
    (other / "config.json").write_text("{}")
    with pytest.raises(LengthenError, match="another tokenizer"):
        inspect_path(tmp_path / "out", model=str(other))


def test_conversations_documents_and_nothing(tmp_path):
    talk = {"id": "t1", "messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]}
    write_jsonl(tmp_path / "chat.jsonl", [talk] * 5)
    text = inspect_path(tmp_path, rows=2)
    assert "5 items" in text and text.count("assistant: because") == 2
    (tmp_path / "bad.jsonl").write_text(json.dumps(talk) + "\n{oops\n")
    with pytest.raises(LengthenError, match=r"bad\.jsonl, line 2 is not JSON"):
        inspect_path(tmp_path / "bad.jsonl")
    with pytest.raises(LengthenError, match="There is no"):
        inspect_path(tmp_path / "gone")
