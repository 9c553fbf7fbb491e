"""Prompts with a length demand, from the published benchmarks or a file of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json_lines
from lengthen.common.words import is_cjk, longen_demand

Family = Literal["longen", "longbench-write", "open"]
HUB = {"longen": ("quanshr/LonGen", "test"), "longbench_write": ("THUDM/LongBench-Write", "train")}


@dataclass(frozen=True)
class WritingPrompt:
    """A writing task.

    family: how its length is scored: LonGen's band, LongBench-Write's asked length, or not at all.
    kind: LonGen's kind of demand (about, range, above, below), or LongBench-Write's type of task.
    low, high: LonGen's band in words; both the asked length for LongBench-Write; 0 without a demand.
    """

    id: str
    text: str
    family: Family
    kind: str = ""
    low: float = 0.0
    high: float = 0.0
    language: str = ""

    @property
    def words(self) -> float:
        """The most that is asked for."""
        return self.high


def load_prompts(source: str) -> list[WritingPrompt]:
    """Writing prompts by name or from a JSON-lines file.

    Args:
        source: `longen` or `longbench_write` (from the Hub), or a file with rows of one of three schemas:
            LonGen's {language, type, constraint, query}, LongBench-Write's {prompt, type, length}, or
            {prompt} with an optional {id} and {words}.
    """
    if source in HUB:
        rows = _from_hub(source)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise LengthenError(
                f"There are no writing prompts '{source}'.",
                fix="name longen, longbench_write, or a JSON-lines file with a `prompt` in each row",
            )
        rows = list(read_json_lines(path))
    return [read_prompt(row, f"{Path(source).stem}-{number}") for number, row in enumerate(rows, 1)]


def _from_hub(name: str) -> list[Mapping[str, Any]]:
    from datasets import load_dataset

    repository, split = HUB[name]
    try:
        return list(load_dataset(repository, split=split))  # type: ignore[arg-type]
    except Exception as error:  # the Hub client raises many kinds: offline, not found, gated, time-outs
        raise LengthenError(
            f"{repository} could not be loaded: {str(error).splitlines()[0]}",
            fix="connect once, or name a file with its rows",
        ) from error


def read_prompt(row: Mapping[str, Any], name: str) -> WritingPrompt:
    """One row of any of the three schemas."""
    name = str(row.get("id", name))
    if {"query", "type", "constraint"} <= row.keys():
        low, high = longen_demand(row["type"], row["constraint"])
        return WritingPrompt(name, row["query"], "longen", row["type"], low, high, _language(row, row["query"]))
    if {"prompt", "length"} <= row.keys():
        asked = float(row["length"])
        kind = str(row.get("type", ""))
        return WritingPrompt(name, row["prompt"], "longbench-write", kind, asked, asked, _language(row, row["prompt"]))
    if "prompt" in row:
        words = float(row.get("words", 0))
        return WritingPrompt(name, row["prompt"], "open", "", words, words, _language(row, row["prompt"]))
    raise LengthenError(
        f"Writing prompt {name} has the keys {', '.join(sorted(row))}.",
        why="none of the schemas fits: {query, type, constraint}, {prompt, length}, {prompt}",
        fix="rename its columns",
    )


def _language(row: Mapping[str, Any], prompt: str) -> str:
    """The row's own; LongBench-Write's rows name none, so theirs is told by the script."""
    return str(row.get("language") or ("zh" if is_cjk(prompt) else "en"))
