"""Cutting a text at a paragraph or sentence edge near a share of its words, and joining a continuation to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from lengthen.common.words import count_words, is_cjk, sentence_spans

_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_FENCE = re.compile(r"^\s*(?:`{3,}|~{3,})")
_HEADING = re.compile(r"#{1,6}\s")


@dataclass(frozen=True)
class Beginning:
    """The first part of a text: `text` ends at an edge, without white space; `joint` is what stood after it."""

    text: str
    joint: str
    words: int


@lru_cache(maxsize=1024)  # every try and every failed round cuts the same text again
def beginning(text: str, share: float, tolerance: float = 0.1) -> Beginning | None:
    """The first part of a text with about `share` of its words.

    The cut lies at the paragraph edge nearest to the share, when one lies within `tolerance` of it (as a share of the
    text), else at the nearest sentence edge. The original cuts by the number of paragraphs, so that its first half
    may hold 5% of the text or nothing.

    Returns:
        None when the text has no edge inside: one sentence, or one code block.
    """
    total = count_words(text)
    aim = share * total
    edges = _edges(text, total)
    before = [(end, abs(words - aim), words) for end, words, paragraph in edges if paragraph]
    near = [edge for edge in before if edge[1] <= tolerance * total]
    choice = near or [(end, abs(words - aim), words) for end, words, _ in edges]
    if not choice:
        return None
    end, _, words = min(choice, key=lambda edge: (edge[1], edge[0]))
    head = text[:end].rstrip()
    rest = text[len(head) :]
    return Beginning(head, rest[: len(rest) - len(rest.lstrip())], words)


def join(start: Beginning, continuation: str) -> str:
    """The kept beginning and what the model wrote after it. When the model (or its server) gives no white space of
    its own, what stood at the joint is put back, so that words cannot fuse."""
    if not continuation.strip():
        return start.text
    if continuation[0].isspace():
        return start.text + continuation
    plain = "" if is_cjk(start.text) else " "
    return start.text + (start.joint or plain) + continuation


def _edges(text: str, total: int) -> list[tuple[int, int, bool]]:
    """(offset, words before it, is a paragraph edge) of every inner edge that leaves some of the `total` words on both
    sides. None lies inside a code fence or between the rows of a table."""
    paragraphs = {match.start() for match in _PARAGRAPH.finditer(text)}
    edges: list[tuple[int, int, bool]] = []
    fenced, words = False, 0
    for begin, end in sentence_spans(text):
        piece = text[begin:end]
        words += count_words(piece)
        line = piece.strip()
        fenced = fenced != bool(_FENCE.match(line))
        # A line break span may hold the blank line itself: the edge lies before it.
        at = begin + len(piece.rstrip()) if line else begin
        if fenced or (line.startswith("|") and not _ends_paragraph(at, text)) or not 0 < words < total:
            continue
        if edges and edges[-1][1] == words:
            edges[-1] = (edges[-1][0], words, edges[-1][2] or at in paragraphs)
            continue
        edges.append((at, words, at in paragraphs))
    return [edge for edge in edges if not _is_heading(text, edge[0])]


def _ends_paragraph(at: int, text: str) -> bool:
    return bool(_PARAGRAPH.match(text, at)) or not text[at:].strip()


def _is_heading(text: str, end: int) -> bool:
    """A part that ends in a heading would cut the heading from its section. Looks at the part's last line alone: a
    copy of the part for each of its edges would take quadratic time."""
    while end and text[end - 1].isspace():
        end -= 1
    return bool(_HEADING.match(text[text.rfind("\n", 0, end) + 1 : end]))
