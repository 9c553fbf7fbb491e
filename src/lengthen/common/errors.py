"""Errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LengthenError(Exception):
    """Something the user can mend. Printed without a traceback (`--debug` shows it).

    Args:
        what: what is wrong, with the value and its key path or file.
        why: the reason, when it is not plain.
        fix: what to do now.
    """

    def __init__(self, what: str, *, why: str | None = None, fix: str | None = None) -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__("\n".join(part for part in (what, why, f"-> {fix}" if fix else None) if part))

    def __reduce__(self):
        # Exceptions cross process pools by pickling; keyword-only parts must survive it.
        return (_rebuild, (type(self), self.what, self.why, self.fix))


def _rebuild(kind: type[LengthenError], what: str, why: str | None, fix: str | None) -> LengthenError:
    return kind(what, why=why, fix=fix)


class Refused(LengthenError):
    """A stage refused its settings before it did anything; what it had made before stays valid."""


class MissingExtra(LengthenError):
    """A feature whose library is not installed."""

    def __init__(self, what: str, *, why: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, why=why, fix=fix)

    @classmethod
    def of(cls, feature: str, extra: str) -> MissingExtra:
        return cls(
            f"{feature} needs a library that is not installed.",
            fix=f"pip install 'lengthen[{extra}]'",
        )


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Text for an error: the nearest allowed name, and all of them. Returns e.g. `did you mean 'vt'? Allowed: ...`."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Allowed: {', '.join(names)}"
