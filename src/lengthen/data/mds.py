"""Tokenised MDS folders of ProLong's published layout, read and written here: MosaicML's package asks for older
transformers and numpy than this project runs with.

A shard file: number of samples n (uint32), n + 1 offsets from the file's start (uint32), the writer's settings as
JSON, the samples. A sample: the byte lengths (uint32) of those columns that have no fixed length, then the columns,
in the order of `column_names`. An `ndarray` column: its number type (one byte) unless the encoding names it, a byte
that joins the number of dimensions with the width of the shape's numbers, the shape, the values. `index.json` lists the
shards. Format version 2.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.files import write_atomic, write_json
from lengthen.data import storage
from lengthen.data.document import Document, Ledger
from lengthen.data.shards import Row
from lengthen.data.sources import Span

_TYPES = {8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 18: "<f2", 32: "<u4", 33: "<i4", 34: "<f4", 64: "<u8", 65: "<i8",
          66: "<f8"}  # fmt: skip
_NAMES = {"uint8": 8, "int8": 9, "uint16": 16, "int16": 17, "float16": 18, "uint32": 32, "int32": 33, "float32": 34,
          "uint64": 64, "int64": 65, "float64": 66}  # fmt: skip
_FIXED = {"int": "<i8", **{name: _TYPES[code] for name, code in _NAMES.items()}}
_SHAPE = ("u1", "<u2", "<u4", "<u8")


def mds_spans(path: str, key: str) -> Iterator[tuple[Span, int]]:
    """One span a shard, with its size. The folder may be remote."""
    folder = path if storage.is_remote(path) else str(Path(path).expanduser())
    try:
        shards = _index(folder)
    except FileNotFoundError as error:
        why = str(error) if storage.is_remote(path) else None
        raise LengthenError(
            f"{key}: {path} is no MDS folder (it has no index.json).",
            why=why,
            fix="give the folder that holds index.json",
        ) from error
    except (ImportError, OSError, ValueError) as error:
        fix = "check the address, your rights, and that index.json is whole"
        raise LengthenError(f"{key}: {path} cannot be read: {error}.", fix=fix) from error
    name = folder.rstrip("/").rsplit("/", 1)[-1]
    for number, shard in enumerate(shards):
        yield Span(folder, f"{name}/{number}", number, number + 1), int(shard["raw_data"]["bytes"])


def _index(folder: str) -> list[dict[str, Any]]:
    index = json.loads(storage.read_bytes(storage.join(folder, "index.json")))
    if index.get("version") != 2 or any(shard.get("format") != "mds" for shard in index["shards"]):
        raise LengthenError(f"{folder} is no MDS folder of version 2.", fix="write it anew with a current streaming")
    return index["shards"]


def read_mds(folder: Path | str, shard: int) -> Iterator[dict[str, Any]]:
    """Samples of one shard: column name -> int, float, str, bytes or array."""
    about = _index(str(folder))[shard]
    data = _shard_bytes(str(folder), about)
    count = int(np.frombuffer(data, "<u4", 1)[0])
    offsets = np.frombuffer(data, "<u4", count + 1, 4).tolist()
    columns = list(zip(about["column_names"], about["column_encodings"], about["column_sizes"]))
    for begin, end in itertools.pairwise(offsets):
        yield _sample(data[begin:end], columns)


def _shard_bytes(folder: str, about: dict[str, Any]) -> bytes:
    try:
        return storage.read_bytes(storage.join(folder, about["raw_data"]["basename"]))
    except OSError:  # stores without the right to list say "forbidden" of what is not there
        if not about.get("zip_data"):
            raise
    packed, kind = storage.join(folder, about["zip_data"]["basename"]), str(about["compression"]).split(":")[0]
    if kind not in ("zstd", "gz"):
        raise LengthenError(f"{packed}: compression '{kind}' is not read here.", fix="unpack it, or use zstd or gz")
    if kind == "gz":
        import gzip

        return gzip.decompress(storage.read_bytes(packed))
    import pyarrow as pa

    return pa.CompressedInputStream(pa.py_buffer(storage.read_bytes(packed)), "zstd").read()


def _sample(data: bytes, columns: list[tuple[str, str, int | None]]) -> dict[str, Any]:
    place, sizes = 0, []
    for _, _, fixed in columns:
        sizes.append(fixed or int(np.frombuffer(data, "<u4", 1, place)[0]))
        place += 0 if fixed else 4
    sample = {}
    for (name, encoding, _), size in zip(columns, sizes):
        sample[name] = _decode(encoding, data[place : place + size])
        place += size
    return sample


def _decode(encoding: str, data: bytes) -> Any:
    if encoding.startswith("ndarray"):
        return _decode_array(encoding, data)
    if encoding == "str":
        return data.decode()
    if encoding == "bytes":
        return data
    if encoding in _FIXED:
        return np.frombuffer(data, _FIXED[encoding])[0].item()
    raise LengthenError(
        f"An MDS column of type '{encoding}' is not read here.", fix="it may hold code (pickle); drop it"
    )


def _decode_array(encoding: str, data: bytes) -> np.ndarray:
    declared = encoding.split(":")
    place = 0
    if len(declared) > 1 and declared[1]:
        kind = _TYPES[_NAMES[declared[1]]]
    else:
        kind, place = _TYPES[data[0]], 1
    if len(declared) > 2:
        shape = [int(size) for size in declared[2].split(",")]
    else:
        dimensions, width = data[place] >> 2, _SHAPE[data[place] & 3]
        shape = np.frombuffer(data, width, dimensions, place + 1).tolist()
        place += 1 + dimensions * np.dtype(width).itemsize
    return np.frombuffer(data, kind, offset=place).reshape(shape)


def _encode_array(values: np.ndarray) -> bytes:
    least = max(values.shape)
    width = next(n for n, kind in enumerate(_SHAPE) if least <= np.iinfo(np.dtype(kind)).max)
    head = bytes([_NAMES[values.dtype.name], (values.ndim << 2) | width])
    return head + np.array(values.shape, _SHAPE[width]).tobytes() + np.ascontiguousarray(values).tobytes()


def read_mds_documents(source: str, path: str, name: str, ledger: Ledger) -> Iterator[Document]:
    """Documents of one shard. `indices` (n, 2) are the half-open spans of documents in a packed sample; without them a
    sample is one document. `mask`: 1 = trained."""
    shard = int(name.rsplit("/", 1)[-1])
    try:
        for number, sample in enumerate(read_mds(path, shard)):
            where = f"{path}, shard {shard}, sample {number}"
            if "input_ids" not in sample:
                ledger.problem("missing_field", where, f"there is no 'input_ids' (it has {', '.join(sample)})")
                continue
            yield from _documents(source, name, number, where, sample, ledger)
    except (*storage.READ_ERRORS, ValueError, IndexError, KeyError) as error:
        ledger.problem("broken_file", f"{path}, shard {shard}", f"it cannot be read ({error})")


def _documents(
    source: str, name: str, number: int, where: str, sample: dict[str, Any], ledger: Ledger
) -> Iterator[Document]:
    ids = np.asarray(sample["input_ids"])
    mask = (np.asarray(sample["mask"]) != 0).astype(np.uint8) if "mask" in sample else None
    spans = np.asarray(sample.get("indices", [(0, len(ids))])).reshape(-1, 2).tolist()
    if spans and (min(b for b, _ in spans) < 0 or max(e for _, e in spans) > len(ids)):
        ledger.problem("bad_indices", where, f"its indices leave the {len(ids)} tokens")
        return
    for piece, (begin, end) in enumerate(spans):
        if end <= begin:
            ledger.drops.add("empty_text")
            continue
        part = ids[begin:end].astype(np.int32)
        chosen = mask[begin:end] if mask is not None else None
        meta = {"domain": str(sample.get("domain", ""))}
        yield Document(f"{name}@{number}.{piece}", "", source, meta, ids=part, mask=chosen)


def write_mds(folder: Path, rows: Iterable[Row], *, shard_bytes: int = 2**26) -> int:
    """Write rows in ProLong's packed layout (input_ids, indices, length, domain, and mask where rows have one), for
    trainers that read MDS. Returns the number of rows. Joined rows become one document, as they are attended."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Any]] = []
    held: list[bytes] = []
    columns: dict[str, str] = {}
    count = size = 0
    for row in rows:
        sample = _row_sample(row)
        columns = columns or {name: _encoding(value) for name, value in sorted(sample.items())}
        if {*columns} != {*sample}:
            raise LengthenError("Some rows have a mask and some have none; MDS shards need the same columns in all.")
        data = _encode_sample(sample, columns)
        if held and size + len(data) > shard_bytes:
            shards.append(_write_shard(folder, len(shards), held, columns))
            held, size = [], 0
        held.append(data)
        size += len(data) + 4
        count += 1
    if held:
        shards.append(_write_shard(folder, len(shards), held, columns))
    write_json(folder / "index.json", {"shards": shards, "version": 2})
    return count


def _row_sample(row: Row) -> dict[str, Any]:
    lens = np.array([len(row.ids)]) if row.attend == "joined" else np.asarray(row.doc_lens)
    ends = np.cumsum(lens)
    domain = row.sources[0] if len(set(row.sources)) == 1 else "mixed"
    sample = {
        "domain": domain,
        "indices": np.stack([ends - lens, ends], axis=1).astype(np.uint32),
        "input_ids": np.asarray(row.ids).astype(np.uint32),
        "length": len(row.ids),
    }
    return sample if row.loss_mask is None else {**sample, "mask": np.asarray(row.loss_mask, np.uint8)}


def _encoding(value: Any) -> str:
    return "ndarray" if isinstance(value, np.ndarray) else "int" if isinstance(value, int) else "str"


def _encode_sample(sample: dict[str, Any], columns: dict[str, str]) -> bytes:
    encoded = {
        name: _encode_array(sample[name]) if kind == "ndarray" else
        np.int64(sample[name]).tobytes() if kind == "int" else str(sample[name]).encode()
        for name, kind in columns.items()
    }  # fmt: skip
    sizes = np.array([len(encoded[name]) for name, kind in columns.items() if kind != "int"], "<u4")
    return sizes.tobytes() + b"".join(encoded[name] for name in columns)


def _write_shard(folder: Path, number: int, samples: list[bytes], columns: dict[str, str]) -> dict[str, Any]:
    about: dict[str, Any] = {
        "column_encodings": list(columns.values()), "column_names": list(columns),
        "column_sizes": [8 if kind == "int" else None for kind in columns.values()], "compression": None,
        "format": "mds", "hashes": [], "size_limit": None, "version": 2,
    }  # fmt: skip
    config = json.dumps(about, sort_keys=True).encode()
    sizes = [len(sample) for sample in samples]
    start = 4 + 4 * (len(samples) + 1) + len(config)
    offsets = (np.concatenate([[0], np.cumsum(sizes)]) + start).astype("<u4")
    data = np.array([len(samples)], "<u4").tobytes() + offsets.tobytes() + config + b"".join(samples)
    name = f"shard.{number:05d}.mds"
    write_atomic(folder / name, data)
    raw = {"basename": name, "bytes": len(data), "hashes": {}}
    return {**about, "raw_data": raw, "samples": len(samples), "zip_data": None}
