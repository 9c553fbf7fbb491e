"""Tasks: tokenise one part, and read it again to tell its duplicates. Plain functions of a work folder and a number."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lengthen.common.errors import LengthenError
from lengthen.common.files import explain_disk, read_json
from lengthen.data.chat import ChatEncoder, ChatError
from lengthen.data.document import Document, Ledger
from lengthen.data.filters import filter_documents
from lengthen.data.sources import Part, read_part
from lengthen.data.store import TRAINED, UNIT, PartWriter, part_file
from lengthen.data.tokenize import WINDOW, TextTokenizer, load_text_tokenizer
from lengthen.recipe.sources import Filters, Source
from lengthen.recipe.stages.prepare import PrepareStage

_BATCH_CHARACTERS = 2**20


@lru_cache(maxsize=4)
def _job(work: str, stamp: float) -> tuple[PrepareStage, list[Part], Path]:
    data = read_json(Path(work) / "job.json")
    return (
        PrepareStage.model_validate(data["settings"]),
        [Part.from_json(p) for p in data["parts"]],
        Path(data["model"]),
    )


def load_job(work: Path) -> tuple[PrepareStage, list[Part], Path]:
    """Settings, parts and model folder of a work folder, read once per process."""
    return _job(str(work), (work / "job.json").stat().st_mtime)


@lru_cache(maxsize=2)
def _tokenizer(folder: str) -> TextTokenizer:
    return load_text_tokenizer(Path(folder))


@lru_cache(maxsize=2)
def _chat(model: str) -> ChatEncoder:
    from lengthen.models import load_tokenizer

    return ChatEncoder(load_tokenizer(model))


def filters_of(settings: PrepareStage, source: Source) -> Filters:
    return source.filters or settings.filters


def tokenise_part(work: Path, number: int) -> None:
    """Read, filter and tokenise part `number` into `work/tokens`. Done parts are left alone."""
    settings, parts, model = load_job(work)
    if part_file(work / "tokens", number, ".json").exists():
        return
    part = parts[number]
    source = settings.sources[part.source]
    with _dropped_file(work, number, settings.write_dropped) as dropped:
        ledger = Ledger(settings.on_error, dropped=dropped)
        documents = numbered(read_part(source, part, ledger))
        documents = filter_documents(documents, filters_of(settings, source), ledger)
        task = _Tokenise(settings, source, work, number, model, ledger)
        read = task.run(documents)
    if settings.write_dropped:
        with explain_disk(work):
            _dropped_path(work, number, ".part").replace(_dropped_path(work, number))
    # The writer's last file makes the part whole, so everything else comes before it.
    task.close()
    task.writer.close({"source": part.source, "read": read, "tokens": task.tokens, **ledger.as_json()})


def numbered(documents: Iterator[Document]) -> Iterator[Document]:
    """The same documents, each with its place among all of its part, by which it is found again."""
    for place, document in enumerate(documents):
        document.meta["place"] = place
        yield document


def tell_duplicates(work: Path, number: int) -> None:
    """Write part `number`'s duplicates to `work/duplicates`: its texts are read again, since only lengths were kept."""
    settings, parts, _ = load_job(work)
    target = work / "duplicates" / f"{number:05d}.jsonl"
    chosen = read_json(work / "plan" / f"{number:05d}.duplicates.json")
    source = settings.sources[parts[number].source]
    part = target.with_name(f".{target.name}.{os.getpid()}")
    with explain_disk(work):
        target.parent.mkdir(exist_ok=True)
        with open(part, "w", encoding="utf-8") as file:
            told = Ledger(dropped=file)
            # What is broken was counted or refused when the part was read first.
            for document in numbered(read_part(source, parts[number], Ledger("skip"))) if chosen else ():
                found = chosen.get(str(document.meta["place"]))
                if found is not None:
                    told.drop(found["rule"], document, found["tokens"])
        part.replace(target)


def _dropped_path(work: Path, number: int, suffix: str = "") -> Path:
    return work / "dropped" / f"{number:05d}.jsonl{suffix}"


@contextlib.contextmanager
def _dropped_file(work: Path, number: int, wanted: bool) -> Iterator[Any]:
    if not wanted:
        yield None
        return
    path = _dropped_path(work, number, ".part")
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        yield file


class _Tokenise:
    """One part on its way from documents to tokens."""

    def __init__(
        self, settings: PrepareStage, source: Source, work: Path, number: int, model: Path, ledger: Ledger
    ) -> None:
        self.settings, self.source, self.ledger, self.model = settings, source, ledger, model
        self.filters = filters_of(settings, source)
        self.tokenizer = _tokenizer(str(work))
        self.writer = PartWriter(work / "tokens", number, with_mask=source.conversations or source.kind == "mds")
        self.tokens = 0
        self._fingerprints = None
        if self.filters.exact_duplicates or self.filters.near_duplicates:
            from lengthen.data.duplicates import Fingerprints

            self._fingerprints = Fingerprints(work / "signatures", number, self.filters)
        head, tail = self.tokenizer.begin, self.tokenizer.end
        self._head = [np.array([head], np.int32)] if head is not None else []
        self._tail = [np.array([tail], np.int32)] if tail is not None else []

    def run(self, documents: Iterator[Document]) -> int:
        batch: list[Document] = []
        size = read = 0
        for document in documents:
            read += 1
            if document.messages is not None:
                self._conversation(document)
            elif document.ids is not None:
                self._write(document, [document.ids], document.mask)
            elif len(document.text) > WINDOW:
                self._flush(batch)
                batch, size = [], 0
                self._write(document, self._framed(self.tokenizer.encode_long(document.text)))
            else:
                batch.append(document)
                size += len(document.text)
                if size >= _BATCH_CHARACTERS:
                    self._flush(batch)
                    batch, size = [], 0
        self._flush(batch)
        return read

    def close(self) -> None:
        if self._fingerprints:
            self._fingerprints.close()

    def _flush(self, batch: list[Document]) -> None:
        for document, ids in zip(batch, self.tokenizer.encode_batch([document.text for document in batch])):
            self._write(document, self._framed(iter([ids])))

    def _framed(self, pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        yield from self._head
        yield from pieces
        yield from self._tail

    def _conversation(self, document: Document) -> None:
        try:
            ids, mask, starts = _chat(str(self.model)).encode(document.messages or ())
        except ChatError as error:
            if error.rule == "no_chat_template":
                raise LengthenError(
                    f"sources.{self.source.name}: the tokenizer of {self.settings.model} has no chat template.",
                    fix="use an instruction-tuned model, or put a chat_template into its tokenizer_config.json",
                ) from error
            if error.rule == "special_token_in_text":
                # No fault of the file's: code and papers about models hold such strings.
                self.ledger.drop(f"chat_{error.rule}", document)
            else:
                where = document.where() if document.where else self.source.name
                self.ledger.problem(f"chat_{error.rule}", f"{where}, conversation {document.id}", error.why)
            return
        limit = self.settings.row_length
        if len(ids) > limit:
            if getattr(self.source, "long_conversations", "drop") == "drop":
                self.ledger.drop("conversation_longer_than_row", document, len(ids))
                return
            self.ledger.drops.add("conversation_cut", 1, len(ids) - limit)
            ids, mask, starts = ids[:limit], mask[:limit], starts[:limit]
        if not mask.any():
            self.ledger.drop("no_trained_token", document, len(ids))
            return
        self._write(document, [ids], mask * TRAINED | starts * UNIT)

    def _write(self, document: Document, pieces: Any, mask: np.ndarray | None = None) -> None:
        length = self.writer.add(pieces, mask)
        most = self.filters.max_tokens
        rule = "too_short" if length < self.filters.min_tokens else "too_long" if most and length > most else ""
        if rule:
            self.writer.forget()
            self.ledger.drop(rule, document, length)
            return
        self.tokens += length
        self.writer.keep(document.domain, place=document.meta["place"])
        if self._fingerprints:
            self._fingerprints.add(document)


def record_error(work: Path, task: Callable[[Path, int], None], number: int) -> None:
    """Run a task and leave its error beside the work, so that it can be told where a queue runs it far away."""
    try:
        task(work, number)
    except LengthenError as error:
        folder = work / "errors"
        folder.mkdir(exist_ok=True)
        parts = {"what": error.what, "why": error.why, "fix": error.fix}
        (folder / f"{task.__name__}-{number:05d}.json").write_text(json.dumps(parts))
        raise
