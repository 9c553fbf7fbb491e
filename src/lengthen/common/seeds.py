"""One seed fans out by name, so that adding a consumer never changes what another one draws."""

from __future__ import annotations

import hashlib
import random


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed that depends only on `seed` and the names: same bytes on every machine and Python."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def named_random(seed: int, *names: object) -> random.Random:
    """A `random.Random` for one named use."""
    return random.Random(derive_seed(seed, *names))
