"""Packers lose nothing, cut only what must be cut, and fill rows."""

from __future__ import annotations

import bisect
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthen.data.pack import Packing, cut, pack_best_fit, pack_concatenate, pack_single, pack_whole_documents

LENGTHS = st.lists(st.integers(1, 300), max_size=80)


def covered(packing: Packing) -> Counter:
    """How often each (document, token) is in a row."""
    found: Counter = Counter()
    for document, begin, length in zip(packing.document, packing.begin, packing.length):
        found.update((int(document), int(begin) + offset) for offset in range(int(length)))
    return found


def plain_best_fit_rows(lengths: list[int], row: int) -> int:
    """Best-fit decreasing, one document after the other."""
    rooms: list[int] = []
    rows = 0
    for length in sorted(lengths, reverse=True):
        place = bisect.bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms.pop(place)
        else:
            room, rows = row, rows + 1
        bisect.insort(rooms, room - length)
    return rows


@given(LENGTHS, st.integers(2, 120))
def test_best_fit_holds_every_token_once_and_cuts_only_what_is_longer_than_a_row(lengths, row):
    packing = pack_best_fit(np.array(lengths, np.int64), row)
    assert covered(packing) == Counter((d, t) for d, n in enumerate(lengths) for t in range(n))
    assert (packing.row_tokens <= row).all() and (packing.row_tokens > 0).all()
    pieces = Counter(packing.document.tolist())
    assert all(pieces[d] == -(-n // row) for d, n in enumerate(lengths))


@given(LENGTHS, st.integers(2, 120))
def test_best_fit_needs_as_many_rows_as_the_plain_algorithm(lengths, row):
    pieces = cut(np.array(lengths, np.int64), row).length.tolist()
    assert pack_best_fit(np.array(lengths, np.int64), row).count == plain_best_fit_rows(pieces, row)


@given(LENGTHS, st.integers(2, 120))
def test_concatenate_fills_every_row_but_the_last(lengths, row):
    packing = pack_concatenate(np.array(lengths, np.int64), row)
    assert covered(packing) == Counter((d, t) for d, n in enumerate(lengths) for t in range(n))
    assert (packing.row_tokens[:-1] == row).all()
    order = list(zip(packing.document.tolist(), packing.begin.tolist()))
    assert order == sorted(order)


@given(LENGTHS, st.integers(1, 20), st.integers(1, 5))
def test_whole_documents_holds_only_pieces_of_full_length(lengths, piece, per_row):
    piece += 1
    packing = pack_whole_documents(np.array(lengths, np.int64), piece * per_row, piece)
    assert (packing.length == piece).all()
    assert covered(packing) == Counter((d, t) for d, n in enumerate(lengths) for t in range(n // piece * piece))
    assert (np.diff(packing.rows)[:-1] == per_row).all()


def test_whole_documents_leaves_out_what_the_original_lets_in():
    # references: with length and minimum 100 the published packer filled its first row with 30, 30, 30 and a piece.
    packing = pack_whole_documents(np.array([30, 30, 30, 250, 40]), 100)
    assert packing.document.tolist() == [3, 3] and packing.begin.tolist() == [0, 100]


@given(LENGTHS, st.integers(2, 120))
def test_single_puts_one_document_in_each_row(lengths, row):
    packing = pack_single(np.array(lengths, np.int64), row)
    assert covered(packing) == Counter((d, t) for d, n in enumerate(lengths) for t in range(n))
    assert (np.diff(packing.rows) == 1).all()


@pytest.mark.parametrize("row", [8192, 65536])
def test_best_fit_reaches_the_lower_bound_on_lognormal_lengths(row):
    lengths = np.maximum(1, np.random.default_rng(1).lognormal(6.0, 1.4, 200_000)).astype(np.int64)
    packing = pack_best_fit(lengths, row)
    bound = -(-int(lengths.sum()) // row)
    assert int(packing.length.sum()) == int(lengths.sum())
    assert packing.count <= bound * 1.0001 + 1
