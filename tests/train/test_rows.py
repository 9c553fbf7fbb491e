"""Row sets put together, and rows made with another vocabulary."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lengthen.common.errors import LengthenError
from lengthen.models import load_tokenizer
from lengthen.train import rows as rows_module
from lengthen.train.collate import Collator
from lengthen.train.rows import check_rows, check_tokenizer, open_training_rows, row_of
from tests.train.rows import make_row, write_rows


def test_sets_with_and_without_masks_go_together(tmp_path):
    rng = random.Random(0)
    chat = write_rows(tmp_path / "chat", [make_row(rng, [30, 20], 300, masked=2.0), make_row(rng, [40], 300)])
    text = tmp_path / "text" / "rows"
    text.mkdir(parents=True)
    row = make_row(rng, [25, 35], 300, attend="joined")
    plain = {key: row[key] for key in ("input_ids", "doc_lens", "attend", "sources")}
    lists = pa.list_(pa.int32())
    types = {"input_ids": lists, "doc_lens": lists, "attend": pa.string(), "sources": pa.list_(pa.string())}
    pq.write_table(pa.Table.from_pylist([plain], schema=pa.schema(types)), text / "00000.parquet")
    (text / "dataset.json").write_text(json.dumps({"columns": list(types)}))
    rows = open_training_rows([str(chat), str(tmp_path / "text")])
    assert rows.lengths.tolist() == [50, 40, 60] and rows.costs.tolist() == [1300.0, 1600.0, 3600.0]
    assert rows.longest == 60 and rows.reach == 60
    batches = [Collator()([row_of(rows.data, i)]) for i in range(3)]
    assert [b.trained for b in batches] == [0, 39, 59]
    assert batches[2].doc_lens.tolist() == [60] and batches[2].input_ids[0].tolist() == row["input_ids"]
    check_rows(rows, positions=60, vocabulary=300)
    with pytest.raises(LengthenError, match="59 positions"):
        check_rows(rows, positions=59, vocabulary=300)


def test_other_tokenizer_is_refused(tmp_path, model_folder):
    from lengthen.data.tokenize import vocabulary_sha256

    tokenizer = load_tokenizer(model_folder)
    folder = write_rows(tmp_path / "rows", [make_row(random.Random(0), [30], 300)])
    facts = json.loads((folder / "rows" / "dataset.json").read_text())
    for sha256, refused in ((vocabulary_sha256(tokenizer), False), ("0" * 64, True)):
        (folder / "rows" / "dataset.json").write_text(json.dumps({**facts, "tokenizer_sha256": sha256}))
        if refused:
            with pytest.raises(LengthenError, match="another tokenizer"):
                check_tokenizer([str(folder)], tokenizer)
        else:
            check_tokenizer([str(folder)], tokenizer)


def test_rows_of_equal_shape_have_another_content(tmp_path, monkeypatch):
    rng = random.Random(3)
    rows = [make_row(rng, [4, 6], 300, masked=0.5) for _ in range(1000)]

    def content(name: str, **late) -> str:
        changed = [*rows[:700], {**rows[700], **late}, *rows[701:]]
        found = open_training_rows([str(write_rows(tmp_path / name, changed))])
        assert found.sha256 == same.sha256
        return found.content_sha256

    same = open_training_rows([str(write_rows(tmp_path / "same", rows))])
    found = [content("again"), content("ids", input_ids=list(range(10))), content("mask", loss_mask=[1] * 9 + [0]),
             content("units", unit_lens=[5, 5])]  # fmt: skip
    assert found[0] == same.content_sha256 and len(set(found)) == 4
    # Of a large set a part is read: 100 rows of 1,000, the first and the last among them.
    monkeypatch.setattr(rows_module, "HASHED_TOKENS", 1000)
    part = same.content_sha256
    assert part != found[0] and content("again") == part
    rows[-1] = {**rows[-1], "input_ids": list(range(10))}
    assert content("last") != part


def many(tmp_path, **late):
    """3,000 rows of 10 tokens; the row 2,345 is changed by `late`."""
    rng = random.Random(1)
    rows = [make_row(rng, [4, 6], 300, masked=2.0) for _ in range(3000)]
    rows[2345] = {**rows[2345], **late}
    return open_training_rows([str(write_rows(tmp_path / "rows", rows))])


@pytest.mark.parametrize(
    ("late", "words"),
    [
        ({"input_ids": [*range(9), 300]}, "Row 2345 holds token 300, but the model knows 300 tokens"),
        ({"input_ids": [*range(9), -1]}, "Row 2345 holds token -1"),
        ({"input_ids": list(range(9))}, "Row 2345: its doc_lens do not add up"),
        ({}, "loss_mask of all 3,000 rows is 0"),
    ],
)
def test_one_bad_row_among_thousands_is_found(tmp_path, late, words):
    with pytest.raises(LengthenError, match=words):
        check_rows(many(tmp_path, **late), positions=512, vocabulary=300)


def test_one_trained_row_among_thousands_suffices(tmp_path):
    looked = check_rows(many(tmp_path, loss_mask=[1] * 10), positions=512, vocabulary=300)
    assert looked == "checked before training: lengths of all 3,000 rows, token ids of all of them"


def test_of_a_large_set_blocks_are_read_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_module, "READ_TOKENS", 12_000)
    # Stretches of 18 rows: 56 of 167.
    looked = check_rows(many(tmp_path, loss_mask=[1] * 10), positions=512, vocabulary=300)
    assert "token ids of 1,002, spread over the set, of them" in looked
    rng = random.Random(1)
    rows = [make_row(rng, [4, 6], 300) for _ in range(3000)]
    rows[-1] = {**rows[-1], "input_ids": [*range(9), 300]}
    with pytest.raises(LengthenError, match="Row 2999 holds token 300"):
        check_rows(open_training_rows([str(write_rows(tmp_path / "last", rows))]), positions=512, vocabulary=300)


def test_units_that_rows_carry_are_counted_and_checked(tmp_path):
    rng = random.Random(2)
    talk = {**make_row(rng, [10], 300), "loss_mask": [0] * 6 + [1] * 4}
    text = {**make_row(rng, [10], 300), "loss_mask": [1] * 10, "unit_lens": []}
    rows = [{**talk, "unit_lens": [3, 2, 5]}, {**talk, "unit_lens": [10]}, text]
    found = open_training_rows([str(write_rows(tmp_path / "some", rows))])
    assert found.units.tolist() == [3, 1, 0] and found.whole == 1
    assert row_of(found.data, 2)["unit_lens"] is None
    with pytest.raises(LengthenError, match="Row 1: its unit_lens do not add up"):
        open_training_rows([str(write_rows(tmp_path / "bad", [text, {**talk, "unit_lens": [3, 2]}]))])
