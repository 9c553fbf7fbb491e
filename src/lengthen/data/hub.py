"""Hugging Face datasets by name, or folders that `save_to_disk` wrote, as sources."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lengthen.common.errors import LengthenError
from lengthen.data.document import Document, Ledger
from lengthen.data.sources import Span, document_of_row
from lengthen.recipe.sources import HubSource

if TYPE_CHECKING:
    from datasets import Dataset


def hub_spans(source: HubSource, key: str, part_bytes: int) -> Iterator[tuple[Span, int]]:
    """Stretches of rows with their size in bytes. Downloads the dataset into its cache, once, before tasks begin."""
    dataset = _open(source.dataset, source.config, source.split, source.revision, key)
    wanted = source.messages_field or source.text_field
    if wanted.split(".")[0] not in dataset.column_names:
        raise LengthenError(
            f"{key}: the dataset {source.dataset} has no column '{wanted}'.",
            fix=f"set text_field or messages_field; it has {', '.join(dataset.column_names)}",
        )
    if not len(dataset):
        raise LengthenError(f"{key}: the dataset {source.dataset} ({source.split}) is empty.", fix="check the split")
    row_bytes = max(1, dataset.data.nbytes // len(dataset))
    step = max(1, part_bytes // row_bytes)
    for start in range(0, len(dataset), step):
        end = min(start + step, len(dataset))
        yield Span(source.dataset, source.dataset.rsplit("/", 1)[-1], start, end), (end - start) * row_bytes


def read_hub(source: HubSource, span: Span, ledger: Ledger) -> Iterator[Document]:
    """Documents or conversations of rows span.start .. span.end."""
    dataset = _open(source.dataset, source.config, source.split, source.revision, f"sources.{source.name}")
    for number in range(span.start, span.end):
        where = f"{source.dataset} ({source.split}), row {number}"
        found = document_of_row(source, dataset[number], f"{span.name}@{number}", lambda w=where: w, ledger)
        if found is not None:
            yield found


@lru_cache(maxsize=4)
def _open(name: str, config: str | None, split: str, revision: str | None, key: str) -> Dataset:
    import datasets

    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            return _from_disk(name, config, split, revision, key)
        return datasets.load_dataset(name, config, split=split, revision=revision)  # pyright: ignore[reportReturnType]
    except KeyError as error:
        raise LengthenError(f"{key}: the dataset {name} has no split '{split}'.", fix="check `split`") from error
    except (OSError, ValueError, RuntimeError) as error:
        # datasets' own errors (not found, gated, no network) derive from these; their first line says what it was.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise LengthenError(
            f"{key}: the dataset '{name}' (split {split}) cannot be opened.",
            why=first,
            fix="check the name, the configuration and the split; gated ones need `hf auth login`; without a network "
            "give a local folder",
        ) from error


def _from_disk(name: str, config: str | None, split: str, revision: str | None, key: str) -> Dataset:
    """A folder of `save_to_disk`. What has no meaning there is refused."""
    import datasets

    if config is not None or revision is not None:
        what = "config" if config is not None else "revision"
        raise LengthenError(
            f"{key}.{what}: {name} is a folder that save_to_disk wrote, which has none.", fix=f"take `{what}` out"
        )
    found = datasets.load_from_disk(name)
    if isinstance(found, datasets.DatasetDict):
        return found[split]
    # A single dataset may or may not know which split it was.
    if split not in ("train", str(found.split)):
        raise LengthenError(
            f"{key}.split: the folder {name} holds one dataset, not a split '{split}'.", fix="take `split` out"
        )
    return found
