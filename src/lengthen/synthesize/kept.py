"""Answers of the default model to questions made by program, kept in the cache, so that recipes which ask for the same
chats share them: arms of an experiment are then trained on the very same words, and only the first one waits for them.

Other writers are asked anew: what stands behind an address or in a folder may have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

from lengthen.common.files import cache_folder, explain_disk
from lengthen.models import DEFAULT
from lengthen.recipe.stages.instructions import InstructionsStage
from lengthen.synthesize.instruction_wording import topics

# These say how much is asked for, or how fast; an answer is the same for any of them.
_NO_MATTER = {"name", "count", "tries", "batch", "endpoint", "min_answer_words"}


def kept_file(settings: InstructionsStage, seed: int) -> Path | None:
    """Where answers to these settings and this seed are kept; None where they are not."""
    writer = settings.writer or settings.model
    if settings.about != "topics" or writer != DEFAULT:
        return None
    plain = settings.model_dump(mode="json", exclude=_NO_MATTER | {"writer", "model"})
    # Answers are kept by number: other questions, or another order of them, must not meet these answers.
    asked = {language: topics(language, random.Random(0)) for language in settings.languages}
    digest = hashlib.sha256(json.dumps([plain, seed, asked], sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder("chats") / f"{digest}.jsonl"


def fetch(kept: Path | None, record: Path) -> None:
    """Begin a stage's record with the answers that are kept, where it has none of its own."""
    if kept is not None and kept.exists() and not record.exists():
        _copy(kept, record)


def keep(record: Path, kept: Path | None) -> None:
    """Keep a stage's record, unless a longer one is kept already."""
    if kept is None or not record.exists():
        return
    if not kept.exists() or kept.stat().st_size < record.stat().st_size:
        _copy(record, kept)


def _copy(source: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    with explain_disk(target):
        shutil.copyfile(source, part)
        os.replace(part, target)
