"""Tangling the documents of a row, so that short texts teach long range: CIP-k and Untie-the-Knots."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Piece:
    """A stretch [begin, end) of document `document` of the row."""

    document: int
    begin: int
    end: int


def cut_points(length: int, chunks: int, rng: random.Random) -> list[int]:
    """chunks - 1 different points drawn uniformly from 1..length-1, sorted; none when the document is too short."""
    return [] if length < chunks else sorted(rng.sample(range(1, length), chunks - 1))


def cip(
    lengths: Sequence[int], chunks: int, rng: random.Random, cuts: Sequence[Sequence[int]] | None = None
) -> list[Piece]:
    """Chunk-interleaved pretraining, CIP-k: each document in k chunks, then first chunks of all documents in order,
    second chunks of all, and so on. No markers; the row is attended across (LongSkywork, arXiv 2406.00605, as
    implemented for comparison by Untie-the-Knots, arXiv 2409.04774).

    Args:
        lengths: tokens of the row's documents.
        cuts: cut points of each document instead of random ones.
    """
    points = [cut_points(length, chunks, rng) for length in lengths] if cuts is None else cuts
    edges = [[0, *inner, length] for inner, length in zip(points, lengths)]
    rounds = max((len(edge) - 1 for edge in edges), default=0)
    return [
        Piece(document, edge[number], edge[number + 1])
        for number in range(rounds)
        for document, edge in enumerate(edges)
        if number + 1 < len(edge)
    ]


@dataclass(frozen=True)
class Knots:
    """Token ids of Untie-the-Knots' markers, written with the tokenizer's ordinary vocabulary.

    head and tail stand around a chunk that has an earlier or a later one; trace opens the list of a document's chunks.
    digits: ids of the ten digits, for the chunks' random names.
    """

    head: tuple[int, ...]
    tail: tuple[int, ...]
    trace: tuple[int, ...]
    digits: tuple[tuple[int, ...], ...]
    name_length: int = 4

    @property
    def overhead(self) -> int:
        """Most marker tokens that one chunk can bring with it (its names, head, tail, and its place in the trace)."""
        name = self.name_length * max(len(digit) for digit in self.digits)
        return 2 * name + len(self.head) + len(self.tail) + len(self.trace)


def knots_of(tokenizer: object) -> Knots:
    """Markers for a `lengthen.data.tokenize.TextTokenizer`."""
    encode = tokenizer.encode_batch  # pyright: ignore[reportAttributeAccessIssue]
    head, tail, trace, *digits = (tuple(ids.tolist()) for ids in encode(["<head>", "<tail>", "<trace>", *"0123456789"]))
    return Knots(head, tail, trace, tuple(digits))


@dataclass(frozen=True)
class Tangle:
    """A tangled row: token ids, loss mask (0 on markers), and the pieces' lengths (markers belong to their piece)."""

    ids: np.ndarray
    mask: np.ndarray
    lengths: tuple[int, ...]
    documents: tuple[int, ...]


def untie_the_knots(documents: Sequence[np.ndarray], chunks: int, rng: random.Random, knots: Knots) -> Tangle:
    """Untie-the-Knots (arXiv 2409.04774): each document in `chunks` random chunks, the chunks of all documents shuffled
    with each document's own order kept. Before a chunk stands a random name, and a head marker unless it is the first;
    behind it a tail marker unless it is the last; behind a document's last chunk its list of chunk names, which is
    trained (the back-tracing target) while other markers are not. The paper adds tokens to the vocabulary; we write the
    markers with the existing one.
    """
    edges = [[0, *cut_points(len(ids), chunks, rng), len(ids)] for ids in documents]
    queue = [document for document, edge in enumerate(edges) for _ in range(len(edge) - 1)]
    rng.shuffle(queue)
    done = [0] * len(documents)
    names: list[list[tuple[int, ...]]] = [[] for _ in documents]
    ids: list[np.ndarray] = []
    mask: list[np.ndarray] = []
    lengths = []
    for document in queue:
        number, last = done[document], len(edges[document]) - 2
        done[document] += 1
        if last == 0:
            piece = [(documents[document], 1)]
        else:
            name = tuple(id for _ in range(knots.name_length) for id in rng.choice(knots.digits))
            names[document].append(name)
            text = documents[document][edges[document][number] : edges[document][number + 1]]
            before = name + (knots.head if number else ())
            trace = knots.trace + tuple(id for one in names[document] for id in one)
            piece = [(_array(before), 0), (text, 1), (_array(knots.tail), 0) if number < last else (_array(trace), 1)]
        ids += [part for part, _ in piece]
        mask += [np.full(len(part), value, np.uint8) for part, value in piece]
        lengths.append(sum(len(part) for part, _ in piece))
    return Tangle(np.concatenate(ids), np.concatenate(mask), tuple(lengths), tuple(queue))


def _array(ids: tuple[int, ...]) -> np.ndarray:
    return np.array(ids, dtype=np.int32)
