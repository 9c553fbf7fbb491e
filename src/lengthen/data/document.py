"""A document, and the ledger of everything that did not become part of a row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.manifest import Drops

OnError = Literal["fail", "skip"]


@dataclass(frozen=True, slots=True)
class Document:
    """One text with its source, kept whole until it is packed.

    messages: a conversation instead of a text (then `text` is empty until it is rendered).
    ids, mask: tokens of data that comes tokenised; mask[t] = 1 means that token t is trained.
    where: names the file and line, for problems that show later; a call, since counting lines costs time.
    """

    id: str
    text: str
    source: str
    meta: dict[str, Any] = field(default_factory=dict)
    messages: tuple[dict[str, Any], ...] | None = None
    ids: np.ndarray | None = None
    mask: np.ndarray | None = None
    where: Callable[[], str] | None = field(default=None, compare=False, repr=False)

    @property
    def domain(self) -> str:
        return str(self.meta.get("domain", ""))


@dataclass
class Ledger:
    """Counts by rule of one task. Problems stop the task (`fail`) or are counted and listed (`skip`).

    dropped: file that receives dropped documents as JSON lines, when they are wanted.
    """

    on_error: OnError = "fail"
    drops: Drops = field(default_factory=Drops)
    problems: list[dict[str, str]] = field(default_factory=list)
    dropped: IO[str] | None = None

    def problem(self, rule: str, where: str, why: str, fix: str = "mend or remove it") -> None:
        """Something is wrong with the input: an error that names the place, or a counted skip."""
        if self.on_error == "fail":
            raise LengthenError(f"{where}: {why}.", fix=f"{fix}, or set `on_error: skip` to leave it out and count it")
        self.drops.add(rule)
        # The first thousand tell what is the matter; the count is exact whatever their number.
        if len(self.problems) < 1000:
            self.problems.append({"rule": rule, "where": where, "why": why})

    def drop(self, rule: str, document: Document, tokens: int = 0) -> None:
        """A whole document that does not go on."""
        self.drops.add(rule, 1, tokens)
        if self.dropped is not None:
            row: dict[str, Any] = {"rule": rule, "id": document.id, "source": document.source, "tokens": tokens}
            row |= {"messages": list(document.messages)} if document.messages is not None else {"text": document.text}
            self.dropped.write(json.dumps(row, ensure_ascii=False) + "\n")

    def as_json(self) -> dict[str, Any]:
        return {"drops": self.drops.by_rule, "problems": self.problems}


def short_path(path: str | Path) -> str:
    """The last three parts of a path, for ids that do not depend on where the data lies."""
    return "/".join(str(path).replace("\\", "/").rstrip("/").split("/")[-3:])
