"""The two stages as the runner calls them: files, resuming, processes, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import StageContext
from lengthen.recipe.stages.questions import QuestionsStage
from lengthen.recipe.stages.tables import TablesStage
from lengthen.synthesize.questions import write_questions
from lengthen.synthesize.tables import write_tables
from tests.conftest import make_tokenizer

SMALL = {"min_tokens": 1200, "max_tokens": 3000}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """What the stages need of a model: its tokenizer."""
    return str(model_with_tokenizer(tmp_path_factory.mktemp("model")))


def model_with_tokenizer(folder: Path) -> Path:
    make_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def tables(model, **changes) -> TablesStage:
    return TablesStage.model_validate({"model": model, "count": 9, **SMALL, **changes})


def questions(model, **changes) -> QuestionsStage:
    return QuestionsStage.model_validate(
        {"model": model, "count": 9, "documents": ["python#*/argparse.py"], **SMALL, **changes}
    )


def test_tables_are_the_same_bytes_in_any_number_of_processes(model, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    result = write_tables(tables(model), StageContext(one, seed=5))
    again = write_tables(tables(model, workers=2), StageContext(two, seed=5))
    content = (one / "chat.jsonl").read_bytes()
    assert content == (two / "chat.jsonl").read_bytes() and result == again
    samples = [json.loads(line) for line in content.decode().splitlines()]
    assert [s["id"] for s in samples] == [f"tables-train-{i:06d}" for i in range(9)]
    assert all([m["role"] for m in s["messages"][:2]] == ["user", "assistant"] for s in samples)
    assert result.counts["conversations"] == 9 and result.counts["tokens"] == sum(s["meta"]["tokens"] for s in samples)
    assert sum(row["items"] for row in result.drops.values()) == sum(
        times for s in samples for times in s["meta"]["redrawn"].values()
    )
    write_tables(tables(model, count=4), StageContext(two, seed=5))
    assert (two / "chat.jsonl").read_bytes() == b"".join(content.splitlines(keepends=True)[:4])
    write_tables(tables(model), StageContext(two, seed=5))
    assert (two / "chat.jsonl").read_bytes() == content
    other = tmp_path / "other"
    other.mkdir()
    write_tables(tables(model), StageContext(other, seed=6))
    assert (other / "chat.jsonl").read_bytes() != content


@pytest.mark.slow
def test_questions_are_the_same_bytes_in_any_number_of_processes(model, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    result = write_questions(questions(model), StageContext(one, seed=5))
    assert write_questions(questions(model, workers=2), StageContext(two, seed=5)) == result
    assert (one / "chat.jsonl").read_bytes() == (two / "chat.jsonl").read_bytes()


def test_killed_while_writing_it_goes_on_to_the_same_bytes(model, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    settings = tables(model, count=120)
    write_tables(settings, StageContext(whole, seed=1))
    code = (
        "import sys, json; from pathlib import Path\n"
        "from lengthen.common.manifest import StageContext; from lengthen.recipe.stages.tables import TablesStage\n"
        "from lengthen.synthesize.tables import write_tables\n"
        "write_tables(TablesStage.model_validate_json(sys.argv[1]), StageContext(Path(sys.argv[2]), seed=1))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, settings.model_dump_json(), str(killed)])
    part = killed / ".chat.jsonl.part"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not (part.exists() and part.stat().st_size > 9000):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert part.exists() and not (killed / "chat.jsonl").exists()
    with open(part, "ab") as file:
        file.write(b'{"id": "torn')
    write_tables(settings, StageContext(killed, seed=1))
    assert (killed / "chat.jsonl").read_bytes() == (whole / "chat.jsonl").read_bytes()
    assert not part.exists()


def test_lengths_too_short_for_the_columns(model, tmp_path):
    settings = tables(model, min_tokens=150, max_tokens=3000, min_columns=12)
    with pytest.raises(
        LengthenError, match=r"12 columns and 3 rows .* does not fit into 150 tokens .*min_tokens is 150"
    ):
        write_tables(settings, StageContext(tmp_path))
    assert not (tmp_path / "chat.jsonl").exists()


def test_a_length_below_the_smallest_table(model, tmp_path):
    settings = tables(model, min_tokens=60, max_tokens=60, min_columns=2, max_columns=3)
    with pytest.raises(LengthenError, match=r"2 columns and 3 rows .* does not fit into 60 tokens"):
        write_tables(settings, StageContext(tmp_path))
    assert not (tmp_path / "chat.jsonl").exists()


def test_tasks_that_the_columns_do_not_allow(model, tmp_path):
    settings = tables(model, max_columns=2, min_columns=2, families=["global"], tasks=["group_best"])
    with pytest.raises(LengthenError, match="need more than max_columns=2"):
        write_tables(settings, StageContext(tmp_path))
    settings = tables(model, families=["reasoning"], tasks=["join"], joins=0)
    with pytest.raises(LengthenError, match=r"second table \(joins is 0\)"):
        write_tables(settings, StageContext(tmp_path))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"count": 0}, "greater than or equal to 1"),
        ({"languages": ["fr"]}, "'en' or 'zh'"),
        ({"languages": []}, "at least 1 item"),
        ({"min_columns": 9, "max_columns": 5}, r"min_columns \(9\) is above max_columns \(5\)"),
        ({"min_tokens": "8k", "max_tokens": "4k"}, r"min_tokens \(8192\) is above max_tokens \(4096\)"),
        ({"tasks": ["mean"], "families": ["retrieval"]}, "mean belong to none of the families retrieval"),
        ({"tasks": ["mean"]}, "family retrieval has none of its tasks"),
        ({"max_columns": 40}, "less than or equal to 12"),
        ({"colums": 4}, "Extra inputs"),
    ],
)
def test_wrong_settings(model, changes, words):
    with pytest.raises(ValidationError, match=words):
        tables(model, **changes)


def test_a_tokenizer_without_a_chat_template(tmp_path):
    from transformers import AutoTokenizer

    folder = model_with_tokenizer(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        (folder / file).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    with pytest.raises(LengthenError, match="no chat template"):
        write_tables(tables(str(folder)), StageContext(tmp_path))


def test_a_tokenizer_that_splits_digits_oddly_changes_lengths_and_no_answer(tmp_path):
    """Merges of three digits from the left: 1234 is 123|4. Answers are checked on the text, so none may be lost."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from lengthen.synthesize.conversation import build
    from lengthen.synthesize.scoring import score
    from lengthen.synthesize.tokens import Counter
    from tests.conftest import CHAT_TEMPLATE

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in "0123456789" for b in "0123456789"]
    triples = [(a + b, c) for a, b in pairs for c in "0123456789"]
    merges = [*pairs, *triples]
    words = [*letters, *(a + b for a, b in merges), "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    counter = Counter(PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE))
    settings = TablesStage.model_validate({"min_tokens": 3000, "max_tokens": 9000})
    for index in range(12):
        sample = build(settings, counter, 0, index)
        assert counter.conversation(sample["messages"]) == sample["meta"]["tokens"] <= sample["meta"]["target"]
        for number, turn in enumerate(sample["meta"]["turns"]):
            said = sample["messages"][2 * number + 1]["content"]
            assert score(said, turn["answer"], ordered=turn["ordered"]) == 1.0
        assert "check_disagreed" not in sample["meta"]["redrawn"]
