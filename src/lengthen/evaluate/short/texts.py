"""Held-out short texts from packages: news, code and conversations. Evaluation only, no recipe trains on them."""

from __future__ import annotations

import re
from functools import cache

from lengthen.data.packages import package_files
from lengthen.evaluate.draws import Draws
from lengthen.evaluate.own.labelled import BBC
from lengthen.generate.engine import Message

CODE = (
    (
        "more-itertools==10.5.0",
        "037b0d3203ce90cca8ab1defbbdac29d5f993fc20131f3664dc8d6acfa872aef",
        "more_itertools/*.py",
    ),
    ("toolz==1.0.0", "292c8f1c4e7516bf9086f8850935c799a874039c8bcf959d47b600e4c44a6236", "toolz/*.py"),
)
CHAT = ("chatterbot-corpus==1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154")
CHAT_FILES = ("conversations", "emotion", "humor", "literature", "psychology", "science", "movies", "food", "money")
TEXTS = 24
LEAST_CHARS, MOST_CHARS = 400, 1600


@cache
def prose(count: int = TEXTS) -> list[str]:
    """News articles of a few paragraphs."""
    paths = package_files(*BBC, "*/bbcnews/data/*/*.txt")
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    return _picked([re.sub(r"\n\s*\n\s*", "\n\n", t.strip()) for t in texts], "prose", count)


@cache
def code(count: int = TEXTS) -> list[str]:
    """Functions of two libraries, with their documentation."""
    found = []
    for requirement, sha256, pattern in CODE:
        for path in package_files(requirement, sha256, pattern):
            if "tests" not in path.parts:
                text = path.read_text(encoding="utf-8")
                found += re.split(r"\n\n\n(?=(?:@|def |class ))", text)[1:]
    return _picked([f"{piece.rstrip()}\n" for piece in found], "code", count)


def _picked(texts: list[str], name: str, count: int) -> list[str]:
    fitting = [t for t in dict.fromkeys(texts) if LEAST_CHARS <= len(t) <= MOST_CHARS]
    return [fitting[i] for i in Draws(0, "short", name).sample(len(fitting), count).tolist()]


@cache
def chats(count: int = 2 * TEXTS) -> list[tuple[Message, ...]]:
    """Conversations of two to six turns in turn."""
    import yaml

    found: list[tuple[Message, ...]] = []
    for path in package_files(*CHAT, "*/data/english/*.yml"):
        if path.stem not in CHAT_FILES:
            continue
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            even = [str(turn) for turn in turns][: 6 - len(turns) % 2 if len(turns) < 6 else 6]
            even = even[: len(even) // 2 * 2]
            if even and sum(map(len, even)) >= 60:
                roles = ("user", "assistant")
                found.append(tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(even)))
    return [found[i] for i in Draws(0, "short", "chat").sample(len(found), count).tolist()]
