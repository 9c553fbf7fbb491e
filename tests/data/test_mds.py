"""MDS shards: the layout as published, a round trip, and broken ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lengthen.common.errors import LengthenError
from lengthen.data.document import Ledger
from lengthen.data.mds import mds_spans, read_mds, read_mds_documents, write_mds
from lengthen.data.shards import Row, open_rows, read_row
from tests.data.helpers import model_folder, run, stage


def some_rows(count: int, masked: bool) -> list[Row]:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        lens = rng.integers(1, 400, size=rng.integers(1, 6)).astype(np.int32)
        ids = rng.integers(0, 50_000, size=int(lens.sum())).astype(np.int32)
        mask = rng.integers(0, 2, size=len(ids)).astype(np.uint8) if masked else None
        rows.append(Row(ids, lens, "isolated", ("books",) * len(lens), mask))
    return rows


def documents(folder) -> list:
    found = []
    for span, size in mds_spans(str(folder), "sources.mds"):
        assert size > 0
        found += read_mds_documents("mds", span.path, span.name, Ledger())
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_rows_survive_writing_and_reading(tmp_path, masked):
    rows = some_rows(20, masked)
    assert write_mds(tmp_path, rows, shard_bytes=9000) == 20
    assert len(json.loads((tmp_path / "index.json").read_text())["shards"]) > 2
    found = documents(tmp_path)
    wanted = [part for row in rows for part in np.split(row.ids, np.cumsum(row.doc_lens)[:-1])]
    assert [d.ids.tolist() for d in found] == [part.tolist() for part in wanted]
    assert all(d.ids.dtype == np.int32 and d.domain == "books" for d in found)
    if masked:
        masks = [part for row in rows for part in np.split(row.loss_mask, np.cumsum(row.doc_lens)[:-1])]  # type: ignore[arg-type]
        assert [d.mask.tolist() for d in found] == [part.tolist() for part in masks]


def test_bytes_as_the_format_has_them(tmp_path):
    """One sample of two columns, put together by hand."""
    config = b'{"format": "mds"}'
    ids = np.arange(5, dtype=np.uint32)
    # ndarray of free type and shape: type code 32 = uint32; (1 dimension << 2) | 0 = shape in uint8; shape; values
    array = bytes([32, (1 << 2) | 0, 5]) + ids.tobytes()
    sample = np.array([len(array)], np.uint32).tobytes() + array + np.int64(5).tobytes()
    start = 4 + 8 + len(config)
    data = np.array([1, start, start + len(sample)], np.uint32).tobytes() + config + sample
    (tmp_path / "shard.00000.mds").write_bytes(data)
    shard = {
        "column_encodings": ["ndarray", "int"], "column_names": ["input_ids", "length"], "column_sizes": [None, 8],
        "compression": None, "format": "mds", "hashes": [], "samples": 1, "size_limit": 2**26, "version": 2,
        "raw_data": {"basename": "shard.00000.mds", "bytes": len(data), "hashes": {}}, "zip_data": None,
    }  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"shards": [shard], "version": 2}))
    [found] = list(read_mds(tmp_path, 0))
    assert found["input_ids"].tolist() == [0, 1, 2, 3, 4] and found["length"] == 5
    assert [d.ids.tolist() for d in documents(tmp_path)] == [[0, 1, 2, 3, 4]]


def test_compressed_shards(tmp_path):
    import zstandard

    write_mds(tmp_path, some_rows(3, False))
    plain = [d.ids.tolist() for d in documents(tmp_path)]
    index = json.loads((tmp_path / "index.json").read_text())
    raw = tmp_path / index["shards"][0]["raw_data"]["basename"]
    (tmp_path / f"{raw.name}.zstd").write_bytes(zstandard.compress(raw.read_bytes()))
    raw.unlink()
    index["shards"][0] |= {
        "compression": "zstd:7",
        "zip_data": {"basename": f"{raw.name}.zstd", "bytes": 1, "hashes": {}},
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert [d.ids.tolist() for d in documents(tmp_path)] == plain


def test_remote_folders(tmp_path):
    import fsspec

    write_mds(tmp_path, some_rows(5, True), shard_bytes=9000)
    fs = fsspec.filesystem("memory")
    for file in tmp_path.iterdir():
        fs.pipe(f"/mds/{file.name}", file.read_bytes())
    found = []
    for span, _ in mds_spans("memory://mds", "sources.mds"):
        found += read_mds_documents("mds", span.path, span.name, Ledger())
    assert [d.ids.tolist() for d in found] == [d.ids.tolist() for d in documents(tmp_path)]
    fs.pipe("/broken/index.json", b'{"version": 2, "sha')
    with pytest.raises(LengthenError, match="memory://broken cannot be read"):
        list(mds_spans("memory://broken", "sources.mds"))
    with pytest.raises(LengthenError, match="memory://empty is no MDS folder"):
        list(mds_spans("memory://empty", "sources.mds"))


def test_a_prepare_stage_packs_mds_anew_with_its_masks(tmp_path):
    rows = some_rows(10, True)
    write_mds(tmp_path / "mds", rows)
    model = model_folder(tmp_path / "model")
    run(stage(model, [{"kind": "mds", "paths": str(tmp_path / "mds")}], row_length=2048), tmp_path / "out")
    dataset = open_rows(tmp_path / "out")
    made = [read_row(dataset, number) for number in range(len(dataset))]
    key = {}
    for row in rows:
        for ids, mask in zip(*(np.split(a, np.cumsum(row.doc_lens)[:-1]) for a in (row.ids, row.loss_mask))):  # type: ignore[arg-type]
            key[tuple(ids.tolist())] = mask.tolist()
    seen = 0
    for row in made:
        for ids, mask in zip(*(np.split(a, np.cumsum(row.doc_lens)[:-1]) for a in (row.ids, row.loss_mask))):  # type: ignore[arg-type]
            assert key[tuple(ids.tolist())] == mask.tolist()
            seen += 1
    assert seen == len(key)


def test_masked_rows_are_not_untied(tmp_path):
    model = model_folder(tmp_path / "model")
    for masked in (True, False):
        write_mds(tmp_path / f"mds-{masked}", some_rows(20, masked))
        source = {"kind": "mds", "paths": str(tmp_path / f"mds-{masked}"), "interleave": {"method": "utk"}}
        settings = stage(model, [source], row_length=2048)
        if masked:
            with pytest.raises(LengthenError, match="utk with a mask"):
                run(settings, tmp_path / "masked")
        else:
            assert run(settings, tmp_path / "plain").counts["rows"] > 0


def test_broken_folders(tmp_path):
    with pytest.raises(LengthenError, match="no MDS folder"):
        list(mds_spans(str(tmp_path), "sources.mds"))
    write_mds(tmp_path, some_rows(3, False))
    shard = next(tmp_path.glob("*.mds"))
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(LengthenError, match="shard 0: it cannot be read"):
        documents(tmp_path)
