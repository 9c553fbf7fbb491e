"""Which sequence-parallel degrees fit a model's heads. No torch: `lengthen plan` asks too."""

from __future__ import annotations

from lengthen.common.errors import LengthenError


def fit(heads: int, kv_heads: int, ranks: int) -> bool:
    """Whether Ulysses can share the heads out: whole query heads each, key/value heads whole or repeated."""
    return heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


def sizes(heads: int, kv_heads: int) -> str:
    """What to use instead, for an error."""
    good = [n for n in range(2, heads + 1) if fit(heads, kv_heads, n)]
    return f"use sequence_parallel {', '.join(map(str, good))}, or 1" if good else "use sequence_parallel: 1"


def check(heads: int, kv_heads: int, ranks: int) -> None:
    """Raises: LengthenError where the heads cannot be shared out."""
    if not fit(heads, kv_heads, ranks):
        raise LengthenError(
            f"sequence_parallel {ranks} does not fit a model with {heads} query and {kv_heads} key/value heads.",
            why="each rank takes an equal share of the heads (Ulysses).",
            fix=sizes(heads, kv_heads),
        )
