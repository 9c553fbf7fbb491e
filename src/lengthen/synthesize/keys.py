"""Unique row keys in several styles, some of them near-duplicates of one another."""

from __future__ import annotations

import random
from typing import Literal

from lengthen.synthesize.vocabulary import Split, Vocabulary

Style = Literal["pair", "numbered", "code", "number"]
_LETTERS: dict[Split, str] = {"train": "ABCDEFGHJKLMNPQR", "test": "STUVWXYZ"}
_LEADING: dict[Split, tuple[int, int]] = {"train": (100_000, 700_000), "test": (700_000, 1_000_000)}


def draw_style(rng: random.Random, words: Vocabulary, rows: int, avoid: str = "") -> Style:
    """A style that has enough different keys for `rows` rows."""
    few = 1.25 * rows > len(words.firsts) * len(words.lasts)
    pair: Style = "numbered" if few else "pair"
    styles: list[Style] = [pair, pair, "code", "number"]
    return rng.choice([style for style in styles if style != avoid])


def draw_keys(
    rng: random.Random, words: Vocabulary, split: Split, style: Style, count: int, *, near: bool = False
) -> list[str]:
    """`count` different keys of one style: two words (`amber lantern`), two words and a number, a code (`KD-4821`) or
    a six-digit number.

    Args:
        near: about a third of the keys become near-duplicates of an earlier key: one digit or one word differs.
    """
    if style in ("pair", "numbered"):
        keys = _pairs(rng, words, count, numbered=style == "numbered")
    elif style == "code":
        keys = _codes(rng, _LETTERS[split], count)
    else:
        low, high = _LEADING[split]
        keys = [str(low + step) for step in rng.sample(range(high - low), count)]
    return _near(rng, words, keys, style) if near else keys


def another_key(
    rng: random.Random, words: Vocabulary, split: Split, style: Style, keys: list[str], like: str
) -> str | None:
    """A key that is not among `keys`: as a rule one that differs from `like` in one word or digit."""
    taken = set(keys)
    for _ in range(20):
        close = rng.random() < 0.5
        key = changed_key(rng, words, like, style) if close else draw_keys(rng, words, split, style, 1)[0]
        if key not in taken:
            return key
    return None


def _pairs(rng: random.Random, words: Vocabulary, count: int, *, numbered: bool) -> list[str]:
    firsts, lasts = words.firsts, words.lasts
    joint = rng.choice((" ", "-")) if words.joint else ""
    size = len(firsts) * len(lasts)
    if not numbered:
        return [f"{firsts[i % len(firsts)]}{joint}{lasts[i // len(firsts)]}" for i in rng.sample(range(size), count)]
    # Too few pairs for a long table: each gets a number of its own.
    numbers = 2 * (1 + count // size) + 98
    drawn = rng.sample(range(size * numbers), count)
    return [
        f"{firsts[i % size % len(firsts)]}{joint}{lasts[i % size // len(firsts)]}{joint}{1 + i // size}" for i in drawn
    ]


def _codes(rng: random.Random, letters: str, count: int) -> list[str]:
    digits = 4 if count < 60_000 else 6
    size = len(letters) ** 2
    drawn = rng.sample(range(size * 9 * 10 ** (digits - 1)), count)
    low = 10 ** (digits - 1)
    return [f"{letters[i % size // len(letters)]}{letters[i % size % len(letters)]}-{low + i // size}" for i in drawn]


def _near(rng: random.Random, words: Vocabulary, keys: list[str], style: Style) -> list[str]:
    taken = set(keys)
    for row in range(1, len(keys)):
        if rng.random() >= 0.3:
            continue
        key = changed_key(rng, words, keys[int(rng.random() * row)], style)
        if key not in taken:
            taken.discard(keys[row])
            taken.add(key)
            keys[row] = key
    return keys


def changed_key(rng: random.Random, words: Vocabulary, key: str, style: Style) -> str:
    """The key with another last word, or with one of its last three digits changed."""
    if style == "pair":
        # The longest first word that fits: one may begin with another.
        first = max((f for f in words.firsts if key.startswith(f)), key=len, default="")
        last = key[len(first) :].lstrip(" -")
        return key[: len(key) - len(last)] + rng.choice(words.lasts)
    place = max(i for i, c in enumerate(key) if c.isdigit()) if style == "numbered" else len(key) - rng.randint(1, 3)
    return key[:place] + rng.choice([d for d in "123456789" if d != key[place]]) + key[place + 1 :]
