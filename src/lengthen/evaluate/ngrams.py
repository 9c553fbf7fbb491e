"""N-gram files of evaluation samples: training data is cleaned of them by `decontaminate` of a prepare stage.

One file `<cell>.ngrams.npz` for each sample file: `grams`, the sorted distinct 64-bit hashes of all runs of `n` = 13
words in questions, contexts and references (`lengthen.data.decontaminate` writes and reads the format). A file holds
no text, so it can be shared where the samples cannot.
"""

from __future__ import annotations

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
