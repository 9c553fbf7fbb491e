"""What a state file says: a page of text for `lengthen inspect`, and rejections by rule with examples for a report."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from lengthen.common.progress import clock
from lengthen.selflengthen.checks import RULES
from lengthen.selflengthen.store import open_read_only


def describe(path: Path) -> str:
    """A page about a state file: phases, requests, rejections, measures, rows. Safe while a run writes it."""
    with open_read_only(path) as db:
        lines = [f"Self-lengthen state {path}"]
        lines += _phases(db)
        lines += _requests(db)
        lines += _texts(db)
        lines += _rejections(path)
        lines += _measures(db)
        rows = db.execute("SELECT purpose, COUNT(*) FROM rows GROUP BY purpose ORDER BY 1").fetchall()
        if rows:
            lines += ["", "Training rows", *(f"  {purpose:<24} {count:>8,}" for purpose, count in rows)]
    return "\n".join(lines)


def rejections(path: Path, examples: int = 3) -> dict[str, Any]:
    """Rejections by macro-iteration, role and rule, each with a few examples (JSON for the report)."""
    with open_read_only(path) as db:
        judged = {
            (iteration, role): count
            for iteration, role, count in db.execute(
                "SELECT iteration, role, COUNT(*) FROM verdicts GROUP BY iteration, role"
            )
        }
        rules = []
        for iteration, role, rule, count in db.execute(
            "SELECT iteration, role, rule, COUNT(*) FROM verdicts WHERE rule!='' GROUP BY 1, 2, 3 ORDER BY 1, 2, 4 DESC"
        ).fetchall():
            shown = db.execute(
                "SELECT v.item, v.attempt, v.step, v.detail, v.words, r.text FROM verdicts v LEFT JOIN requests r "
                "USING (iteration, role, item, sample, attempt, step) WHERE v.iteration=? AND v.role=? AND v.rule=? "
                "ORDER BY v.item, v.attempt LIMIT ?",
                (iteration, role, rule, examples),
            ).fetchall()
            rules.append(
                {
                    "iteration": iteration, "role": role, "rule": rule, "about": RULES.get(rule, ""), "count": count,
                    "share": round(count / judged[iteration, role], 4),
                    "examples": [
                        {"item": item, "attempt": attempt, "step": step, "detail": detail, "words": words,
                         "beginning": (text or "")[:300], "end": (text or "")[300:][-200:]}
                        for item, attempt, step, detail, words, text in shown
                    ],
                }
            )  # fmt: skip
        for iteration, role, count, total in db.execute(
            "SELECT iteration, role, SUM(kept=0), COUNT(*) FROM outcomes WHERE kept IS NOT NULL GROUP BY 1, 2"
        ).fetchall():
            # Kept out as `same_instruction`, which is counted under its own name.
            count -= db.execute(
                "SELECT COUNT(*) FROM verdicts v JOIN outcomes o USING (iteration, item, sample) WHERE v.iteration=? "
                "AND v.role='select' AND v.rule='same_instruction' AND o.role=?",
                (iteration, role),
            ).fetchone()[0]
            if count:
                rules.append(
                    {"iteration": iteration, "role": role, "rule": "not_selected", "about": RULES["not_selected"],
                     "count": count, "share": round(count / total, 4), "examples": []}
                )  # fmt: skip
    return {"schema": 1, "rules": rules}


def _phases(db: sqlite3.Connection) -> list[str]:
    lines = ["", "Phases"]
    for iteration, phase, began, ended, info in db.execute("SELECT * FROM phases ORDER BY began_at"):
        state = f"done, {clock(ended - began)}" if ended else "not finished"
        facts = ", ".join(f"{key} {_short(value)}" for key, value in json.loads(info).items())
        lines.append(f"  {iteration:>2} {phase:<12} {state}" + (f"  ({facts})" if facts else ""))
    return lines


def _requests(db: sqlite3.Connection) -> list[str]:
    lines = ["", f"  {'requests':<22}{'asked':>9}{'answered':>10}{'open':>7}{'resent':>8}{'errors':>8}{'tokens':>14}"]
    for row in db.execute(
        "SELECT iteration, role, COUNT(*), SUM(finish_reason IS NOT NULL), SUM(finish_reason IS NULL), "
        "SUM(sends-1), SUM(errors), SUM(COALESCE(new_tokens,0)) FROM requests GROUP BY 1, 2 ORDER BY 1, 2"
    ):
        lines.append(
            f"  {row[0]:>2} {row[1]:<19}{row[2]:>9,}{row[3]:>10,}{row[4]:>7,}{row[5]:>8,}{row[6]:>8,}{row[7]:>14,}"
        )
    return lines


def _texts(db: sqlite3.Connection) -> list[str]:
    lines = ["", f"  {'texts':<22}{'tasks':>9}{'accepted':>10}{'selected':>10}{'mean words':>12}"]
    for iteration, role, tasks, texts, kept, words in db.execute(
        "SELECT iteration, role, COUNT(*), SUM(text IS NOT NULL), SUM(COALESCE(kept,0)), "
        "AVG(CASE WHEN text IS NOT NULL THEN words END) FROM outcomes GROUP BY 1, 2 ORDER BY 1, 2"
    ):
        lines.append(f"  {iteration:>2} {role:<19}{tasks:>9,}{texts:>10,}{kept:>10,}{words or 0:>12,.0f}")
    return lines


def _rejections(path: Path) -> list[str]:
    lines = ["", "Rejected, each rule with an example of what was found"]
    for row in sorted(rejections(path, examples=1)["rules"], key=lambda one: one["iteration"]):
        lines.append(f"  {row['iteration']:>2} {row['role']:<14}{row['rule']:<20}{row['count']:>8,}  {row['about']}")
        lines += [f"{'':17}{' '.join(one['detail'].split())[:100]}" for one in row["examples"] if one["detail"].strip()]
    return lines if len(lines) > 2 else [*lines, "  nothing"]


def _measures(db: sqlite3.Connection) -> list[str]:
    rows = db.execute("SELECT iteration, name, value, low, high, unit, n FROM measures ORDER BY 2, 1").fetchall()
    if not rows:
        return []
    lines = ["", "Measured after each macro-iteration (95% interval, where there is one)"]
    for iteration, name, value, low, high, unit, n in rows:
        between = f"{low:,.2f} to {high:,.2f}" if low < high else ""
        lines.append(f"  after {iteration:<3}{name:<40}{value:>10,.2f}  {between:<18}  {unit}, n={n}")
    return lines


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
