"""How much of which documents: shares, budgets, length buckets, domains and repeats, decided on arrays of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.seeds import derive_seed
from lengthen.recipe.sources import LengthBucket, Source
from lengthen.recipe.stages.prepare import PrepareStage


@dataclass
class Cell:
    """A part of the mix with a budget of its own: one source, one of its domains, one of its length buckets.

    documents: indices that may be used.
    usable: tokens of each that can enter rows (whole pieces only, where the packing asks for that).
    budget: tokens wanted, None for all.
    passes: chosen documents, one array for each time they are used.
    """

    source: int
    share: float
    documents: np.ndarray
    usable: np.ndarray
    piece_length: int | None
    domain: str | None = None
    bucket: LengthBucket | None = None
    budget: int | None = None
    passes: list[np.ndarray] = field(default_factory=list)
    taken: int = 0

    @property
    def available(self) -> int:
        return int(self.usable.sum())

    def label(self, sources: Sequence[Source]) -> str:
        parts = [sources[self.source].name, *([self.domain] if self.domain is not None else [])]
        if self.bucket is not None:
            most = f"{self.bucket.max_tokens:,}" if self.bucket.max_tokens else "up"
            parts.append(f"{max(self.bucket.min_tokens, self.bucket.piece_length or 0):,}-{most}")
        return " / ".join(parts)


def usable_tokens(lengths: np.ndarray, source: Source, piece_length: int | None, row_length: int) -> np.ndarray:
    """Tokens of each document that its packing can put into rows."""
    if source.packing != "whole_documents":
        return lengths
    piece = piece_length or source.piece_length or row_length
    return lengths // piece * piece


def make_cells(
    settings: PrepareStage, lengths: np.ndarray, source_of: np.ndarray, domain_of: np.ndarray, domains: Sequence[str]
) -> list[Cell]:
    """Cells of all sources, each document in the first cell that it fits. Documents in no cell are those of domains or
    lengths that the mix does not name."""
    cells: list[Cell] = []
    for index, source in enumerate(settings.sources):
        mine = np.flatnonzero(source_of == index)
        for domain, domain_share in source.domains.items() or ((None, 1.0),):
            documents = mine
            if domain is not None:
                if domain not in domains or not (domain_of[mine] == domains.index(domain)).any():
                    found = sorted({str(domains[d]) for d in np.unique(domain_of[mine]).tolist()} - {""})
                    raise LengthenError(
                        f"sources.{source.name}.domains: there are no documents of domain '{domain}'.",
                        fix=f"its documents have {', '.join(found) or 'no domain field'}; see domain_field",
                    )
                documents = mine[domain_of[mine] == domains.index(domain)]
            for bucket in source.buckets or (None,):
                chosen = documents
                piece = source.piece_length if source.packing == "whole_documents" else None
                if bucket is not None:
                    piece = bucket.piece_length or piece
                    fits = lengths[documents] >= max(bucket.min_tokens, piece or 0)
                    if bucket.max_tokens:
                        fits &= lengths[documents] <= bucket.max_tokens
                    chosen, documents = documents[fits], documents[~fits]
                share = domain_share * (bucket.share if bucket else 1.0)
                usable = usable_tokens(lengths[chosen], source, piece, settings.row_length)
                cells.append(Cell(index, share, chosen, usable, piece, domain, bucket))
    return cells


def set_budgets(settings: PrepareStage, cells: list[Cell]) -> None:
    """Tokens wanted of each cell. With shares and no total, the total is the largest at which no cell runs dry."""
    sources = settings.sources
    if sources[0].share is not None:
        whole = {id(cell): cell.share * (sources[cell.source].share or 0) for cell in cells}
        total = settings.tokens or min(
            int(cell.available * sources[cell.source].repeat / whole[id(cell)]) for cell in cells
        )
        for cell in cells:
            cell.budget = round(total * whole[id(cell)])
        return
    for index, source in enumerate(sources):
        mine = [cell for cell in cells if cell.source == index]
        wanted = source.tokens or (settings.tokens if len(sources) == 1 else None)
        divided = bool(source.domains or source.buckets)
        if wanted is None and divided:
            wanted = min(int(cell.available * source.repeat / cell.share) for cell in mine)
        for cell in mine:
            cell.budget = None if wanted is None else round(wanted * cell.share)


def choose(settings: PrepareStage, cells: list[Cell], seed: int) -> None:
    """Draw the documents of every cell, in random order, up to its budget and its repeats."""
    for cell in cells:
        source = settings.sources[cell.source]
        left = cell.budget if cell.budget is not None else round(cell.available * source.repeat)
        limit = round(cell.available * source.repeat)
        left = min(left, limit)
        number = 0
        while left > 0 and cell.available:
            draw = np.random.default_rng(derive_seed(seed, "mix", cell.label(settings.sources), number))
            order = draw.permutation(len(cell.documents))
            order = order[cell.usable[order] > 0]
            picked = order if cell.available <= left else order[_up_to(cell.usable[order], left)]
            if not len(picked):
                break
            took = int(cell.usable[picked].sum())
            cell.passes.append(cell.documents[picked])
            cell.taken += took
            left -= took
            number += 1
            if cell.available > took:
                break


def _up_to(tokens: np.ndarray, budget: int) -> np.ndarray:
    """Places of documents, taken in order while they fit into what is left of the budget; one more at the end when that
    comes closer to it than stopping."""
    places = np.arange(len(tokens))
    chosen: list[np.ndarray] = []
    while len(places):
        sums = np.cumsum(tokens[places])
        count = int(np.searchsorted(sums, budget, side="right"))
        chosen.append(places[:count])
        budget -= int(sums[count - 1]) if count else 0
        rest = places[count:]
        fitting = rest[tokens[rest] <= budget]
        if not len(fitting):
            if len(rest):
                least = int(tokens[rest].min())
                if least - budget < budget:
                    chosen.append(rest[tokens[rest] == least][:1])
            break
        places = fitting
    return np.concatenate(chosen) if chosen else np.zeros(0, np.int64)


def mix_table(settings: PrepareStage, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row a cell: what was asked for and what came, in tokens and as shares of the mix."""
    asked_total = sum(cell.budget if cell.budget is not None else cell.taken for cell in cells)
    total = sum(cell.taken for cell in cells)
    rows: list[dict[str, Any]] = []
    for cell in cells:
        source = settings.sources[cell.source]
        asked = cell.budget if cell.budget is not None else cell.taken
        dry = cell.budget is not None and cell.taken < cell.budget * 0.995 and cell.taken >= 0.995 * round(
            cell.available * source.repeat
        )  # fmt: skip
        rows.append(
            {
                "cell": cell.label(settings.sources),
                "source": source.name,
                "documents": int(sum(len(chosen) for chosen in cell.passes)),
                "available_tokens": cell.available,
                "asked_tokens": asked,
                "tokens": cell.taken,
                "asked_share": asked / asked_total if asked_total else 0.0,
                "share": cell.taken / total if total else 0.0,
                "passes": cell.taken / cell.available if cell.available else 0.0,
                "dry": dry,
            }
        )
    return rows


def domain_table(
    settings: PrepareStage, cells: Sequence[Cell], domain_of: np.ndarray, domains: Sequence[str]
) -> list[dict[str, Any]]:
    """Documents and tokens of each source's domains in the mix, the largest first; empty when no document has one."""
    documents = np.zeros((len(settings.sources), len(domains)), np.int64)
    tokens = np.zeros_like(documents)
    for cell in cells:
        usable = np.zeros(len(domain_of), np.int64)
        usable[cell.documents] = cell.usable
        for chosen in cell.passes:
            np.add.at(documents[cell.source], domain_of[chosen], 1)
            np.add.at(tokens[cell.source], domain_of[chosen], usable[chosen])
    if not any(name and documents[:, number].any() for number, name in enumerate(domains)):
        return []
    total = max(1, int(tokens.sum()))
    rows = [
        {"source": source.name, "domain": domains[d] or "(none)", "documents": int(documents[s, d]),
         "tokens": int(tokens[s, d]), "share": int(tokens[s, d]) / total}
        for s, source in enumerate(settings.sources) for d in np.flatnonzero(documents[s]).tolist()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (-row["tokens"], row["source"], row["domain"]))
