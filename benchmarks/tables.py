"""Tables of the documentation from the files under results/: `python -m benchmarks.tables [--check]`.

A page holds a pair of marks and nothing of ours outside them:

    <!-- results:benchmarks/train -->   from results/benchmarks/train.json
    <!-- /results:benchmarks/train -->
    <!-- results:quickstart -->         from results/quickstart/summary.json
    <!-- /results:quickstart -->

--check writes nothing and fails when a page does not say what the files say, or when a benchmark's file is on no page.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lengthen.common.files import read_json, write_atomic

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- results:([\w./-]+) -->\n)(.*?)(<!-- /results:\2 -->)", re.S)
OWN = re.compile(r"<!--[^>]*python -m benchmarks\.(\w+)[^>]*-->")  # a benchmark that writes its own table into a page
BASELINES = ("as-is", "yarn-untrained")
HEADLINE = "needle"  # the suite that a headline table shows, where it was measured


def render(page: str, root: Path = ROOT, *, link: bool = False) -> str:
    """The page with its blocks made anew.

    Args:
        link: whether folders under results/ are links: on the README they are, but the documentation's site holds
            pages alone.
    """
    code = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
    skipped = [match.span() for match in code.finditer(page)]

    def block(match: re.Match[str]) -> str:
        if any(low <= match.start() < high for low, high in skipped):
            return match[0]
        body = block_of(match[2], root, link)
        return f"{match[1]}{body}{match[4]}"

    return BLOCK.sub(block, page)


def block_of(topic: str, root: Path, link: bool) -> str:
    """Markdown of one block, ending in a line break; nothing while there is no summary."""
    if topic.startswith("benchmarks/"):
        file = root / "results" / f"{topic}.json"
        name = topic.split("/", 1)[1]
        return (
            benchmark(name, read_json(file)) if file.exists() else f"Not measured yet: `python -m benchmarks.{name}`.\n"
        )
    file = root / "results" / topic / "summary.json"
    return scores(topic, read_json(file), link) if file.exists() else ""


# ---------------------------------------------------------------------------------------------------------- benchmarks
def benchmark(name: str, found: Mapping[str, Any]) -> str:
    """One line for each figure, and what it was measured with."""
    head = ["figure", "work", "compared with", "ours", "theirs", "times better", "runs"]
    lines = [[f"`{r['id']}`", r["work"], r["peer"], _amount(r["ours"], r["unit"]), _amount(r["theirs"], r["unit"]),
              _ratio(r), str(r["runs"])] for r in found["rows"]]  # fmt: skip
    return f"{_table(head, lines)}\n{_origin(found)} `python -m benchmarks.{name}`; `results/benchmarks/{name}.json`.\n"


def _ratio(row: Mapping[str, Any]) -> str:
    if row["ratio"] is None:
        return "-"
    text = f"{row['ratio']:.2f}"
    spread = row["spread"]
    if isinstance(spread, Mapping):
        # Each side's own range, as a share of its median.
        return f"{text} (ranges: ours {spread['ours']:.0%}, theirs {spread['theirs']:.0%})"
    return f"{text} (range {spread:.2f})" if spread else text


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}" if len(unit) <= 12 else number + f" ({unit})"


def _origin(found: Mapping[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    made = {(r.get("date", found["date"]), r.get("commit", found["commit"])) for r in found["rows"]}
    when = ", ".join(f"{date} at {commit}" for date, commit in sorted(made, key=str))
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if name in versions)
    instructions = "".join(f" {name}," for name in machine.get("instructions", [])[-1:])
    computer = f"{machine['processor']},{instructions} {machine['cores']} cores, {machine['memory_gib']:.0f} GiB"
    return f"{computer}; {libraries}; measured {when}."


# -------------------------------------------------------------------------------------------------------------- scores
def scores(topic: str, found: Mapping[str, Any], link: bool) -> str:
    """Arms down, lengths across, each cell a score with its 95% interval and its number of samples."""
    rows = [r for r in found["rows"] if r.get("score") is not None]
    rows = [r for r in rows if HEADLINE in (r.get("suite"), r["task"])] or rows
    tasks = sorted({r["task"] for r in rows})
    suites = ", ".join(dict.fromkeys(str(r.get("suite") or r["task"]) for r in rows))
    lengths = sorted({int(r["length"]) for r in rows})
    arms = list(dict.fromkeys(r["arm"] for r in rows))
    arms.sort(key=lambda arm: BASELINES.index(arm) if arm in BASELINES else len(BASELINES))
    cells = {(r["arm"], r["task"], int(r["length"])): r for r in rows}
    several = len(tasks) > 1
    head = ["arm", *(["task"] if several else []), *(_size(n) for n in lengths)]
    lines = [
        [arm, *([task] if several else []), *(_cell(cells.get((arm, task, n))) for n in lengths)]
        for arm in arms
        for task in tasks
        if any((arm, task, n) in cells for n in lengths)
    ]
    what = f"{suites}: share of right answers (95% interval; n samples) by prompt length in tokens"
    place = f"[results/{topic}/](results/{topic}/)" if link else f"`results/{topic}/`"
    return (
        f"{what}.\n\n{_table(head, lines)}\n{_origin(found)}\n"
        f"Command: `{found['command']}`, seed {found['seed']}. All numbers, the recipe and the report: {place}.\n"
    )


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    interval = f"{row['low']:.0%}-{row['high']:.0%}; " if row.get("low") is not None else ""
    texts = row.get("contexts") or 0
    return f"**{row['score']:.0%}** ({interval}n {row['n']}{f' on {texts} texts' if 0 < texts < row['n'] else ''})"


def _size(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens:,}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in rows)


# --------------------------------------------------------------------------------------------------------------- pages
def pages(root: Path = ROOT) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def rendered(page: Path, root: Path) -> str:
    return render(page.read_text(), root, link=page.name == "README.md")


def differences(root: Path = ROOT) -> list[str]:
    """What does not agree, as sentences; empty when the documentation says what the results say."""
    found, shown = [], set()
    for page in pages(root):
        text = page.read_text()
        shown |= {match[2] for match in BLOCK.finditer(text)}
        shown |= {f"benchmarks/{match[1]}" for match in OWN.finditer(text)}
        if rendered(page, root) != text:
            found.append(f"{page.relative_to(root)} does not say what results/ says; run python -m benchmarks.tables")
    for file in sorted((root / "results" / "benchmarks").glob("*.json")):
        if f"benchmarks/{file.stem}" not in shown:
            found.append(f"results/benchmarks/{file.name} is on no page; add <!-- results:benchmarks/{file.stem} -->")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when pages and results differ")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository")
    given = parser.parse_args(arguments)
    if not given.check:
        for page in pages(given.root):
            text = page.read_text()
            made = rendered(page, given.root)
            if made != text:
                write_atomic(page, made)
                print(f"{page.relative_to(given.root)} written")
    found = differences(given.root)
    print("\n".join(found), file=sys.stderr) if found else None
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
