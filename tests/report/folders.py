"""Run folders in the documented schema, for report tests: what stages leave behind, without running them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from lengthen.common.manifest import machine, versions

LENGTHS = (4096, 8192, 16384, 32768)
SKILL = {
    "as-is": (1.0, 0.75, 0.0, 0.0),
    "yarn-untrained": (1.0, 0.85, 0.75, 0.5),
    "quickstart": (1.0, 1.0, 0.97, 0.92),
}


def write_stage(run: Path, name: str, kind: str, **manifest: Any) -> Path:
    folder = run / "stages" / name
    folder.mkdir(parents=True, exist_ok=True)
    head = {"schema": 1, "recipe": run.name, "stage": name, "kind": kind, "status": "done", "settings": {},
            "machine": machine(), "versions": versions(), "commit": "abc123", "started": "2026-11-23T01:00:00",
            "attempts": 1}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({**head, **manifest}))
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answers(arm: str, task: str, lengths: tuple[int, ...], count: int, skill: tuple[float, ...]) -> list[dict]:
    rows = []
    for length, chance in zip(lengths, skill):
        for index in range(count):
            # The same luck for every arm, so that paired differences are those of the skill.
            luck = random.Random(f"{task}/{length}/{index}").random()
            right = luck < chance
            number = random.Random(f"{length}/{index}").randrange(10**6, 10**7)
            rows.append(
                {
                    "id": f"needle/{task}/{length}/{index}", "suite": "needle", "task": task, "length": length,
                    "context": f"needle/{task}/{length}/{index}", "depth": round(index / (count - 1), 4),
                    "output": str(number) if right else "The text speaks of <b>whales</b> and of the sea & its ships.",
                    "finish_reason": "stop" if right else "length", "prompt_tokens": length - 30, "new_tokens": 9,
                    "seconds": 1.5, "score": float(right), "refs": [str(number)],
                }
            )  # fmt: skip
    return rows


def write_evaluation(run: Path, arm: str, *, task: str = "needle", count: int = 20) -> Path:
    folder = write_stage(run, f"measure-{arm}", "evaluate", settings={"arm": arm}, seconds=1234.5, peak_memory_gib=3.1)
    rows = answers(arm, task, LENGTHS, count, SKILL[arm])
    write_lines(folder / "predictions.jsonl", rows)
    scores = []
    for length in LENGTHS:
        got = [row["score"] for row in rows if row["length"] == length]
        mean = sum(got) / len(got)
        half = 1.96 * math.sqrt(max(mean * (1 - mean), 0.01) / len(got))
        low, high = max(0, mean - half), min(1, mean + half)
        scores.append({"arm": arm, "suite": "needle", "task": task, "length": length, "score": mean, "low": low,
                       "high": high, "n": len(got)})  # fmt: skip
    scores.append({"arm": arm, "task": "loss, short prose", "value": 3.2, "unit": "nats", "n": 40})
    notes = ["32K is beyond the model's window of 8K tokens."] if arm == "as-is" else []
    found = {"model": "SmolLM2-135M-Instruct", "arm": arm, "rows": scores, "notes": notes}
    (folder / "scores.json").write_text(json.dumps(found))
    samples = [
        {"id": row["id"], "user": "Call me Ishmael. " * 40 + f"What is the number? ({row['id']})"} for row in rows
    ]
    for length in LENGTHS:
        part = [s for s in samples if f"/{length}/" in s["id"]]
        write_lines(folder / "samples" / f"needle-{task}-{length}-0123456789abcdef.jsonl", part)
    return folder


def write_training(run: Path, model: Path | None = None, steps: int = 100) -> Path:
    folder = write_stage(
        run, "train", "train", seconds=512.0, peak_memory_gib=4.6, settings={"model": "default"},
        counts={"steps": steps, "tokens": 204_800, "trained_tokens": 1_911},
        derived={"batch_rows": {"value": 1, "reason": "each row once"}},
    )  # fmt: skip
    draw = random.Random(0)
    write_lines(
        folder / "metrics.jsonl",
        [
            {"step": step, "loss": 0.3 + 2.5 * math.exp(-step / 15) + draw.random() * 0.3, "grad_norm": 1.0,
             "learning_rate": 5e-5, "tokens": 2048, "seconds": 5.1, "tokens_per_second": 401.5}
            for step in range(1, steps + 1)
        ],
    )  # fmt: skip
    if model is not None:
        (folder / "model").symlink_to(model)
    return folder


def write_data(run: Path) -> Path:
    folder = write_stage(
        run, "prepare", "prepare", seconds=8.0, peak_memory_gib=0.6,
        counts={"documents": 412, "rows": 100, "tokens": 204_800},
        drops={"too_short": {"items": 31, "tokens": 2_100}, "duplicate": {"items": 4, "tokens": 9_000}},
    )  # fmt: skip
    (folder / "rows").mkdir(exist_ok=True)
    (folder / "rows" / "dataset.json").write_text(json.dumps({"schema": 1, "row_length": 2048, "rows": 100}))
    sources = [{"name": "books", "documents": 12, "tokens": 100_000}, {"name": "code", "documents": 400, "tokens": 9}]
    (folder / "data_report.json").write_text(json.dumps({"sources": sources}))
    return folder


def write_growth(run: Path) -> Path:
    """Two roles refuse by one rule; the least reason and the least text belong to different answers."""
    from lengthen.generate.engine import Answer, Request
    from lengthen.selflengthen.store import Key, Outcome, Store

    folder = write_stage(run, "self-lengthen", "self-lengthen", seconds=4000.0)
    store = Store(folder / "state.sqlite")
    for iteration, words in enumerate((310.0, 520.0, 940.0)):
        store.measure(iteration, "median words", words, words * 0.85, words * 1.2, "words", 40)
        store.measure(iteration, "pass rate", 0.8, 0.66, 0.9, "share", 40)
    for role, loops in (
        ("response", ((61, "Zebras | walk."), (98, "Anchors\nrust."))),
        ("extension", ((77, "Boats."),)),
    ):
        for number in range(6):
            key = Key(1, role, f"i{number}~0" if role == "extension" else f"i{number}")
            copied, text = loops[number] if number < len(loops) else (0, "The harbour wakes before the town.")
            store.sending(key, Request(str(key), text="Write."))
            store.answered(key, Answer(str(key), text, "stop", 5, 9))
            store.verdict(key, "loop" if copied else "", f"{copied} words copied" if copied else "", 9, 9)
            if not copied:
                store.finish(Outcome(1, role, key.item, 0, text, 9, 9, number % 2 == 0, {}))
    store.verdict(Key(1, "select", "i3~0"), "same_instruction", "9 words", 9, 9)
    store.close()
    return folder


def write_run(run: Path, model: Path | None = None) -> Path:
    """A whole quickstart: data, training, three arms."""
    write_data(run)
    write_training(run, model)
    for arm in SKILL:
        write_evaluation(run, arm)
    names = ["prepare", "measure-as-is", "measure-yarn-untrained", "train", "measure-quickstart", "report"]
    stages = [{"kind": "x", "name": name} for name in names]
    (run / "resolved.yaml").write_text(json.dumps({"name": run.name, "seed": 7, "stages": stages}, indent=1))
    return run
