"""Running the suites that measure without asking: what is done is kept, what fails leaves a note."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator

from lengthen.common.errors import LengthenError
from lengthen.common.files import append_json_line, read_json_lines
from lengthen.evaluate.ngrams import FOLDER, write_texts
from lengthen.evaluate.suites import Job, Measure, Row
from lengthen.generate.engine import OUT_OF_MEMORY, Engine
from lengthen.recipe.base import Settings

MEASURES = "measures.jsonl"


def prepare(job: Job, measure: Measure) -> None:
    """Refuse what can never be measured, and write the n-gram files of the texts.

    Raises:
        LengthenError: see `Measure.check`; `samples`, which a measure has not.
    """
    if job.choice.samples is not None:
        raise LengthenError(
            f"suites.{measure.name}.samples: this suite asks no samples.", fix=f"drop it: {measure.counted}"
        )
    measure.check(job)
    if not job.settings.ngrams:
        return
    for name, part in measure.parts(job):
        try:
            texts = list(measure.texts(part))
        except LengthenError:  # `measured` meets it again and notes it
            continue
        if texts:
            write_texts(f"{measure.name} {name}", texts, job.ctx.folder / FOLDER)


def measured(job: Job, measure: Measure, engine: Callable[[], Engine], notes: list[str]) -> Iterator[Row]:
    """Rows of a measuring suite; finished ones are not measured again. A part that fails becomes a note."""
    path = job.ctx.folder / MEASURES
    # A number counts only for the options that it was measured with.
    options = job.options.model_dump(mode="json") if isinstance(job.options, Settings) else job.options
    asked = hashlib.sha256(json.dumps([options, job.settings.samples_seed], sort_keys=True).encode()).hexdigest()[:16]
    rows = [r for r in read_json_lines(path, repair=True) if r["suite"] == measure.name and r.get("asked") == asked]
    known = {r["key"]: r["row"] for r in rows}
    for name, part in measure.parts(job):
        try:
            for key, row in measure.run(part, engine(), frozenset(known)):
                append_json_line(path, {"suite": measure.name, "key": key, "asked": asked, "row": row})
                known[key] = row
        except (LengthenError, MemoryError, RuntimeError) as error:
            notes.append(f"{measure.name} {name}".rstrip() + f" was not measured: {_reason(error)}")
    for row in known.values():
        yield {"suite": measure.name, **row}


def _reason(error: Exception) -> str:
    from lengthen.generate.batch import out_of_memory

    if isinstance(error, LengthenError):
        return " ".join(part for part in (error.what, error.fix and f"({error.fix})") if part)
    if not out_of_memory(error):
        raise error
    return OUT_OF_MEMORY
