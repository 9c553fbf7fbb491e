"""Our functions as datatrove steps, for its executors and for the user's own pipelines. Imports datatrove."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from datatrove.data import Document as TroveDocument
from datatrove.pipeline.base import PipelineStep

from lengthen.data.document import Document, Ledger
from lengthen.data.filters import text_rules
from lengthen.data.sources import plan_parts, read_part
from lengthen.data.work import record_error
from lengthen.recipe.sources import Filters, Source


class NumberedTask(PipelineStep):
    """Runs `task(work, rank)`: one part or one shard of a prepare stage."""

    name = "prepare"
    type = "lengthen"

    def __init__(self, task: Callable[[Path, int], None], work: str) -> None:
        super().__init__()
        self.task, self.work = task, work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterable[Any]:
        record_error(Path(self.work), self.task, rank)
        return iter(())


class ReadSource(PipelineStep):
    """Reads one of our sources (repositories, chats, archives ...) into a datatrove pipeline."""

    name = "source"
    type = "lengthen reader"

    def __init__(self, source: Source, on_error: Any = "fail", part_bytes: int = 32 * 2**20) -> None:
        super().__init__()
        self.source, self.on_error, self.part_bytes = source, on_error, part_bytes

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterable[TroveDocument]:
        yield from data or ()
        ledger = Ledger(self.on_error)
        for part in plan_parts([self.source], self.part_bytes, ledger)[rank::world_size]:
            for document in read_part(self.source, part, ledger):
                yield TroveDocument(document.text, document.id, metadata={**document.meta, "source": document.source})
        for rule, row in ledger.drops.by_rule.items():
            self.stat_update(f"dropped_{rule}", value=row["items"])


class FilterText(PipelineStep):
    """Our text filters (gzip ratio, repetition, language, decontamination) in a datatrove pipeline."""

    name = "filters"
    type = "lengthen filter"

    def __init__(self, filters: Filters) -> None:
        super().__init__()
        self.filters = filters

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterable[TroveDocument]:
        rules = text_rules(self.filters)
        for item in data or ():
            ours = Document(item.id, item.text, str(item.metadata.get("source", "")))
            broken = next((name for rule in rules if (name := rule(ours))), None)
            if broken:
                self.stat_update("dropped", f"dropped_{broken}")
            else:
                yield item
