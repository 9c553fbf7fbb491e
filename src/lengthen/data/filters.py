"""Filters over texts. Each answers with the rule that a document breaks, or None; who drops it counts it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator

from lengthen.common.errors import LengthenError, MissingExtra
from lengthen.data.document import Document, Ledger
from lengthen.recipe.sources import Filters

Rule = Callable[[Document], str | None]
_SAMPLE = 2**18  # characters of one window when a text is too long to be judged as a whole
_WINDOWS = 8


def windows(text: str, size: int = _SAMPLE, most: int = _WINDOWS) -> list[str]:
    """The text itself when it has at most `size` characters, else up to `most` windows spread evenly over it."""
    if len(text) <= size:
        return [text]
    count = min(most, -(-len(text) // size))
    step = (len(text) - size) / (count - 1)
    return [text[round(number * step) : round(number * step) + size] for number in range(count)]


def gzip_ratio(text: str) -> float:
    """Compressed size over size in bytes (zlib, level 6): low for repetitive text, near 1 for noise."""
    packer, raw, packed = zlib.compressobj(6), 0, 0
    for start in range(0, len(text), 2**20):
        data = text[start : start + 2**20].encode()
        raw, packed = raw + len(data), packed + len(packer.compress(data))
    return (packed + len(packer.flush())) / max(1, raw)


def repetition_rule(text: str) -> str | None:
    """Which of Gopher's repetition rules the text breaks (arXiv 2112.11446, Table A1, with datatrove's thresholds).

    The rules were made for web pages. A longer text is judged by windows and breaks a rule when more than half of them
    do, so that one table of contents does not cost a book, and memory stays bounded.
    """
    broken = [rule for window in windows(text) if (rule := _gopher(window))]
    return f"repetition_{broken[0]}" if len(broken) * 2 > len(windows(text)) else None


def _gopher(text: str) -> str | None:
    from datatrove.pipeline.filters.gopher_repetition_filter import (
        find_all_duplicate,
        find_duplicates,
        find_top_duplicate,
        get_n_grams,
    )

    size = max(1, len(text))
    for name, pieces in (("paragraphs", re.split(r"\n{2,}", text.strip())), ("lines", re.split(r"\n+", text))):
        repeated, characters = find_duplicates(pieces)
        if repeated / len(pieces) > 0.30 or characters / size > 0.20:
            return f"duplicate_{name}"
    words = re.findall(r"\w+", text)
    for n, most in ((2, 0.20), (3, 0.18), (4, 0.16)):
        grams = get_n_grams(words, n)
        if grams and find_top_duplicate(grams) / size > most:
            return f"top_{n}_gram"
    for n, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)):
        if find_all_duplicate(words, n) / size > most:
            return f"duplicate_{n}_grams"
    return None


def language_of(text: str) -> str:
    """ISO 639-1 code of a text's language, by py3langid on up to four windows of 4,000 characters (majority)."""
    try:
        from py3langid.langid import classify
    except ImportError as error:
        raise MissingExtra.of("The language filter", "languages") from error
    votes = [classify(window)[0] for window in windows(text, 4000, 4)]
    return max(sorted(set(votes)), key=votes.count)


def text_rules(filters: Filters) -> list[Rule]:
    """The rules that look at one text alone, cheap ones first. Conversations are judged by their contents."""
    rules: list[Rule] = []
    if filters.gzip_min is not None or filters.gzip_max is not None:
        rules.append(_gzip_rule(filters.gzip_min or 0.0, filters.gzip_max or float("inf")))
    if filters.languages:
        wanted = set(filters.languages)
        rules.append(lambda document: None if (code := language_of(document.text)) in wanted else f"language_{code}")
    if filters.repetition:
        rules.append(lambda document: repetition_rule(document.text))
    if filters.decontaminate:
        from lengthen.data.decontaminate import load_ngrams

        grams = load_ngrams(filters.decontaminate)
        hits = filters.contamination_hits
        rules.append(lambda document: "contaminated" if grams.hits(document.text, hits) >= hits else None)
    return rules


def _gzip_rule(low: float, high: float) -> Rule:
    def rule(document: Document) -> str | None:
        ratio = gzip_ratio(document.text)
        return "gzip_ratio_low" if ratio < low else "gzip_ratio_high" if ratio > high else None

    return rule


def filter_documents(documents: Iterable[Document], filters: Filters, ledger: Ledger) -> Iterator[Document]:
    """Documents that break no rule; the others are counted (and written out, if the ledger does so).

    Token ranges and duplicates are not decided here: the first needs the tokens, the second all documents.
    """
    rules = text_rules(filters)
    for document in documents:
        judged = document
        if document.messages is not None:
            contents = [m.get("content") for m in document.messages if isinstance(m, dict)]
            judged = Document(document.id, "\n\n".join(c for c in contents if isinstance(c, str)), document.source)
        broken = next((name for rule in rules if (name := rule(judged))), None) if document.ids is None else None
        if broken:
            ledger.drop(broken, document)
        else:
            yield document


def check_filters(filters: Filters, where: str) -> None:
    """Fail before the work begins when a filter cannot run."""
    if filters.languages:
        language_of("a test")
        unknown = [code for code in filters.languages if len(code) != 2 or not code.islower()]
        if unknown:
            raise LengthenError(f"{where}.languages: '{unknown[0]}' is no ISO 639-1 code.", fix="write en, de, zh ...")
    if filters.decontaminate:
        from lengthen.data.decontaminate import load_ngrams

        load_ngrams(filters.decontaminate)
