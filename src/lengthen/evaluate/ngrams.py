"""N-gram files of evaluation samples: training data is cleaned of them by `decontaminate` of a prepare stage.

One file `<cell>.ngrams.npz` for each sample file, and one for the texts of each part of a measure: `grams`, the sorted
distinct 64-bit hashes of all runs of `n` = 13 words in questions, contexts and references
(`lengthen.data.decontaminate` writes and reads the format). A file holds no text, so it can be shared where the samples
cannot.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from lengthen.data.decontaminate import write_ngrams
from lengthen.evaluate.samples import Sample, place

WORDS = 13
FOLDER = "ngrams"
SUFFIX = ".ngrams.npz"


def place_ngrams(samples: Sequence[Sample], sample_file: Path, folder: Path) -> None:
    """Put the n-gram file of a cell's samples into `folder`; made once and kept beside the cached sample file."""
    made = sample_file.with_name(f"{sample_file.stem}.{len(samples)}{SUFFIX}")
    with FileLock(str(sample_file.with_name(f".{made.name}.lock"))):
        if not made.exists():
            write_ngrams((text_of(sample) for sample in samples), made, WORDS)
    place(made, folder)


def text_of(sample: Sample) -> str:
    """All words of a sample, its references included."""
    return "\n".join([sample.user, *sample.refs])


def write_texts(name: str, texts: Sequence[str], folder: Path) -> None:
    """The n-gram file of texts that are measured and not asked about; `name` says which."""
    digest = hashlib.sha256("\x1f".join(texts).encode(errors="replace")).hexdigest()[:16]
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', name.strip())}-{digest}{SUFFIX}"
    if not path.exists():
        write_ngrams(texts, path, WORDS)
