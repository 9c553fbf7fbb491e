"""CIP against the worked example and its invariants; Untie-the-Knots with its markers."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lengthen.data.interleave import Knots, cip, untie_the_knots

DOCUMENTS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def test_cip_follows_the_worked_example():
    a = ["A1", "A2", "A3", "A4", "A5", "A6", "EOS"]
    b = ["B1", "B2", "B3", "B4", "EOS"]
    c = ["C1", "C2", "C3"]
    pieces = cip([7, 5, 3], 2, random.Random(0), cuts=[[2], [3], [1]])
    row = [token for piece in pieces for token in (a, b, c)[piece.document][piece.begin : piece.end]]
    assert " ".join(row) == "A1 A2 B1 B2 B3 C1 A3 A4 A5 A6 EOS B4 EOS C2 C3"


@given(DOCUMENTS, st.integers(1, 5), st.integers(0, 1000))
def test_cip_moves_every_token_once_and_keeps_each_documents_order(lengths, chunks, seed):
    pieces = cip(lengths, chunks, random.Random(seed))
    for document, length in enumerate(lengths):
        mine = [piece for piece in pieces if piece.document == document]
        assert [t for piece in mine for t in range(piece.begin, piece.end)] == list(range(length))
        assert len(mine) == (chunks if length >= chunks else 1)
    assert pieces == cip(lengths, chunks, random.Random(seed))


@given(DOCUMENTS)
def test_cip_with_one_chunk_changes_nothing(lengths):
    pieces = cip(lengths, 1, random.Random(3))
    assert [(p.document, p.begin, p.end) for p in pieces] == [(d, 0, n) for d, n in enumerate(lengths)]


KNOTS = Knots((901,), (902,), (903,), tuple((910 + digit,) for digit in range(10)))


@given(DOCUMENTS, st.integers(1, 4), st.integers(0, 1000))
def test_untie_the_knots_keeps_order_marks_chunks_and_traces_them_back(lengths, chunks, seed):
    documents = [np.arange(n, dtype=np.int32) + 1000 * (d + 1) for d, n in enumerate(lengths)]
    tangle = untie_the_knots(documents, chunks, random.Random(seed), KNOTS)
    assert sum(tangle.lengths) == len(tangle.ids) == len(tangle.mask)
    assert len(tangle.lengths) == len(tangle.documents)
    text = tangle.ids >= 1000
    assert tangle.mask[text].all()
    for d, ids in enumerate(documents):
        assert tangle.ids[(tangle.ids // 1000) == d + 1].tolist() == ids.tolist()
    assert len(tangle.ids) - text.sum() <= len(tangle.lengths) * KNOTS.overhead
    names: dict[int, list[list[int]]] = {}
    place = 0
    for length, document in zip(tangle.lengths, tangle.documents):
        piece = tangle.ids[place : place + length]
        mask = tangle.mask[place : place + length]
        place += length
        if chunks == 1 or lengths[document] < chunks:
            assert (piece >= 1000).all()
            continue
        names.setdefault(document, []).append(piece[:4].tolist())
        assert not mask[:4].any() and (piece[:4] > 900).all()
        number = len(names[document])
        assert (piece[4] == 901) == (number > 1)
        if number < chunks:
            assert piece[-1] == 902 and not mask[-1]
        else:
            trace = [903, *(token for name in names[document] for token in name)]
            assert piece[-len(trace) :].tolist() == trace and mask[-len(trace) :].all()
