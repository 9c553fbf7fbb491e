"""Gates between stages: conditions on an evaluate stage's scores (Llama 3.1 goes to the next length when short scores
have recovered and the needle is found; arXiv 2407.21783, section 3.4.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lengthen.common.errors import LengthenError
from lengthen.common.files import read_json
from lengthen.recipe.stages.train import Gate


def check(gate: Gate) -> tuple[bool, str]:
    """(holds, a sentence with the figures)."""
    score = _mean(gate.scores, gate)
    needed, against = gate.at_least, ""
    if gate.compared_to is not None:
        other = _mean(gate.compared_to, gate)
        needed, against = gate.at_least * other, f" ({gate.at_least:g} x {other:.3f})"
    where = f"{gate.task}" + (f" at {gate.length:,}" if gate.length else "")
    sign = ">=" if score >= needed else "<"
    return score >= needed, f"{where}: {score:.3f} {sign} {needed:.3f}{against}"


def _mean(folder: str, gate: Gate) -> float:
    path = Path(folder)
    path = path / "scores.json" if path.is_dir() else path
    if not path.exists():
        raise LengthenError(f"The gate on '{gate.task}' has no scores: {path} is not there.", fix="evaluate first")
    rows: list[dict[str, Any]] = [row for row in read_json(path)["rows"] if "score" in row]
    named = [row for row in rows if gate.task in (row.get("task"), row.get("suite"))]
    found = [row for row in named if gate.length is None or int(row.get("length") or 0) == gate.length]
    if not found:
        known = sorted({f"{row.get('task')} at {row.get('length')}" for row in rows})
        raise LengthenError(
            f"{path} has no score for '{gate.task}'" + (f" at {gate.length}" if gate.length else "") + ".",
            fix=f"it has: {', '.join(known) or 'none'}",
        )
    return sum(float(row["score"]) for row in found) / len(found)
