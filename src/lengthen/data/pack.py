"""Packing decides on arrays of lengths alone; tokens are copied once, when rows are written.

Best fit: documents by falling length, each into the row with the smallest room that still holds it (best-fit
decreasing; Ding et al., arXiv 2404.10830). Rows with equal room are interchangeable and documents of equal length too,
so they are placed in groups: the work grows with the number of different (length, room) pairs, not of documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Rows made of pieces. Row r holds pieces rows[r] : rows[r + 1], in order.

    document, begin, length (int64): document index, first token, number of tokens, one entry a piece.
    rows (int64): number of rows + 1.
    """

    document: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    rows: np.ndarray

    @property
    def count(self) -> int:
        return len(self.rows) - 1

    @property
    def row_tokens(self) -> np.ndarray:
        """Tokens of each row."""
        ends = np.concatenate([[0], np.cumsum(self.length)])
        return ends[self.rows[1:]] - ends[self.rows[:-1]]


@dataclass(frozen=True)
class Cut:
    """Documents cut into pieces, none longer than a limit. Same meaning as in `Packing`, before rows."""

    document: np.ndarray
    begin: np.ndarray
    length: np.ndarray


def cut(lengths: np.ndarray, limit: int) -> Cut:
    """Pieces of exactly `limit` tokens and one rest per document, in document order. Loses nothing."""
    lengths = np.asarray(lengths, dtype=np.int64)
    counts = -(-lengths // limit)
    document = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
    first = np.cumsum(counts) - counts
    begin = (np.arange(len(document), dtype=np.int64) - first[document]) * limit
    return Cut(document, begin, np.minimum(lengths[document] - begin, limit))


def pack_best_fit(lengths: np.ndarray, row_length: int) -> Packing:
    """Best fit over all documents. Documents of at most a row stay whole; longer ones are split, and each full piece is
    a row of its own while the rest is packed with the others.

    Args:
        lengths: tokens of each document; documents of no tokens take no part.
        row_length: most tokens a row may hold.
    """
    pieces = cut(lengths, row_length)
    row_of, rows = _assign(pieces.length, row_length)
    order = np.argsort(row_of, kind="stable")
    counts = np.bincount(row_of, minlength=rows) if len(row_of) else np.zeros(0, np.int64)
    return Packing(
        pieces.document[order],
        pieces.begin[order],
        pieces.length[order],
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def _assign(lengths: np.ndarray, row_length: int) -> tuple[np.ndarray, int]:
    """Row of each piece, and the number of rows."""
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    values, starts = np.unique(-ordered, return_index=True)
    counts = np.diff(np.append(starts, len(ordered)))
    rows = np.empty(len(ordered), dtype=np.int64)
    room = _Room(row_length)
    used = 0
    for length, start, count in zip((-values).tolist(), starts.tolist(), counts.tolist()):
        place, left = start, count
        while left:
            free = room.smallest(length)
            if free < 0:
                fit = row_length // length
                need = -(-left // fit)
                bins: range | list[int] | np.ndarray = range(used, used + need)
                used += need
                free = row_length
            else:
                fit = free // length
                bins = room.take(free, -(-left // fit))
            took = min(left, len(bins) * fit)
            _fill(rows, place, bins, fit, took)
            _put_back(room, bins, free, length, fit, took)
            place, left = place + took, left - took
    result = np.empty_like(rows)
    result[order] = rows
    return result, used


def _fill(rows: np.ndarray, place: int, bins: range | list[int] | np.ndarray, fit: int, took: int) -> None:
    if took == 1:
        rows[place] = bins[0]
    elif fit == 1:
        rows[place : place + took] = bins
    else:
        rows[place : place + took] = np.repeat(np.asarray(bins, dtype=np.int64), fit)[:took]


def _put_back(room: _Room, bins: range | list[int] | np.ndarray, free: int, length: int, fit: int, took: int) -> None:
    """All rows are full to the same level but the last, which may hold fewer."""
    whole, rest = divmod(took, fit)
    if whole:
        room.add(free - fit * length, bins[:whole])
    if rest:
        room.add(free - rest * length, bins[whole : whole + 1])


class _Room:
    """Rows by the room that is left in them, with the smallest sufficient room found in two look-ups.

    `groups` has one bit per room of a group of 512 rooms; `top` one bit per group that is not empty. Python's integers
    do the searching: shifting 512 bits costs about as much as shifting 64.
    """

    def __init__(self, row_length: int) -> None:
        self.groups = [0] * (row_length // 512 + 1)
        self.top = 0
        self.bins: dict[int, list[list[int]]] = {}

    def smallest(self, least: int) -> int:
        """Smallest room of at least `least` that some row has, or -1."""
        group, offset = divmod(least, 512)
        found = self.groups[group] >> offset
        if found:
            return least + (found & -found).bit_length() - 1
        above = self.top >> (group + 1)
        if not above:
            return -1
        group += (above & -above).bit_length()
        bits = self.groups[group]
        return group * 512 + (bits & -bits).bit_length() - 1

    def add(self, free: int, bins: range | list[int] | np.ndarray) -> None:
        if free == 0:
            return
        stack = self.bins.get(free)
        if stack:
            stack.append(list(bins))
            return
        self.bins[free] = [list(bins)]
        group, offset = divmod(free, 512)
        self.groups[group] |= 1 << offset
        self.top |= 1 << group

    def take(self, free: int, wanted: int) -> list[int]:
        """Up to `wanted` rows that have exactly this room."""
        stack = self.bins[free]
        taken: list[int] = []
        while stack and len(taken) < wanted:
            last = stack[-1]
            need = wanted - len(taken)
            if len(last) <= need:
                taken += stack.pop()
            else:
                taken += last[-need:]
                del last[-need:]
        if not stack:
            group, offset = divmod(free, 512)
            self.groups[group] &= ~(1 << offset)
            if not self.groups[group]:
                self.top &= ~(1 << group)
        return taken


def pack_whole_documents(lengths: np.ndarray, row_length: int, piece_length: int | None = None) -> Packing:
    """Rows of whole pieces only: each document gives as many pieces of exactly `piece_length` as it holds, its rest and
    all shorter documents give none (ProLong, arXiv 2410.02660, A.2). Pieces fill rows in order; the last row may be
    shorter. `piece_length` must divide `row_length`.
    """
    piece = piece_length or row_length
    lengths = np.asarray(lengths, dtype=np.int64)
    pieces = cut(lengths // piece * piece, piece)
    per_row = row_length // piece
    rows = np.append(np.arange(0, len(pieces.document), per_row), len(pieces.document))
    return Packing(pieces.document, pieces.begin, pieces.length, rows.astype(np.int64))


def pack_concatenate(lengths: np.ndarray, row_length: int) -> Packing:
    """Documents in the given order, one stream cut every `row_length` tokens; the last row may be shorter."""
    lengths = np.asarray(lengths, dtype=np.int64)
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    edges = np.unique(np.concatenate([ends - lengths, np.arange(0, total, row_length), [total]]))
    begins, stops = edges[:-1], edges[1:]
    document = np.searchsorted(ends, begins, side="right")
    rows = np.append(np.searchsorted(begins, np.arange(0, total, row_length)), len(begins))
    return Packing(
        document.astype(np.int64), begins - (ends - lengths)[document], stops - begins, rows.astype(np.int64)
    )


def pack_single(lengths: np.ndarray, row_length: int) -> Packing:
    """One document a row; longer documents are split over several."""
    pieces = cut(lengths, row_length)
    return Packing(pieces.document, pieces.begin, pieces.length, np.arange(len(pieces.document) + 1, dtype=np.int64))
