"""Figures of the data engine, a peer beside us in the same run: `python -m benchmarks.data [--only ID ...]`.

Writes results/benchmarks/data.json; rows of ids that are not asked for stay as they are. `ratio` is how many times
better we are. All on one core (the process pins itself), medians over alternating runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import alternate, row, store

PACK = {"pack-8k": 8192, "pack-64k": 65_536, "pack-512k": 524_288}
HEAVY = ("tokenize", "tokenize-ceiling", "prepare-memory")
IDS = (*HEAVY, *PACK, "read")
DOCUMENTS = 1_000_000
PEER_DOCUMENTS = 50_000
RUNS = 3


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds, and the result. The process is pinned to one core, and other programs do not count."""
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def pack_rows(names: Sequence[str], peer_documents: int = PEER_DOCUMENTS) -> Iterator[dict[str, Any]]:
    """Packing a million lognormal lengths (mu 6.0, sigma 1.4: median 403, mean 1,075). The peer packs tokens too, and
    cannot do otherwise; it gets the ids of the first 50,000 documents and its speed is taken per document."""
    from lengthen.data.pack import Packing, pack_best_fit

    lengths = np.maximum(1, np.random.default_rng(0).lognormal(6.0, 1.4, DOCUMENTS)).astype(np.int64)
    total = int(lengths.sum())
    for name in names:
        length = PACK[name]

        def ours(_: int, length: int = length) -> dict[str, Any]:
            seconds, packing = timed(lambda: pack_best_fit(lengths, length))
            return {"speed": DOCUMENTS / seconds, "packing": packing}

        def theirs(_: int, length: int = length) -> dict[str, Any]:
            found = {way: peer_pack(lengths[:peer_documents], length, way) for way in ("bfd_split", "bfd")}
            return {way: (peer_documents / seconds, kept) for way, (seconds, kept) in found.items()}

        mine, other = alternate(RUNS, ours, theirs)
        packing: Packing = mine[-1]["packing"]
        speeds, bfd = [run["speed"] for run in mine], [run["bfd"][0] for run in other]
        yield row(
            name,
            f"best-fit packing of 1M lognormal lengths into rows of {length:,}, one core",
            f"TRL pack_dataset, bfd_split (the first {peer_documents:,} of the documents)",
            speeds,
            [run["bfd_split"][0] for run in other],
            "documents/s",
            better="higher",
            details={
                "fill": total / (packing.count * length), "rows": packing.count,
                "rows_lower_bound": -(-total // length),
                "tokens_lost": total - int(packing.length.sum()),
                "trl_bfd": {"ours_over": statistics.median(a / b for a, b in zip(speeds, bfd)),
                            "documents_per_second": statistics.median(bfd), "tokens_kept": other[-1]["bfd"][1]},
            },
        )  # fmt: skip


def peer_pack(lengths: np.ndarray, row_length: int, strategy: str) -> tuple[float, float]:
    """Seconds TRL takes, and the share of tokens that it keeps."""
    import pyarrow as pa
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = pa.array(np.zeros(int(offsets[-1]), np.int32))
    table = pa.table({"input_ids": pa.LargeListArray.from_arrays(pa.array(offsets), ids)})
    dataset = Dataset(table)
    seconds, packed = timed(lambda: pack_dataset(dataset, row_length, strategy, {"batch_size": len(lengths)}))
    kept = sum(int(n) for lens in packed["seq_lengths"] for n in lens)
    return seconds, kept / int(offsets[-1])


def read_row_speeds() -> dict[str, Any]:
    """Rows of 64K tokens read in random order, as the trainer reads them, against plain indexing."""
    from lengthen.common.files import write_json
    from lengthen.data.shards import Row, open_rows, read_row, write_shard

    length, count = 65_536, 128
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LENGTHEN_CACHE"] = str(folder / "cache")
        made = (
            Row(
                rng.integers(0, 49_152, length, dtype=np.int32),
                np.full(16, length // 16, np.int32),
                "isolated",
                ("s",) * 16,
            )
            for _ in range(count)
        )
        columns = ["input_ids", "doc_lens", "attend", "sources"]
        write_shard(folder / "rows/00000.parquet", made, length, columns)
        write_json(folder / "rows/dataset.json", {"schema": 1, "row_length": length, "rows": count,
                   "tokens": count * length, "columns": columns, "shards": 1})  # fmt: skip
        dataset = open_rows(folder)
        order = rng.permutation(count).tolist()

        def speed(read: Callable[[int], np.ndarray]) -> float:
            return count / timed(lambda: [read(number) for number in order])[0]

        # Copied, since zero-copy alone would not have touched the tokens.
        mine, other = alternate(
            5,
            lambda _: speed(lambda number: np.array(read_row(dataset, number).ids)),
            lambda _: speed(lambda number: np.array(dataset[number]["input_ids"], np.int32)),
        )
    work = "rows of 65,536 tokens read back in random order"
    return row("read", work, "datasets, plain indexing", mine, other, "rows/s", better="higher")


def rows(ids: Sequence[str], megabytes: int) -> Iterator[dict[str, Any]]:
    # Here, not before: the file's head tells the cores of the machine, not of this process.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    yield from pack_rows([name for name in PACK if name in ids])
    if "read" in ids:
        yield read_row_speeds()
    if {"tokenize", "tokenize-ceiling"} & set(ids):
        from benchmarks.data_tokenize import tokenize_rows

        yield from (found for found in tokenize_rows() if found["id"] in ids)
    if "prepare-memory" in ids:
        from benchmarks.data_tokenize import memory_rows

        yield from memory_rows(megabytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=IDS, default=list(IDS), metavar="ID", help=", ".join(IDS))
    parser.add_argument("--megabytes", type=int, default=1024, help="size of prepare-memory's corpus")
    parser.add_argument("--out", type=Path, help="instead of results/benchmarks/data.json")
    arguments = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    store("data", rows(arguments.only, arguments.megabytes), arguments.out)


if __name__ == "__main__":
    main()
