"""Figures of the training engine, TRL beside us in the same run: `python -m benchmarks.train [--only ID] [--runs N]`.

Writes results/benchmarks/train.json. Every measurement is a fresh process; ours and the peer's take turns. Both train
the same documents from the same weights with the same positions, number format and checkpointing, which the loss of
the first step proves: where it differs, there is no row. Each training begins with a short row that is not timed.

`--layers N` trains, on both sides, a copy of the model with its first N decoder layers, for processors on which a step
of the whole model takes many minutes; each row says so in its `work`.

`--tiny` runs the same code on a small random model and rows of a thirty-second of the length; it shows that the
benchmark works and measures nothing, so it needs --out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import alternate, fresh, row, store
from benchmarks.train_rows import document_lengths, token_rows, write_ours, write_theirs
from lengthen.common.errors import LengthenError

WORKER = "benchmarks.train_worker"
DOCUMENTS = 19
PEER = "TRL SFTTrainer, sdpa, {}, its fused head, gradient checkpointing, {}"
WEIGHTS = {"weights": "bf16 weights and optimizer", "autocast": "bf16 autocast over fp32 weights"}


@dataclass(frozen=True)
class Bench:
    """What is measured with.

    scale: rows are this many times shorter than their names say. steps: timed steps of each training.
    precision: how TRL computes in bf16. why: the reason for dtype. part: what of the model is trained, where not all.
    """

    model: str
    folder: Path
    dtype: str
    runs: int
    steps: int = 1
    scale: int = 1
    precision: str = "weights"
    why: str = ""
    part: str = ""

    def tokens(self, nominal: int) -> int:
        return nominal // self.scale

    def peer(self, packing: str, precision: str | None = None) -> str:
        said = WEIGHTS[precision or self.precision] if self.dtype == "bfloat16" else self.dtype
        return PEER.format(packing, said)

    def spec(self, name: str, rows: list[list[int]], *, length: int | None, packed: bool) -> dict[str, Any]:
        """Write the rows for both sides; what a worker needs to know, but for its side and folder."""
        from lengthen.train.rope import RopeSettings, extension_for

        made = token_rows(self.model, rows)
        folder = self.folder / name
        ours = write_ours(folder, made)
        theirs = write_theirs(folder / "trl.parquet", made, packed=packed)
        rope = extension_for(Path(self.model), length, RopeSettings()).parameters
        return {
            "model": self.model, "steps": len(rows), "length": length, "rope": rope, "dtype": self.dtype,
            "packed": packed, "checkpointing": True, "precision": self.precision,
            "files": {"ours": str(ours), "trl": str(theirs)},
        }  # fmt: skip

    def measure(self, spec: dict[str, Any], side: str) -> Callable[[int], dict[str, Any]]:
        def one(number: int) -> dict[str, Any]:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                told = {k: v for k, v in spec.items() if k != "files"}
                return fresh(WORKER, {**told, "side": side, "rows": spec["files"][side], "folder": folder})

        return one


def _same_loss(ours: list[dict], theirs: list[dict], dtype: str) -> float:
    """The first loss, which both computed from the same weights; an error where they did not do the same work."""
    a, b = ours[0]["losses"][0], theirs[0]["losses"][0]
    if abs(a - b) > (0.02 if dtype == "bfloat16" else 0.001) * abs(b):
        raise RuntimeError(f"the first losses differ: ours {a}, theirs {b}; both sides must do the same work")
    return a


def _speed_row(bench: Bench, name: str, spec: dict[str, Any], tokens: int, work: str, packing: str) -> dict[str, Any]:
    ours, theirs = alternate(bench.runs, bench.measure(spec, "ours"), bench.measure(spec, "trl"))
    loss = _same_loss(ours, theirs, bench.dtype)
    speed = [[tokens / statistics.median(one["seconds"]) for one in side] for side in (ours, theirs)]
    details = {
        "first_loss": round(loss, 4),
        "peak_gib": _gib(ours),
        "peer_peak_gib": _gib(theirs),
        "timed_steps": len(ours[0]["seconds"]),
        "number_format": bench.dtype,
        "number_format_reason": bench.why,
    }
    return row(name, work, bench.peer(packing), speed[0], speed[1], "tokens/s", better="higher", details=details)


def packed_16k(bench: Bench) -> dict[str, Any]:
    tokens = bench.tokens(16384)
    lengths = document_lengths(tokens, DOCUMENTS)
    warm = document_lengths(tokens // 8, 4)
    spec = bench.spec("packed-16k", [warm] + [lengths] * bench.steps, length=None, packed=True)
    work = f"training step on a packed row of {tokens:,} tokens, {DOCUMENTS} documents of {min(lengths)}-{max(lengths)}"
    return _speed_row(bench, "packed-16k", spec, tokens, work, "packing=True (bfd_split, padding-free)")


def single_16k(bench: Bench) -> dict[str, Any]:
    tokens = bench.tokens(16384)
    spec = bench.spec("single-16k", [[tokens // 8]] + [[tokens]] * bench.steps, length=tokens, packed=False)
    work = f"training step on one document of {tokens:,} tokens"
    return _speed_row(bench, "single-16k", spec, tokens, work, "no packing")


def memory_32k(bench: Bench) -> dict[str, Any]:
    """The peer is measured in each of its number formats; the one that needs least memory counts."""
    tokens = bench.tokens(32768)
    # The short row makes the optimizer's state, so that the long one meets it in memory.
    spec = bench.spec("memory-32k", [[tokens // 32], [tokens]], length=tokens, packed=False)
    peers = ["weights", "autocast"] if bench.dtype == "bfloat16" else ["weights"]
    found: dict[str, list[dict[str, Any]]] = {}
    ours: list[dict[str, Any]] = []
    for precision in peers:
        told = {**spec, "precision": precision}
        both = alternate(bench.runs, bench.measure(told, "ours"), bench.measure(told, "trl"))
        _same_loss(*both, bench.dtype)
        ours, found[precision] = both
    best = min(found, key=lambda p: _gib(found[p]))
    details = {"peer_gib": {p: _gib(runs) for p, runs in found.items()},
               "seconds": [one["seconds"][-1] for one in ours],
               "peer_seconds": [one["seconds"][-1] for one in found[best]],
               "note": "whole process, weights, optimizer and libraries included"}  # fmt: skip
    gib = [[one["peak"] / 2**30 for one in side] for side in (ours, found[best])]
    work = f"peak memory of training on one document of {tokens:,} tokens"
    peer = bench.peer("no packing", best)
    return row("memory-32k", work, peer, gib[0], gib[1], "GiB", better="lower", details=details)


def _gib(runs: list[dict[str, Any]]) -> float:
    return round(statistics.median(one["peak"] for one in runs) / 2**30, 3)


def start(bench: Bench) -> dict[str, Any]:
    from benchmarks import train_start

    return train_start.start(bench)


def dp2(bench: Bench) -> dict[str, Any]:
    from benchmarks import train_start

    return train_start.dp2(bench)


ROWS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "packed-16k": packed_16k, "single-16k": single_16k, "memory-32k": memory_32k, "start": start, "dp2": dp2,
}  # fmt: skip


def tiny_model(folder: Path) -> Path:
    from tests.conftest import make_model

    folder.mkdir(parents=True)
    return make_model(folder, window=256)


def first_layers(model: str, layers: int, folder: Path) -> tuple[Path, str]:
    """A copy of the model with its first decoder layers alone, and what a row says of it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from lengthen.models import load_tokenizer

    config = AutoConfig.from_pretrained(model)
    text = config.get_text_config()
    whole = text.num_hidden_layers
    if not 1 <= layers <= whole:
        raise LengthenError(f"--layers {layers}: {model} has {whole} layers.", fix=f"give 1 to {whole}")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    AutoModelForCausalLM.from_pretrained(model, config=config, dtype="auto").save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return folder, f"first {layers} of {whole} layers"


def measured(bench: Bench, ids: list[str]) -> Iterator[dict[str, Any]]:
    for name in ids:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = ROWS[name](bench)
        yield {**found, "work": f"{found['work']}; {bench.part}"} if bench.part else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(ROWS), metavar="ID", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--runs", type=int, default=3, help="pairs of measurements of each row")
    parser.add_argument("--steps", type=int, default=1, help="timed steps of each training")
    parser.add_argument("--model", default="default")
    parser.add_argument("--precision", choices=list(WEIGHTS), default="weights", help="how TRL computes in bf16")
    parser.add_argument("--layers", type=int, help="train the model's first decoder layers alone (default: all)")
    parser.add_argument("--tiny", action="store_true", help="only show that the benchmark runs")
    parser.add_argument("--out", type=Path, help="default: results/benchmarks/train.json")
    arguments = parser.parse_args()
    if arguments.tiny and arguments.out is None:
        parser.error("--tiny measures nothing worth keeping; say with --out where its file shall go")

    from lengthen.models import pick_dtype, resolve_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = arguments.tiny
        model, part = tiny_model(folder / "model") if tiny else resolve_model(arguments.model), ""
        if arguments.layers is not None:
            model, part = first_layers(str(model), arguments.layers, folder / "layers")
        dtype, why = ("float32", "--tiny") if tiny else pick_dtype("auto")
        bench = Bench(
            model=str(model), folder=folder, dtype=dtype, runs=arguments.runs, steps=arguments.steps,
            scale=32 if tiny else 1, precision=arguments.precision, why=why, part=part,
        )  # fmt: skip
        store("train", measured(bench, arguments.only or list(ROWS)), arguments.out)


if __name__ == "__main__":
    main()
