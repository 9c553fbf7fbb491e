"""The `prepare` stage: sources -> documents -> tokens -> plan -> rows.

Each step leaves whole files in `<stage>/.work` (tokens/, plan/, layout.json), so a killed run goes on behind the last
finished task; the work folder is removed when the rows are complete.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json, write_json
from lengthen.common.manifest import Drops, StageContext, StageResult
from lengthen.data import account, rows
from lengthen.data.document import Ledger
from lengthen.data.executors import run_tasks
from lengthen.data.filters import check_filters
from lengthen.data.plan import Planned, plan_rows
from lengthen.data.shards import DATASET, ROWS
from lengthen.data.sources import plan_parts
from lengthen.data.store import TRAINED, TokenStore, part_file
from lengthen.data.tokenize import load_text_tokenizer, save_tokenizer
from lengthen.data.work import filters_of, tell_duplicates, tokenise_part
from lengthen.models import load_tokenizer, resolve_model
from lengthen.recipe.stages.prepare import PrepareStage


def prepare(settings: PrepareStage, ctx: StageContext) -> StageResult:
    """Write `rows/` (parquet shards, dataset.json, README.md), `data_report.json`, histograms as CSV, and, if asked
    for, `dropped/`.

    Raises:
        LengthenError: a source that is missing, broken (unless on_error is skip) or empty; a tokenizer without an end
            token; a mix that cannot be made.
    """
    work = ctx.folder / ".work"
    if not (ctx.folder / ROWS / DATASET).exists():
        job = _job(settings, ctx, work)
        _tokenise(settings, ctx, work, len(job["parts"]))
        planned = _plan(settings, ctx, work, job)
        if settings.write_dropped:
            _tell_duplicates(settings, ctx, work, len(job["parts"]))
        _write(settings, ctx, work)
        account.write_account(settings, ctx, work, job, planned)
    shutil.rmtree(work, ignore_errors=True)
    return account.stage_result(ctx.folder)


def _job(settings: PrepareStage, ctx: StageContext, work: Path) -> dict[str, Any]:
    """Parts and tokenizer, decided once and kept for restarts and for tasks elsewhere."""
    path = work / "job.json"
    if path.exists():
        return read_json(path)
    for source in settings.sources:
        check_filters(filters_of(settings, source), f"sources.{source.name}.filters")
    model = resolve_model(settings.model)
    chosen = save_tokenizer(load_tokenizer(model), settings.begin_token, settings.end_token, work)
    ledger = Ledger(settings.on_error)
    parts = plan_parts(settings.sources, settings.part_bytes, ledger)
    job = {
        "settings": settings.model_dump(mode="json"),
        "parts": [part.as_json() for part in parts],
        "model": str(model),
        "tokens": chosen,
        "seed": ctx.seed,
        **ledger.as_json(),
    }
    write_json(path, job)
    return job


def _tokenise(settings: PrepareStage, ctx: StageContext, work: Path, count: int) -> None:
    def done(number: int) -> bool:
        return part_file(work / "tokens", number, ".json").exists()

    with ctx.progress("reading and tokenising", count, "parts") as bar:
        run_tasks(tokenise_part, work, count, done, settings.executor, bar)


def _plan(settings: PrepareStage, ctx: StageContext, work: Path, job: dict[str, Any]) -> Planned:
    from lengthen.data.duplicates import exact_duplicates, near_duplicates
    from lengthen.data.interleave import knots_of

    store = TokenStore(work / "tokens", len(job["parts"]))
    owner = np.array([record["source"] for record in store.records], dtype=np.int64)
    counts = [record["documents"] for record in store.records]
    source_of = np.repeat(owner, counts)
    _refuse_empty(settings, store, source_of)
    _refuse_masked_knots(settings, store, owner)
    dropped = {}
    wanted = [filters_of(settings, source) for source in settings.sources]
    if any(filters.exact_duplicates for filters in wanted):
        dropped["exact_duplicate"] = exact_duplicates(work / "signatures", counts)
    if any(filters.near_duplicates for filters in wanted):
        dropped["near_duplicate"] = near_duplicates(work / "signatures", counts)
    if dropped and settings.write_dropped:
        _list_duplicates(work, store, dropped)
    utk = any(source.interleave and source.interleave.method == "utk" for source in settings.sources)
    knots = knots_of(load_text_tokenizer(work)).overhead if utk else 0
    planned = plan_rows(settings, store, source_of, dropped, ctx.seed, knots)
    _refuse_dry(settings, planned)
    if not (work / "layout.json").exists():
        masks = utk or any((work / "tokens").glob("*.mask"))
        columns = ["input_ids", "doc_lens", "attend", "sources", *(["loss_mask"] if masks else [])]
        if any(source.conversations for source in settings.sources):
            columns.append("unit_lens")
        planned.plan.save(work / "plan")
        write_json(work / "layout.json", {
            "shards": rows.shard_count(planned.plan.count, settings.row_length, settings.shard_tokens),
            "sources": [source.name for source in settings.sources], "columns": columns,
            "row_length": settings.row_length, "seed": ctx.seed,
        })  # fmt: skip
    return planned


def _refuse_masked_knots(settings: PrepareStage, store: TokenStore, owner: np.ndarray) -> None:
    """Untie-the-Knots trains all but its markers, so a mask that came with the data would be lost."""
    for part, index in enumerate(owner.tolist()):
        source = settings.sources[index]
        if source.interleave is None or source.interleave.method != "utk":
            continue
        path = part_file(store.folder, part, ".mask")
        if path.exists() and path.stat().st_size and not (np.memmap(path, np.uint8, "r") & TRAINED).all():
            raise LengthenError(
                f"sources.{source.name}: interleave method utk with a mask: some of its tokens are not to be trained.",
                why="Untie-the-Knots trains every token except its markers (arXiv 2409.04774)",
                fix="use interleave method cip, which keeps masks, or data without a mask",
            )


def _list_duplicates(work: Path, store: TokenStore, dropped: dict[str, np.ndarray]) -> None:
    """For each part, the places of its documents that are duplicates, with the rule that names them first."""
    place = store.extra("place", -1).astype(np.int64)
    found: list[dict[str, Any]] = [{} for _ in range(store.parts)]
    for rule, out in dropped.items():
        for document in np.flatnonzero(out & (store.length > 0)).tolist():
            about = {"rule": rule, "tokens": int(store.length[document])}
            found[int(store.part[document])].setdefault(str(place[document]), about)
    for part, listed in enumerate(found):
        write_json(work / "plan" / f"{part:05d}.duplicates.json", listed)


def _tell_duplicates(settings: PrepareStage, ctx: StageContext, work: Path, count: int) -> None:
    if not (work / "plan" / "00000.duplicates.json").exists():
        return

    def done(number: int) -> bool:
        return (work / "duplicates" / f"{number:05d}.jsonl").exists()

    with ctx.progress("writing duplicates", count, "parts") as bar:
        run_tasks(tell_duplicates, work, count, done, settings.executor, bar)


def _refuse_empty(settings: PrepareStage, store: TokenStore, source_of: np.ndarray) -> None:
    for index, source in enumerate(settings.sources):
        if (source_of == index).any():
            continue
        drops = Drops()
        for record in store.records:
            if record["source"] == index:
                drops.merge(record["drops"])
        told = ", ".join(f"{rule} {row['items']:,}" for rule, row in drops.by_rule.items())
        raise LengthenError(
            f"sources.{source.name}: no document is left of it.",
            why=f"dropped: {told}" if told else "its files hold no documents",
            fix="check the path and the filters, or take the source out",
        )


def _refuse_dry(settings: PrepareStage, planned: Planned) -> None:
    dry = [row for row in planned.table if row["dry"]]
    if dry and settings.on_dry == "fail":
        raise LengthenError(
            f"{dry[0]['cell']}: {dry[0]['asked_tokens']:,} tokens were asked for and {dry[0]['tokens']:,} are there.",
            fix="lower the budget or its share, raise `repeat`, add data, or set on_dry: tell",
        )
    if not planned.plan.count:
        raise LengthenError(
            "No row can be made: nothing that was read fits the packing.",
            why=", ".join(f"{rule}: {row['items']:,} documents" for rule, row in planned.drops.by_rule.items()),
            fix="raise tokens, which no single document fits into"
            if set(planned.drops.by_rule) == {"beyond_budget"}
            else "lower row_length or piece_length, or use packing best_fit",
        )


def _write(settings: PrepareStage, ctx: StageContext, work: Path) -> None:
    count = read_json(work / "layout.json")["shards"]

    def done(number: int) -> bool:
        return (ctx.folder / ROWS / f"{number:05d}.parquet").exists()

    with ctx.progress("writing rows", count, "shards") as bar:
        run_tasks(rows.write_rows, work, count, done, settings.executor, bar)
