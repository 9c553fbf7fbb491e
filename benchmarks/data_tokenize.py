"""Rows tokenize, tokenize-ceiling and prepare-memory of `python -m benchmarks.data`.

Both sides read the same JSONL of source code and prose (files of the installed Python packages) and write token files,
in fresh processes that are alike but for the work: `python -m benchmarks.data_tokenize SPEC OUT` is one of them.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import alternate, fresh, row
from lengthen.common.files import read_json, write_json

CORPUS_BYTES = 48 * 2**20
BOOK_BYTES = 50 * 10**6
RUNS = 3


def texts(limit: int) -> Iterator[str]:
    """Source files and documentation of this environment in a fixed random order, about `limit` bytes."""
    files = sorted(
        p for p in Path(sysconfig.get_paths()["purelib"]).rglob("*") if p.suffix in (".py", ".md", ".rst", ".txt")
    )
    random.Random(0).shuffle(files)
    total = 0
    for path in files:
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if 200 < len(text) < 400_000:
            yield text
            total += len(text)
            if total >= limit:
                return


def write_corpus(path: Path, size: int, book: bool) -> None:
    """JSONL of about `size` bytes; texts repeat with another first line when the environment holds fewer. With a book,
    its first document has 50 MB."""
    found = list(texts(min(size, 200 * 2**20)))
    written, copy = 0, 0
    with open(path, "w") as file:
        if book:
            long = "\n\n".join(found)
            long = (long * (BOOK_BYTES // len(long) + 1))[:BOOK_BYTES]
            file.write(json.dumps({"id": "book", "text": long}) + "\n")
            written += BOOK_BYTES
        while written < size:
            for number, text in enumerate(found):
                file.write(json.dumps({"id": f"{copy}-{number}", "text": f"# copy {copy}\n{text}"}) + "\n")
                written += len(text)
                if written >= size:
                    break
            copy += 1


def run_ours(folder: Path) -> dict[str, float]:
    """Our tokenising alone, as the stage's tasks do it."""
    from lengthen.data.work import load_job, tokenise_part

    work = _job(folder)
    _, parts, _ = load_job(work)
    begin = time.perf_counter()
    for number in range(len(parts)):
        tokenise_part(work, number)
    seconds = time.perf_counter() - begin
    tokens = sum(path.stat().st_size for path in (work / "tokens").glob("*.tokens")) // 4
    return {"seconds": seconds, "tokens": tokens}


def _settings(folder: Path):
    from lengthen.recipe.stages.prepare import PrepareStage

    source = {"kind": "jsonl", "paths": str(folder / "corpus.jsonl")}
    return PrepareStage.model_validate(
        {"name": "prepare", "row_length": 65_536, "sources": [source], "executor": {"workers": 1}}
    )


def _job(folder: Path) -> Path:
    from lengthen.common.manifest import StageContext
    from lengthen.data import prepare

    stage = folder / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    (stage / ".work").mkdir(parents=True)
    prepare._job(_settings(folder), StageContext(stage), stage / ".work")
    return stage / ".work"


def run_prepare(folder: Path) -> dict[str, float]:
    """Our whole stage: read, tokenise, pack, write rows."""
    from lengthen.common.manifest import StageContext
    from lengthen.data.prepare import prepare

    stage = folder / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    begin = time.perf_counter()
    result = prepare(_settings(folder), StageContext(stage))
    return {"seconds": time.perf_counter() - begin, "tokens": result.counts["tokens"]}


def run_datatrove(folder: Path) -> dict[str, float]:
    """datatrove's JSONL reader and DocumentTokenizer, one task, without shuffling."""
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    from lengthen.models import default_model

    shutil.rmtree(folder / "trove", ignore_errors=True)
    reader = JsonlReader(str(folder), glob_pattern="corpus.jsonl")
    writer = DocumentTokenizer(
        str(folder / "trove/tokens"),
        tokenizer_name_or_path=str(default_model() / "tokenizer.json"),
        eos_token="<|endoftext|>",
        shuffle_documents=False,
        batch_size=1000,
    )
    executor = LocalPipelineExecutor([reader, writer], tasks=1, workers=1, logging_dir=str(folder / "trove/logs"))
    begin = time.perf_counter()
    executor.run()
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in (folder / "trove/tokens").glob("*.ds"))
    return {"seconds": seconds, "tokens": size // 2}


def run_bare(folder: Path) -> dict[str, float]:
    """The tokenizer alone: texts in memory, ids dropped."""
    from tokenizers import Tokenizer

    from lengthen.models import default_model

    tokenizer = Tokenizer.from_file(str(default_model() / "tokenizer.json"))
    with open(folder / "corpus.jsonl") as file:
        found = [json.loads(line)["text"] for line in file]
    tokens = 0
    begin = time.perf_counter()
    for start in range(0, len(found), 256):
        for encoding in tokenizer.encode_batch_fast(found[start : start + 256], add_special_tokens=False):
            tokens += len(encoding)
    return {"seconds": time.perf_counter() - begin, "tokens": tokens}


SIDES = {"ours": run_ours, "prepare": run_prepare, "datatrove": run_datatrove, "bare": run_bare}


def measure(side: str, folder: Path) -> dict[str, float]:
    """One side in a process of its own: seconds, tokens, peak memory in GiB."""
    return fresh("benchmarks.data_tokenize", {"side": side, "folder": str(folder)})


def tokenize_rows() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus.jsonl", CORPUS_BYTES, book=False)

        def speed(*sides: str) -> dict[str, float]:
            found = {side: measure(side, folder) for side in sides}
            return {side: one["tokens"] / one["seconds"] for side, one in found.items()}

        ours, others = alternate(RUNS, lambda _: speed("ours"), lambda _: speed("datatrove", "bare"))
    work = f"{CORPUS_BYTES >> 20} MB JSONL of source code and prose to tokens on disk, one core, SmolLM2's tokenizer"
    for id, peer, side in (
        ("tokenize", "datatrove JsonlReader + DocumentTokenizer", "datatrove"),
        ("tokenize-ceiling", "bare tokenizers, texts in memory", "bare"),
    ):
        mine, theirs = [run["ours"] for run in ours], [run[side] for run in others]
        yield row(id, work, peer, mine, theirs, "tokens/s", better="higher")


def memory_rows(megabytes: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus.jsonl", megabytes * 10**6, book=True)
        ours, theirs = measure("prepare", folder)["peak_gib"], measure("datatrove", folder)["peak_gib"]
        shutil.rmtree(folder / "trove")
        write_corpus(folder / "corpus.jsonl", 2 * megabytes * 10**6, book=True)
        double = measure("prepare", folder)["peak_gib"]
    work = f"peak memory: {megabytes:,} MB of JSONL with one 50 MB document to packed rows, one worker"
    peer = "datatrove JsonlReader + DocumentTokenizer (tokens only)"
    yield row(
        "prepare-memory", work, peer, [ours], [theirs], "GiB", better="lower", details={"ours_at_double_size": double}
    )


def main() -> None:
    from lengthen.common.memory import peak_memory_gib, reset_peak_memory

    spec = read_json(Path(sys.argv[1]))
    reset_peak_memory()
    result = SIDES[spec["side"]](Path(spec["folder"]))
    write_json(Path(sys.argv[2]), {**result, "peak_gib": peak_memory_gib()})


if __name__ == "__main__":
    main()
