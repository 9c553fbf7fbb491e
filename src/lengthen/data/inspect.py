"""Looking at data: rows decoded with their boundaries and masks, histograms, shares, fill and drops, as plain text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json
from lengthen.common.manifest import MANIFEST
from lengthen.data import storage
from lengthen.data.account import REPORT
from lengthen.data.shards import DATASET, ROWS, Row, open_rows, read_facts, read_row, rows_folder
from lengthen.recipe.base import size_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BAR = 40
_DOMAINS = 20
_SHOWN = 160  # characters shown at each end of a document


def inspect_path(path: str | Path, rows: int = 3, model: str | None = None) -> str:
    """Readable text about rows (a stage folder or rows/), a chat file, or a file of documents.

    Args:
        rows: how many rows, conversations or documents to show.
        model: whose tokenizer decodes rows. Default: the one that the stage's manifest names, if it can be loaded.
    """
    path = Path(path)
    if not path.exists():
        raise LengthenError(f"There is no {path}.", fix="give rows, a stage folder, chat.jsonl or a file of documents")
    if path.is_dir() and ((path / DATASET).exists() or (path / ROWS / DATASET).exists()):
        return inspect_rows(path, rows, model)
    if path.is_dir() and (path / "chat.jsonl").exists():
        path = path / "chat.jsonl"
    if path.is_dir():
        raise LengthenError(
            f"{path} is a folder without rows or conversations.",
            fix="name a finished stage, or a .jsonl or .parquet file",
        )
    return _inspect_documents(path, rows)


def inspect_rows(path: Path, count: int, model: str | None) -> str:
    """Facts, report and the first `count` rows."""
    folder = rows_folder(path)
    facts = read_facts(path)
    lines = [
        f"{folder}",
        f"{facts['rows']:,} rows of at most {size_text(facts['row_length'])} tokens, {facts['tokens']:,} tokens"
        + (f", {facts['fill']:.3%} full" if "fill" in facts else ""),
    ]
    if "trained_tokens" in facts and facts["trained_tokens"] != facts["tokens"]:
        lines.append(f"{facts['trained_tokens']:,} tokens trained ({facts['trained_tokens'] / facts['tokens']:.1%})")
    report = folder.parent / REPORT
    if report.exists():
        lines += _report_lines(read_json(report))
    dataset = open_rows(path)
    tokenizer = _tokenizer(folder.parent, model, facts)
    for number in range(min(count, len(dataset))):
        lines += ["", f"Row {number}", *_row_lines(read_row(dataset, number), tokenizer)]
    return "\n".join(lines)


def _report_lines(report: dict[str, Any]) -> list[str]:
    lines = ["", "Mix: asked and achieved"]
    wide = max((len(row["cell"]) for row in report["mix"]), default=0)
    for row in report["mix"]:
        lines.append(
            f"  {row['cell']:<{wide}}  {row['asked_share']:7.2%} asked  {row['share']:7.2%}  {row['tokens']:>15,} "
            f"tokens  {row['documents']:>9,} documents  {row['passes']:.2f} passes"
            + ("  RAN DRY" if row["dry"] else "")
        )
    if domains := report.get("domains"):
        lines += ["", "Domains"]
        for row in domains[:_DOMAINS]:
            lines.append(f"  {row['source']} / {row['domain']}: {row['share']:.2%}, {row['tokens']:,} tokens, "
                         f"{row['documents']:,} documents")  # fmt: skip
        if len(domains) > _DOMAINS:
            lines.append(f"  and {len(domains) - _DOMAINS:,} more, in domains.csv")
    lines += ["", "Packing"]
    for row in report["packing"]:
        lines.append(f"  {row['group']}, pass {row['pass']}: {row['rows']:,} rows, {row['fill']:.3%} full, "
                     f"{row['documents_cut']:,} documents cut")  # fmt: skip
    lines += ["", "Documents by length (tokens)", *_bars(report["documents_by_length"])]
    lines += ["", "Left out"]
    if not report["drops"]:
        lines.append("  nothing")
    for rule, row in sorted(report["drops"].items()):
        lines.append(f"  {rule}: {row['items']:,} items" + (f", {row['tokens']:,} tokens" if row["tokens"] else ""))
    lines += [f"  note: {note}" for note in report["notes"]]
    for problem in report["problems"][:5]:
        lines.append(f"  {problem['rule']}: {problem['where']}: {problem['why']}")
    return lines


def _bars(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for name, group in itertools.groupby(rows, key=lambda row: row["of"]):
        found = list(group)
        most = max(row["items"] for row in found)
        lines.append(f"  {name}")
        for row in found:
            bar = "█" * max(1, round(_BAR * row["items"] / most))
            lines.append(f"    {row['from']:>9,}+ {bar} {row['items']:,} ({row['tokens']:,} tokens)")
    return lines


def _tokenizer(stage: Path, model: str | None, facts: dict[str, Any]) -> PreTrainedTokenizerFast | None:
    from lengthen.data.tokenize import vocabulary_sha256
    from lengthen.models import load_tokenizer

    manifest = stage / MANIFEST
    named = model or (read_json(manifest)["settings"].get("model") if manifest.exists() else None)
    if named is None:
        return None
    try:
        tokenizer = load_tokenizer(named)
    except LengthenError:
        if model is not None:
            raise
        return None
    if vocabulary_sha256(tokenizer) != facts.get("tokenizer_sha256", vocabulary_sha256(tokenizer)):
        raise LengthenError(
            f"The rows were made with another tokenizer than {named}'s.", fix="name the right model with --model"
        )
    return tokenizer


def _row_lines(row: Row, tokenizer: PreTrainedTokenizerFast | None) -> list[str]:
    between = "documents do not see each other" if row.attend == "isolated" else "attended across"
    lines = [f"  {len(row.ids):,} tokens, {len(row.doc_lens)} documents, {row.attend} ({between})"]
    begin = 0
    for number, (length, source) in enumerate(zip(row.doc_lens.tolist(), row.sources)):
        lines.append(
            f"  ├─ {number}: {source}, {length:,} tokens [{begin:,}-{begin + length:,}){_units_of(row, begin, length)}"
        )
        ids = row.ids[begin : begin + length]
        mask = None if row.loss_mask is None else row.loss_mask[begin : begin + length].astype(bool)
        lines += [f"  │    {line}" for line in _document_lines(ids, mask, tokenizer)]
        begin += length
    return [*lines, "  └─ end"]


def _units_of(row: Row, begin: int, length: int) -> str:
    if row.unit_lens is None:
        return ""
    starts = np.cumsum(row.unit_lens) - row.unit_lens
    count = int(((starts >= begin) & (starts < begin + length)).sum())
    return f", {count:,} units (skipped positions leave gaps between them)"


def _document_lines(ids: np.ndarray, mask: np.ndarray | None, tokenizer: PreTrainedTokenizerFast | None) -> list[str]:
    """Text with its trained parts between ⟦ and ⟧ (all of it is trained where there are none)."""

    def text(part: np.ndarray) -> str:
        return str(tokenizer.decode(part)) if tokenizer is not None else " ".join(map(str, part.tolist()))

    if mask is None or mask.all():
        return [_short(text(ids))]
    edges = np.flatnonzero(np.diff(mask.astype(np.int8))) + 1
    shown = []
    for begin, end in itertools.pairwise([0, *edges.tolist(), len(ids)]):
        piece = _short(text(ids[begin:end]))
        shown.append(f"⟦{piece}⟧ trained, {end - begin:,} tokens" if mask[begin] else piece)
    return shown


def _short(text: str) -> str:
    text = text.replace("\n", "↵")
    return text if len(text) <= 2 * _SHOWN + 20 else f"{text[:_SHOWN]} … {text[-_SHOWN:]}"


def _inspect_documents(path: Path, count: int) -> str:
    lines, lengths = [], []
    shown: list[str] = []
    for row in _objects(path):
        messages = row.get("messages")
        text = "".join(str(m.get("content", "")) for m in messages) if messages else str(row.get("text", ""))
        lengths.append(len(text))
        if len(lengths) <= count:
            shown += ["", f"{row.get('id', len(lengths) - 1)}"]
            if messages:
                shown += [f"  {m.get('role', '?')}: {_short(str(m.get('content', '')))}" for m in messages]
            else:
                shown.append("  " + _short(text))
    kinds = np.array(lengths or [0])
    lines = [
        f"{path}",
        f"{len(lengths):,} items, {kinds.sum():,} characters (shortest {kinds.min():,}, median "
        f"{int(np.median(kinds)):,}, longest {kinds.max():,})",
    ]
    return "\n".join(lines + shown)


def _objects(path: Path) -> Any:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
        return
    try:
        for offset, line in storage.read_lines(str(path)):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    number = storage.line_number(str(path), offset)
                    raise LengthenError(f"{path}, line {number} is not JSON: {error}.") from error
    except storage.READ_ERRORS as error:
        raise LengthenError(
            f"{path} cannot be read ({error}).", fix="inspect rows, .jsonl or .parquet files"
        ) from error
