"""HELMET's data: local files of its schemas, or sets by name from the Hub."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.evaluate.helmet.tasks import TASKS

Data = Mapping[str, Any]
SEED = 42  # HELMET's

# (repository, config, split, split of the examples). Script data sets are read from the Hub's own parquet copies.
HUB: dict[str, tuple[str, str | None, str, str]] = {
    "icl_trec_coarse": ("CogComp/trec", None, "test", "train"),
    "icl_trec_fine": ("CogComp/trec", None, "test", "train"),
    "icl_banking77": ("PolyAI/banking77", None, "test", "train"),
    "icl_clinic150": ("clinc/clinc_oos", "plus", "validation", "train"),
    "narrativeqa": ("deepmind/narrativeqa", None, "test", "train"),
    "multi_lexsum": ("allenai/multi_lexsum", "v20230518", "validation", "train"),
}
LABEL_COLUMNS = {
    "icl_trec_coarse": ("coarse_label", "label"),
    "icl_trec_fine": ("fine_label", "label"),
    "icl_clinic150": ("intent", "label"),
}
SCHEMAS = {
    "rag": "{question, answers: [..], ctxs: [{title, text}]}, an id where there is one",
    "rerank": "{qid, query, ctxs: [{id, text, label}]}",
    "cite": "{question, docs: [{title, text}]} with qa_pairs: [{short_answers}] (asqa) or answers: [[..]] (qampari)",
    "icl": "{text, label}",
    "longqa": "{context, question, answer: [..]}, for infbench_choice also options: [..]",
    "summ": "{context, answer} with keypoints: [..] for the judge",
}


def rows_of(task: str, source: str | None, count: int | None, part: str = "test") -> list[Data]:
    """Rows of a task.

    Args:
        source: a JSON or JSON-lines file; `{k}` in its name stands for the number of items at the length. None: Hub.
        part: test, or demos (the file or split that worked examples come from).

    Raises:
        LengthenError: no such file, no set of that name on the Hub, or a row of another schema.
    """
    if source is None:
        return _from_hub(task, part)
    name = source.replace("{k}", str(count)) if count is not None else source
    path = Path(name).expanduser()
    if not path.is_file():
        raise LengthenError(
            f"helmet: there is no file {path} ({task}).",
            fix=f"correct the suite's option `data.{task}`; a row's schema is {SCHEMAS[TASKS[task].category]}",
        )
    rows = _read(str(path))
    _check(task, rows, path)
    return rows


@lru_cache(maxsize=4)
def _read(path: str) -> list[Data]:
    text = Path(path).read_text(encoding="utf-8")
    if path.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    whole = json.loads(text)
    return whole["data"] if isinstance(whole, dict) else whole


_NEEDED = {
    "rag": ("question", "answers", "ctxs"),
    "rerank": ("qid", "query", "ctxs"),
    "cite": ("question", "docs"),
    "icl": ("text", "label"),
    "longqa": ("context", "question", "answer"),
    "summ": ("context", "answer"),
}


def _check(task: str, rows: Sequence[Data], path: Path) -> None:
    category = TASKS[task].category
    for number, row in enumerate(rows, 1):
        missing = [key for key in _NEEDED[category] if key not in row]
        if missing:
            raise LengthenError(
                f"helmet: {path}, row {number} lacks {', '.join(missing)} ({task}).",
                fix=f"a row's schema is {SCHEMAS[category]}",
            )


@lru_cache(maxsize=4)
def _from_hub(task: str, part: str) -> list[Data]:
    if task not in HUB:
        raise LengthenError(
            f"helmet: {task} needs a file; HELMET publishes it only inside its archive (34 GB).",
            fix=f"name it in the suite's option `data.{task}`; a row's schema is {SCHEMAS[TASKS[task].category]}",
        )
    from datasets import load_dataset

    name, config, test, demos = HUB[task]
    split = test if part == "test" else demos
    try:
        rows = load_dataset(name, config, split=split, revision="refs/convert/parquet")
        found = [_converted(task, row) for row in rows]  # type: ignore[arg-type]
        return [row for row in found if row.get("answer") != ""]  # cases without a short summary
    except Exception as error:  # the Hub client raises many kinds: offline, not found, gated, time-outs
        raise LengthenError(
            f"helmet: {name} could not be loaded ({task}): {str(error).splitlines()[0]}",
            fix=f"connect once, or name a file in the suite's option `data.{task}`",
        ) from error


def _converted(task: str, row: Data) -> Data:
    category = TASKS[task].category
    if category == "icl":
        column = next(c for c in (*LABEL_COLUMNS.get(task, ()), "label") if c in row)
        return {"text": row["text"], "label": row[column]}
    if task == "narrativeqa":
        answers = [a["text"] for a in row["answers"]]
        return {"context": row["document"]["text"], "question": row["question"]["text"], "answer": answers}
    return {"context": "\n\n".join(row["sources"]), "question": "", "answer": row["summary/short"] or ""}


# ------------------------------------------------------------------------------------------------- HELMET's choices
def text_hash(text: str) -> int:
    """HELMET seeds choices by the question's hash."""
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16)


def demonstrations(rows: Sequence[Data], key: str, name: str, shots: int) -> list[Data]:
    """Worked examples for a question: rows in an order given by its hash, each key once, never the question itself."""
    import numpy as np

    others = [row for row in rows if str(row[key]) != name]
    order = np.random.default_rng(text_hash(name) % 2**31).permutation(len(others))
    found: dict[str, Data] = {}
    for i in order.tolist():
        found.setdefault(str(others[i][key]), others[i])
        if len(found) == shots:
            break
    return list(found.values())


def shuffled(count: int) -> list[int]:
    """HELMET's order of the rows of a set, from which the first 100 (500) are asked: `datasets`' shuffle, seed 42."""
    import numpy as np

    return np.random.default_rng(SEED).permutation(count).tolist()


def fixed_examples(rows: Sequence[Data], place: int, shots: int) -> list[Data]:
    """Worked examples of a set of one part only (InfiniteBench): all rows but the asked one, in the set's order."""
    others = [row for i, row in enumerate(rows) if i != place]
    return [others[i] for i in shuffled(len(others))[:shots]]


def chosen_questions(rows: Sequence[Data], key: str) -> list[str]:
    """Questions in HELMET's order of choice: a seeded sample of the sorted keys, so that a first part is a fair one."""
    names = sorted({str(row[key]) for row in rows})
    return random.Random(SEED).sample(names, len(names))


def popular(rows: Sequence[Data], threshold: float = 3.0) -> list[Data]:
    """PopQA's questions about little-known subjects (popularity below 10^3)."""
    return [row for row in rows if "s_pop" not in row or math.log10(max(1, row["s_pop"])) < threshold]


def balanced(rows: Sequence[Data], shots: int) -> list[Data]:
    """Examples in rounds of one per class (HELMET's `balance`); the same ones for every question."""
    rand = random.Random(SEED)
    by_label: dict[Any, list[Data]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    rounds = math.ceil(shots / len(by_label))
    found: list[list[Data]] = [[] for _ in range(rounds)]
    for members in by_label.values():
        picks = rand.sample(range(len(members)), rounds % len(members))
        while len(picks) < rounds:
            picks += rand.sample(range(len(members)), min(rounds - len(picks), len(members)))
        for number, pick in enumerate(picks):
            found[number].append(members[pick])
    for part in found:
        rand.shuffle(part)
    return [row for part in found for row in part][:shots]


def label_numbers(text: str, labels: Sequence[Any]) -> dict[Any, str]:
    """Numbers in place of labels, shuffled anew for each question by its hash."""
    numbers = list(range(len(labels)))
    random.Random((text_hash(text) + SEED) % 2**31).shuffle(numbers)
    return {label: str(number) for label, number in zip(labels, numbers)}
