"""The plan of all rows: which stretch of which document goes where, made from lengths before tokens are moved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lengthen.common.files import explain_disk
from lengthen.common.manifest import Drops
from lengthen.common.seeds import derive_seed
from lengthen.data import mix
from lengthen.data.pack import (
    Packing,
    cut,
    pack_best_fit,
    pack_concatenate,
    pack_single,
    pack_whole_documents,
)
from lengthen.data.store import TokenStore
from lengthen.recipe.sources import Source
from lengthen.recipe.stages.prepare import PrepareStage

ISOLATED, CIP, UTK = 0, 1, 2
_WAYS = {None: ISOLATED, "cip": CIP, "utk": UTK}
_ARRAYS = ("part", "begin", "length", "source", "rows", "way", "chunks")


@dataclass(frozen=True)
class RowPlan:
    """Rows in their final order. Row r holds pieces rows[r] : rows[r + 1].

    part, begin, length, source: one entry a piece: task file, first token in it, tokens, source index.
    way, chunks: one entry a row: isolated, CIP or Untie-the-Knots, and its number of chunks.
    """

    part: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    source: np.ndarray
    rows: np.ndarray
    way: np.ndarray
    chunks: np.ndarray

    @property
    def count(self) -> int:
        return len(self.rows) - 1

    def save(self, folder: Path) -> None:
        """One .npy file an array, so that tasks map only what they read."""
        with explain_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name in _ARRAYS:
                part = folder / f".{name}.part"
                with open(part, "wb") as file:
                    np.save(file, getattr(self, name))
                os.replace(part, folder / f"{name}.npy")

    @classmethod
    def load(cls, folder: Path) -> RowPlan:
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))


@dataclass(frozen=True)
class Planned:
    """The plan with its accounting. table: asked against achieved. fill: rows and fill by packing group.
    domains: documents and tokens by source and domain. drops: what was lost between tokens and rows, by rule."""

    plan: RowPlan
    table: list[dict[str, Any]]
    fill: list[dict[str, Any]]
    domains: list[dict[str, Any]]
    drops: Drops


def plan_rows(
    settings: PrepareStage,
    store: TokenStore,
    source_of: np.ndarray,
    dropped: Mapping[str, np.ndarray],
    seed: int,
    knot_tokens: int,
) -> Planned:
    """Mix and pack.

    Args:
        source_of: source index of each document of the store.
        dropped: rule -> True for documents that are out (duplicates).
        knot_tokens: marker tokens that Untie-the-Knots adds to each chunk.
    """
    drops = Drops()
    lengths = store.length.copy()
    for rule, out in dropped.items():
        out = out & (lengths > 0)
        drops.add(rule, int(out.sum()), int(lengths[out].sum()))
        lengths[out] = 0
    alive = lengths > 0
    cells = mix.make_cells(settings, lengths, np.where(alive, source_of, -1), store.domain, store.domains)
    mix.set_budgets(settings, cells)
    mix.choose(settings, cells, seed)
    _count_unused(settings, cells, lengths, alive, drops)
    packings, fill = [], []
    for label, pool in _pools(settings, cells).items():
        for number, members in enumerate(_passes(pool)):
            group_seed = derive_seed(seed, "pack", label, number)
            packing = _pack(
                settings, settings.sources[pool[0].source], pool[0], members, lengths, group_seed, knot_tokens
            )
            packings.append((settings.sources[pool[0].source], packing))
            tokens = int(packing.length.sum())
            fill.append({
                "group": label, "pass": number + 1, "rows": packing.count, "tokens": tokens,
                "fill": tokens / (packing.count * settings.row_length) if packing.count else 0.0,
                "documents_cut": int((np.bincount(packing.document) > 1).sum()) if len(packing.document) else 0,
            })  # fmt: skip
    plan = _join(packings, store, source_of, derive_seed(seed, "rows"))
    domains = mix.domain_table(settings, cells, store.domain, store.domains)
    return Planned(plan, mix.mix_table(settings, cells), fill, domains, drops)


def _count_unused(
    settings: PrepareStage, cells: list[mix.Cell], lengths: np.ndarray, alive: np.ndarray, drops: Drops
) -> None:
    used = np.zeros(len(lengths), dtype=bool)
    inside = np.zeros(len(lengths), dtype=bool)
    for cell in cells:
        inside[cell.documents] = True
        whole = np.zeros(len(lengths), dtype=np.int64)
        whole[cell.documents] = cell.usable
        for chosen in cell.passes[:1]:
            used[chosen] = True
            rest = int((lengths[chosen] - whole[chosen]).sum())
            if rest:
                drops.add("rest_of_cut_document", int((lengths[chosen] > whole[chosen]).sum()), rest)
        short = cell.documents[cell.usable == 0]
        if len(short):
            drops.add("shorter_than_piece", len(short), int(lengths[short].sum()))
            used[short] = True
    outside = alive & ~inside
    if outside.any():
        drops.add("not_in_any_bucket_or_domain", int(outside.sum()), int(lengths[outside].sum()))
    beyond = alive & inside & ~used
    if beyond.any():
        drops.add("beyond_budget", int(beyond.sum()), int(lengths[beyond].sum()))


def _pools(settings: PrepareStage, cells: list[mix.Cell]) -> dict[str, list[mix.Cell]]:
    pools: dict[str, list[mix.Cell]] = {}
    for cell in cells:
        source = settings.sources[cell.source]
        name = source.pool or source.name
        piece = f" of {cell.piece_length:,}" if cell.piece_length else ""
        pools.setdefault(f"{name}, {source.packing}{piece}", []).append(cell)
    return pools


def _passes(cells: list[mix.Cell]) -> list[np.ndarray]:
    """Documents of each pass. A repeated document is packed in a pass of its own, so no row holds it twice."""
    most = max((len(cell.passes) for cell in cells), default=0)
    return [np.concatenate([c.passes[n] for c in cells if len(c.passes) > n]) for n in range(most)]


def _pack(
    settings: PrepareStage,
    source: Source,
    cell: mix.Cell,
    documents: np.ndarray,
    lengths: np.ndarray,
    seed: int,
    knots: int,
) -> Packing:
    """Pack documents; the packing's document indices are those of the store."""
    rng = np.random.default_rng(seed)
    documents = documents[rng.permutation(len(documents))]
    row = settings.row_length
    tokens = lengths[documents]
    if source.interleave is not None and source.interleave.method == "utk":
        packing = _pack_with_markers(tokens, row, source.interleave.chunks * knots)
    elif source.packing == "best_fit":
        packing = pack_best_fit(tokens, row)
    elif source.packing == "whole_documents":
        packing = pack_whole_documents(tokens, row, cell.piece_length)
    elif source.packing == "concatenate":
        packing = pack_concatenate(tokens, row)
    else:
        packing = pack_single(tokens, row)
    if source.packing == "best_fit" and packing.count:
        # Best fit puts the longest document first in every row; a random order keeps length and position apart.
        row_of = np.repeat(np.arange(packing.count), np.diff(packing.rows))
        order = np.lexsort((rng.random(len(row_of)), row_of))
        packing = Packing(packing.document[order], packing.begin[order], packing.length[order], packing.rows)
    return Packing(documents[packing.document], packing.begin, packing.length, packing.rows)


def _pack_with_markers(tokens: np.ndarray, row: int, markers: int) -> Packing:
    """Best fit with room for each piece's markers."""
    pieces = cut(tokens, max(1, row - markers))
    packed = pack_best_fit(pieces.length + markers, row)
    return Packing(
        pieces.document[packed.document], pieces.begin[packed.document], pieces.length[packed.document], packed.rows
    )


def _join(packings: list[tuple[Source, Packing]], store: TokenStore, source_of: np.ndarray, seed: int) -> RowPlan:
    """All rows of all groups in one random order."""
    document, begin, length, counts, way, chunks = [], [], [], [], [], []
    for source, packing in packings:
        document.append(packing.document)
        begin.append(packing.begin)
        length.append(packing.length)
        counts.append(np.diff(packing.rows))
        method = source.interleave.method if source.interleave else None
        way.append(np.full(packing.count, _WAYS[method], np.uint8))
        chunks.append(np.full(packing.count, source.interleave.chunks if source.interleave else 1, np.int32))
    empty = np.zeros(0, np.int64)
    document, begin, length = (np.concatenate([empty, *parts]) for parts in (document, begin, length))
    count = np.concatenate([empty, *counts])
    first = np.cumsum(count) - count
    order = np.random.default_rng(seed).permutation(len(count))
    moved = count[order]
    pieces = np.repeat(first[order] - (np.cumsum(moved) - moved), moved) + np.arange(int(moved.sum()))
    document = document[pieces]
    return RowPlan(
        part=store.part[document],
        begin=store.begin[document] + begin[pieces],
        length=length[pieces],
        source=source_of[document].astype(np.int16),
        rows=np.concatenate([[0], np.cumsum(moved)]).astype(np.int64),
        way=np.concatenate([np.zeros(0, np.uint8), *way])[order],
        chunks=np.concatenate([np.zeros(0, np.int32), *chunks])[order],
    )
