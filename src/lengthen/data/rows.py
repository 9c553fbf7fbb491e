"""One shard's rows from the plan and the tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lengthen.common.files import read_json
from lengthen.common.seeds import named_random
from lengthen.data import plan as plans
from lengthen.data.interleave import cip, knots_of, untie_the_knots
from lengthen.data.shards import ROWS, Row, write_shard
from lengthen.data.store import TRAINED, UNIT, TokenReader
from lengthen.data.tokenize import load_text_tokenizer


def shard_count(rows: int, row_length: int, shard_tokens: int) -> int:
    """Number of shards; depends on the plan alone."""
    return max(1, -(-rows * row_length // shard_tokens)) if rows else 0


def write_rows(work: Path, number: int) -> None:
    """Write shard `number` of the plan in `work/plan` to `rows/`. A shard that is there is left alone."""
    layout = read_json(work / "layout.json")
    target = work.parent / ROWS / f"{number:05d}.parquet"
    if target.exists():
        return
    plan = plans.RowPlan.load(work / "plan")
    edges = np.linspace(0, plan.count, layout["shards"] + 1).round().astype(np.int64)
    rows = range(int(edges[number]), int(edges[number + 1]))
    maker = RowMaker(work, plan, layout["sources"], layout["seed"], layout["columns"])
    write_shard(target, (maker.row(r) for r in rows), layout["row_length"], layout["columns"])
    maker.reader.close()


class RowMaker:
    """Puts rows together. Each row's randomness comes from its number, so any task makes the same row."""

    def __init__(self, work: Path, plan: plans.RowPlan, sources: list[str], seed: int, columns: Sequence[str]) -> None:
        self.plan, self.sources, self.seed = plan, sources, seed
        self.with_mask, self.with_units = "loss_mask" in columns, "unit_lens" in columns
        self.reader = TokenReader(work / "tokens")
        self.knots = knots_of(load_text_tokenizer(work)) if (np.asarray(plan.way) == plans.UTK).any() else None

    def row(self, number: int) -> Row:
        plan = self.plan
        first, last = int(plan.rows[number]), int(plan.rows[number + 1])
        stretches = [(int(plan.part[i]), int(plan.begin[i]), int(plan.length[i])) for i in range(first, last)]
        names = [self.sources[int(plan.source[i])] for i in range(first, last)]
        texts = [self.reader.tokens(*stretch) for stretch in stretches]
        masks = [self.reader.mask(*stretch) for stretch in stretches] if self.with_mask else []
        way, chunks = int(plan.way[number]), int(plan.chunks[number])
        if way == plans.UTK:
            assert self.knots is not None
            tangle = untie_the_knots(texts, chunks, named_random(self.seed, "utk", number), self.knots)
            owners = tuple(names[document] for document in tangle.documents)
            return Row(tangle.ids, np.array(tangle.lengths, np.int32), "joined", owners, tangle.mask)
        if way == plans.CIP:
            order = cip([len(text) for text in texts], chunks, named_random(self.seed, "cip", number))
            texts = [texts[piece.document][piece.begin : piece.end] for piece in order]
            masks = [masks[piece.document][piece.begin : piece.end] for piece in order] if masks else []
            names = [names[piece.document] for piece in order]
        bits = np.concatenate(masks) if masks else None
        return Row(
            np.concatenate(texts),
            np.array([len(text) for text in texts], np.int32),
            "joined" if way == plans.CIP else "isolated",
            tuple(names),
            None if bits is None else bits & TRAINED,
            unit_lens=_unit_lens(bits, [len(text) for text in texts]) if self.with_units and bits is not None else None,
        )


def _unit_lens(bits: np.ndarray, lengths: Sequence[int]) -> np.ndarray | None:
    """int32: a unit begins where the bits say so, and with every document. None where no document knows units."""
    begins = (bits & UNIT) > 0
    if not begins.any():
        return None
    begins[np.concatenate([[0], np.cumsum(lengths)[:-1]])] = True
    return np.diff(np.append(np.flatnonzero(begins), len(bits))).astype(np.int32)


def iterate_rows(work: Path, rows: range) -> Iterator[Row]:
    """Rows of a planned work folder, without writing them."""
    layout = read_json(work / "layout.json")
    maker = RowMaker(work, plans.RowPlan.load(work / "plan"), layout["sources"], layout["seed"], layout["columns"])
    for number in rows:
        yield maker.row(number)
