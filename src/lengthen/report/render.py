"""From evidence to pages: one HTML file and its Markdown twin. A section stands there only if its data do."""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from lengthen.common.files import read_json
from lengthen.common.progress import clock
from lengthen.evaluate.ruler.effective import LengthAverage, effective_length
from lengthen.recipe.base import size_text
from lengthen.report import compare, lengths, plots, story
from lengthen.report.collect import Arm, Evidence
from lengthen.report.plots import Picture

_HERE = Path(__file__).parent
_CUT = 700
_NO_VALUE = {"length": None, "low": None, "high": None, "n": "", "unit": ""}
_NO_SCORE = {"low": None, "high": None, "n": ""}


@dataclass
class View:
    """What the templates read. Every list may be empty: then its section is left out."""

    evidence: Evidence
    headline: str
    figures: list[tuple[str, str]]
    pictures: list[Picture] = field(default_factory=list)
    depth: list[dict[str, Any]] = field(default_factory=list)
    suites: list[dict[str, Any]] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[compare.Pair] = field(default_factory=list)
    growths: list[dict[str, Any]] = field(default_factory=list)
    trainings: list[dict[str, Any]] = field(default_factory=list)
    drops: list[dict[str, Any]] = field(default_factory=list)
    costs: list[story.Cost] = field(default_factory=list)
    failures: list[tuple[Arm, list[story.Failure]]] = field(default_factory=list)
    outcomes: list[story.Outcomes] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    published: list[dict[str, Any]] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def add(self, picture: Picture) -> Picture:
        self.pictures.append(picture)
        return picture


def build_view(evidence: Evidence, *, failures: int, origin: dict[str, str], versions: dict[str, str]) -> View:
    """Compute everything that the pages show.

    Args:
        failures: wrong answers of the last arm to show.
        origin: command, commit, seed, machine, date ... as plain texts.
    """
    arms = evidence.arms
    view = View(evidence, story.headline(evidence), story.key_figures(evidence), origin=origin, versions=versions)
    _depth(view)
    for suite in compare.suites_of(arms):
        view.suites.append(_suite(view, suite))
    _values(view)
    view.pairs = compare.pairs(arms)
    _growths(view)
    for training in evidence.trainings:
        if training.steps:
            view.trainings.append({"training": training, "picture": view.add(plots.loss_curve(training))})
    view.drops = story.drops(evidence.data)
    view.costs = story.costs(evidence.stages)
    if evidence.final is not None and failures:
        found = story.failures(evidence.final, failures)
        view.failures = [(evidence.final, found)] if found else []
    view.outcomes = [story.outcomes(arm) for arm in arms if arm.answers]
    view.notes = story.notes(arms)
    shown = {suite["name"] for suite in view.suites}
    view.published = [table for table in read_json(_HERE / "published.json") if table["suite"] in shown]
    return view


def _depth(view: View) -> None:
    titles = {arm.label: arm.title for arm in view.evidence.arms}
    for (suite, task), maps in compare.depth_maps(view.evidence.arms).items():
        pictures = [(titles[one.arm], view.add(plots.heat_map(one, titles[one.arm]))) for one in maps]
        most = max(n for one in maps for row in one.samples for n in row)
        view.depth.append({"suite": suite, "task": task, "pictures": pictures, "most": most})
    # The needle is what readers look for first.
    view.depth.sort(key=lambda one: one["suite"] != "needle")


def _suite(view: View, suite: str) -> dict[str, Any]:
    arms, helmet = view.evidence.arms, suite == "helmet"
    points = {arm.label: compare.averages(arm, suite) for arm in arms}
    columns = sorted({length for found in points.values() for length in found})
    tasks = list(dict.fromkeys(task for found in points.values() for p in found.values() for task in p.tasks))
    cells = {
        (arm.label, row["task"], int(row["length"])): {**_NO_SCORE, **row}
        for arm in arms
        for row in arm.scores
        if compare.suite_of(row) == suite
    }
    # Task by task, so that the models stand under one another.
    each = [(arm, task, [cells.get((arm.label, task, length)) for length in columns]) for task in tasks for arm in arms]
    return {
        "name": suite,
        "lengths": columns,
        "tasks": tasks,
        "averages": [(arm, [points[arm.label].get(length) for length in columns]) for arm in arms],
        "partial": any(len(p.tasks) < len(tasks) for found in points.values() for p in found.values()),
        "effective": [(arm, found) for arm in arms if (found := lengths.effective(arm, suite)) is not None],
        "categories": [(arm, one) for arm in arms for one in lengths.helmet_categories(arm)] if helmet else [],
        "each": [one for one in each if any(one[2])],
        "picture": view.add(plots.length_curves(arms, suite)) if len(columns) > 1 else None,
    }


def _values(view: View) -> None:
    arms, plain = view.evidence.arms, []
    for task in dict.fromkeys(row["task"] for arm in arms for row in arm.values):
        rows = [(arm, {**_NO_VALUE, **row}) for arm in arms for row in arm.values if row["task"] == task]
        picture = plots.value_curves(arms, task)
        if picture is not None:
            view.add(picture)
            view.values.append({"task": task, "rows": rows, "picture": picture})
        else:
            plain += rows
    if plain:
        view.values.append({"task": "", "rows": plain, "picture": None})


def _growths(view: View) -> None:
    for growth in view.evidence.growths:
        units = dict.fromkeys(m.unit for m in growth.measures)
        pictures = [view.add(plots.growth_curve(growth, unit)) for unit in units]
        view.growths.append({"growth": growth, "pictures": pictures})


def to_html(view: View) -> str:
    """The page: no script, no outside file; pictures inline."""
    return _environment(html=True).get_template("report.html.j2").render(view=view, css=_css()).strip() + "\n"


def to_markdown(view: View, *, published: bool = True) -> str:
    """The tables as text. published: with the figures of other models, which a model's own card does without."""
    template = _environment(html=False).get_template("report.md.j2")
    return template.render(view=view, published=published).strip() + "\n"


def render_text(template: str, **values: Any) -> str:
    """A Markdown template of this package with the report's filters."""
    return _environment(html=False).get_template(template).render(**values)


def _css() -> str:
    return (_HERE / "templates" / "style.css").read_text()


@functools.cache
def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        percent=story.percent, counted=story.counted, size=size_text, clock=clock, number=number, short=short,
        points=points, data_uri=_data_uri, published_reach=_published_reach, published_weighted=_published_weighted,
        cell=_table_cell, tokens=_length,
    )  # fmt: skip
    return environment


def number(value: Any) -> str:
    """1234567 -> `1,234,567`; 0.00123456 -> `0.001235`; texts as they are."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and float(value).is_integer()):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign; `0` without one."""
    shown = round(100 * value)
    return f"{shown:+d}" if shown else "0"


def short(text: str, most: int = _CUT) -> str:
    """The beginning of a long text, with what is left out counted."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def _table_cell(text: Any) -> str:
    """Text that may stand in a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def _data_uri(text: str) -> str:
    return "data:text/csv;base64," + base64.b64encode(text.encode()).decode()


def _published_reach(table: dict[str, Any], row: dict[str, Any]) -> str:
    found = effective_length([LengthAverage(n, s / 100, ()) for n, s in zip(table["lengths"], row["scores"])])
    if not found.length:
        return f"under {size_text(table['lengths'][0])}"
    return f"at least {size_text(found.length)}" if found.beyond else size_text(found.length)


def _published_weighted(table: dict[str, Any], row: dict[str, Any], rising: bool) -> str:
    return f"{lengths.weighted_of(table['lengths'], row['scores'], rising=rising):.1f}"


def _length(value: int) -> str:
    """`16K`; a dash for tasks that have no length of their own."""
    return size_text(value) if value else "–"
