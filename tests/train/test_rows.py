"""Row sets put together, and rows made with another vocabulary."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lengthen.common.errors import LengthenError
from lengthen.models import load_tokenizer
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
