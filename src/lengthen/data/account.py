"""The account of a prepare stage: dataset.json, the dataset card, data_report.json and its CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lengthen.common.files import read_json, write_atomic, write_json
from lengthen.common.manifest import Drops, StageContext, StageResult
from lengthen.data.plan import Planned, RowPlan
from lengthen.data.shards import DATASET, ROWS
from lengthen.data.store import TokenStore
from lengthen.recipe.base import size_text
from lengthen.recipe.stages.prepare import PrepareStage

REPORT = "data_report.json"
_MIX_COLUMNS = ("cell", "documents", "asked_tokens", "tokens", "asked_share", "share", "passes")


def write_account(settings: PrepareStage, ctx: StageContext, work: Path, job: dict[str, Any], planned: Planned) -> None:
    """Write everything beside the shards; dataset.json last, since it says that the rows are complete."""
    store = TokenStore(work / "tokens", len(job["parts"]))
    layout = read_json(work / "layout.json")
    drops = Drops()
    drops.merge(job["drops"])
    for record in store.records:
        drops.merge(record["drops"])
    drops.merge(planned.drops.by_rule)
    facts = _facts(settings, job, layout, planned.plan, work, ctx)
    report = {
        "schema": 1,
        **{key: facts[key] for key in ("row_length", "rows", "tokens", "trained_tokens", "documents", "fill")},
        "mix": planned.table,
        "domains": planned.domains,
        "packing": planned.fill,
        "sources": _sources(settings, store, planned.plan),
        "drops": drops.by_rule,
        "problems": [*job["problems"], *(p for record in store.records for p in record["problems"])][:1000],
        "documents_by_length": _histograms(settings, store),
        "row_tokens": _row_histogram(planned.plan),
        "tokenizer": job["tokens"],
        "notes": _notes(planned),
    }
    if settings.write_dropped:
        _collect_dropped(ctx.folder, work)
    write_json(ctx.folder / REPORT, report)
    _write_csvs(ctx.folder, report)
    write_atomic(ctx.folder / ROWS / "README.md", dataset_card(ctx.recipe, settings, report))
    write_json(ctx.folder / ROWS / DATASET, facts)


def _facts(
    settings: PrepareStage, job: dict[str, Any], layout: dict[str, Any], plan: RowPlan, work: Path, ctx: StageContext
) -> dict[str, Any]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    rows = tokens = trained = documents = 0
    for number in range(layout["shards"]):
        # Counted from what was written, not from what was planned.
        with pq.ParquetFile(ctx.folder / ROWS / f"{number:05d}.parquet") as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(
                    group, columns=[c for c in layout["columns"] if c in ("doc_lens", "loss_mask")]
                )
                rows += table.num_rows
                lens = table.column("doc_lens").combine_chunks().flatten()
                documents += len(lens)
                group_tokens = pc.call_function("sum", [lens]).as_py() or 0
                tokens += group_tokens
                if "loss_mask" in table.column_names:
                    trained += (
                        pc.call_function("sum", [table.column("loss_mask").combine_chunks().flatten()]).as_py() or 0
                    )
                else:
                    trained += group_tokens
    return {
        "schema": 1,
        "row_length": settings.row_length,
        "rows": rows,
        "tokens": tokens,
        "trained_tokens": trained,
        "documents": documents,
        "fill": tokens / (rows * settings.row_length) if rows else 0.0,
        "tokenizer_sha256": job["tokens"]["sha256"],
        "columns": layout["columns"],
        "shards": layout["shards"],
        "sources": layout["sources"],
    }


def _sources(settings: PrepareStage, store: TokenStore, plan: RowPlan) -> list[dict[str, Any]]:
    tokens = np.bincount(plan.source, weights=plan.length, minlength=len(settings.sources))
    found = []
    for index, source in enumerate(settings.sources):
        records = [record for record in store.records if record["source"] == index]
        found.append({
            "source": source.name, "kind": source.kind, "packing": source.packing,
            "interleave": source.interleave.method if source.interleave else "",
            "documents_read": sum(r["read"] for r in records), "documents_kept": sum(r["documents"] for r in records),
            "tokens_kept": sum(r["tokens"] for r in records), "tokens_in_rows": int(tokens[index]),
        })  # fmt: skip
    return found


def _histogram(lengths: np.ndarray, label: str) -> list[dict[str, Any]]:
    """Counts and tokens by power of two."""
    if not len(lengths):
        return []
    bins = np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    return [
        {
            "of": label,
            "from": 2**b,
            "to": 2 ** (b + 1) - 1,
            "items": int((bins == b).sum()),
            "tokens": int(lengths[bins == b].sum()),
        }
        for b in np.unique(bins).tolist()
    ]


def _histograms(settings: PrepareStage, store: TokenStore) -> list[dict[str, Any]]:
    owner = np.repeat([record["source"] for record in store.records], [record["documents"] for record in store.records])
    return [
        row
        for index, source in enumerate(settings.sources)
        for row in _histogram(store.length[owner == index], source.name)
    ]


def _row_histogram(plan: RowPlan) -> list[dict[str, Any]]:
    ends = np.concatenate([[0], np.cumsum(plan.length)])
    return _histogram(ends[plan.rows[1:]] - ends[plan.rows[:-1]], "rows")


def _notes(planned: Planned) -> list[str]:
    notes = []
    for row in planned.table:
        if row["dry"]:
            notes.append(
                f"{row['cell']} ran dry: {row['asked_tokens']:,} tokens asked for, {row['tokens']:,} there; "
                "nothing else was put in its place."
            )
        elif abs(row["share"] - row["asked_share"]) > 0.005:
            notes.append(f"{row['cell']}: {row['share']:.1%} of the mix instead of {row['asked_share']:.1%}.")
    return notes


def _collect_dropped(folder: Path, work: Path) -> None:
    target = folder / "dropped"
    target.mkdir(exist_ok=True)
    for kind, name in (("dropped", "{}"), ("duplicates", "duplicates-{}")):
        for file in sorted((work / kind).glob("*.jsonl")):
            if file.stat().st_size:
                write_atomic(target / name.format(file.name), file.read_bytes())


def _write_csvs(folder: Path, report: dict[str, Any]) -> None:
    for name in ("mix", "domains", "packing", "documents_by_length", "row_tokens"):
        if report[name]:
            write_atomic(folder / f"{name}.csv", _csv(report[name]))
    write_atomic(folder / "drops.csv", _csv([{"rule": rule, **row} for rule, row in report["drops"].items()]))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def dataset_card(recipe: str, settings: PrepareStage, report: dict[str, Any]) -> str:
    """Markdown with the header that the Hub reads."""
    title = f"Training rows of {recipe}" if recipe else "Training rows"
    text = [
        "---", "configs:", "- config_name: default", "  data_files: '*.parquet'", "tags:", "- lengthen",
        "- long-context", "---",
        f"# {title}", "",
        f"{report['rows']:,} rows of at most {size_text(settings.row_length)} tokens; {report['tokens']:,} tokens in "
        f"{report['documents']:,} documents, {report['trained_tokens']:,} of them trained; {report['fill']:.3%} full. "
        f"Tokenizer: {settings.model} (vocabulary SHA-256 {report['tokenizer']['sha256'][:16]}...).", "",
        "Columns: `input_ids`, `doc_lens` (documents of the row, in order), `attend` (`isolated`: documents do not see "
        "each other; `joined`: interleaved pieces do), `sources` (one a document), `loss_mask` (1 = trained) and "
        "`unit_lens` (spans that skipped positions keep together) where there are any.", "",
        "## Mix", "", *_table(_MIX_COLUMNS, report["mix"]), "",
        "## Left out", "",
        *_table(("rule", "items", "tokens"), [{"rule": r, **row} for r, row in sorted(report["drops"].items())]), "",
        *(["## Domains", "", *_table(tuple(report["domains"][0]), report["domains"]), ""] if report["domains"] else []),
        *(["## Notes", "", *(f"- {note}" for note in report["notes"]), ""] if report["notes"] else []),
    ]  # fmt: skip
    return "\n".join(text)


def _table(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> list[str]:
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(name, row[name]) for name in columns) for row in rows]
    return [f"| {line} |" for line in lines]


def _cell(name: str, value: Any) -> str:
    if name.endswith("share"):
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)


def stage_result(folder: Path) -> StageResult:
    """What the manifest records, from the files of a finished stage."""
    report = read_json(folder / REPORT)
    counts = {key: report[key] for key in ("rows", "tokens", "trained_tokens", "documents")}
    tokens = report["tokenizer"]
    derived = {
        "end_token": {"value": tokens["end"], "reason": "put after each document"},
        "begin_token": {"value": tokens["begin"], "reason": "put before each document"},
    }
    figures = {"rows": report["rows"], "tokens": report["tokens"], "fill": f"{report['fill']:.2%}"}
    return StageResult(counts, report["drops"], figures, derived, report["notes"])
