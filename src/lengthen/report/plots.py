"""Pictures as SVG, each with the CSV of its numbers. matplotlib is loaded when the first one is drawn."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lengthen.recipe.base import size_text
from lengthen.report.collect import Arm, Growth, Training
from lengthen.report.compare import DepthMap, averages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers, a little lightened for dark pages. Lines also differ by
# dash and marker. The last arm is what a report is about and always has the first colour.
_FINAL, _FIRST = "#2a7fbf", "#8b9099"
_OTHERS = ("#e08a00", "#009e73", "#cc79a7", "#56a8e0", "#d55e00", "#a08d00")
_MARKERS = ("s", "^", "D", "v", "P", "X")
_DASHES = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1)), (0, (8, 3)), (0, (2, 2)))
_INK = "#010203"  # stands for the page's own text colour, put in after drawing
_NO_SAMPLE = "#b9bec6"


@dataclass(frozen=True)
class Picture:
    """name: file name without suffix. alt: for readers who cannot see it. svg: for a page. csv: its numbers."""

    name: str
    title: str
    alt: str
    svg: str
    csv: str


def heat_map(depths: DepthMap, title: str) -> Picture:
    """Depth by length, one cell a number in percent; grey = no sample."""
    name = slug(f"depth-{depths.suite}-{depths.task}-{depths.arm}")
    wide, high = len(depths.lengths), len(depths.depths)
    with _figure(name, 1.0 + max(0.52 * wide, 1.9), 0.62 + 0.25 * high) as (figure, axes):
        from matplotlib import colormaps

        colours = colormaps["viridis"]
        for row, scores in enumerate(depths.scores):
            for column, score in enumerate(scores):
                face = _NO_SAMPLE if score is None else colours(score)
                axes.add_patch(_cell(column, row, face))  # viridis has no grey: grey can only mean no sample
                if score is not None:
                    ink = "#ffffff" if score < 0.6 else "#111111"
                    axes.text(column, row, f"{100 * score:.0f}", ha="center", va="center", color=ink, fontsize=8.5)
        axes.set(xlim=(-0.5, wide - 0.5), ylim=(high - 0.5, -0.5))
        axes.set_xticks(range(wide), [size_text(length) for length in depths.lengths])
        axes.set_yticks(range(high), depths.depths)
        axes.set_ylabel("depth in the text")
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        svg = _svg(figure, name)
    rows = [
        {"length": length, "depth": depth, "score": _rounded(scores[column]), "samples": samples[column]}
        for depth, scores, samples in zip(depths.depths, depths.scores, depths.samples)
        for column, length in enumerate(depths.lengths)
    ]
    alt = f"{title}: share of right answers by depth and length; the numbers are in {name}.csv"
    return Picture(name, title, alt, svg, to_csv(rows))


def _cell(column: int, row: int, face: Any):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, facecolor=face, edgecolor="none")


def length_curves(arms: Sequence[Arm], suite: str) -> Picture:
    """A suite's average by length, one line an arm, with 95% intervals."""
    name = slug(f"curve-{suite}")
    rows = []
    with _figure(name, 5.2, 3.1) as (figure, axes):
        shown = [(arm, points) for arm in arms if (points := averages(arm, suite))]
        for number, (arm, points) in enumerate(shown):
            scores = [100 * point.score for point in points.values()]
            down = [100 * (point.score - _or(point.low, point.score)) for point in points.values()]
            up = [100 * (_or(point.high, point.score) - point.score) for point in points.values()]
            # Whiskers a little apart: shaded bands of few samples would cover one another.
            at = [length * 1.025 ** (number - (len(shown) - 1) / 2) for length in points]
            axes.errorbar(at, scores, yerr=[down, up], label=arm.title, capsize=2.5, elinewidth=1,
                          **_style(number, len(shown)))  # fmt: skip
            rows += [
                {"arm": arm.label, "length": length, "score": _rounded(point.score), "low": _rounded(point.low),
                 "high": _rounded(point.high), "n": point.n, "tasks": " ".join(point.tasks)}
                for length, point in points.items()
            ]  # fmt: skip
        _length_axis(axes, sorted({row["length"] for row in rows}))
        axes.set(ylim=(-3, 103), ylabel="score, %")
        axes.legend(loc="lower left", frameon=False, fontsize=9, labelcolor=_INK)
        svg = _svg(figure, name)
    return Picture(name, f"{suite} by length", f"Scores on {suite} by length with 95% intervals", svg, to_csv(rows))


def value_curves(arms: Sequence[Arm], task: str) -> Picture | None:
    """A quantity that is no score (loss by position, say), by length; None when it has fewer than two lengths."""
    name = slug(f"value-{task}")
    rows = [
        {"arm": arm.label, "length": int(v["length"]), "value": v["value"], "unit": v.get("unit", "")}
        for arm in arms
        for v in arm.values
        if v["task"] == task and v.get("length") is not None
    ]
    lengths = sorted({row["length"] for row in rows})
    if len(lengths) < 2:
        return None
    with _figure(name, 5.2, 2.9) as (figure, axes):
        labels = [arm for arm in arms if any(row["arm"] == arm.label for row in rows)]
        for number, arm in enumerate(labels):
            points = sorted((row["length"], row["value"]) for row in rows if row["arm"] == arm.label)
            axes.plot(*zip(*points), label=arm.title, **_style(number, len(labels)))
        _length_axis(axes, lengths)
        axes.set_ylabel(str(rows[0]["unit"]))
        axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=_INK)
        svg = _svg(figure, name)
    return Picture(name, task, f"{task} by length", svg, to_csv(rows))


def loss_curve(training: Training) -> Picture:
    """Loss of each optimizer step, thin, and its running mean, thick."""
    name = slug(f"loss-{training.stage.name}")
    steps = [int(row["step"]) for row in training.steps]
    losses = [float(row["loss"]) for row in training.steps]
    span = max(1, len(losses) // 20)
    means = [sum(part) / len(part) for i in range(len(losses)) if (part := losses[max(0, i - span + 1) : i + 1])]
    with _figure(name, 5.2, 2.7) as (figure, axes):
        axes.plot(steps, losses, color=_FIRST, linewidth=0.8, alpha=0.7, label="each step")
        if span > 1:
            axes.plot(steps, means, color=_FINAL, linewidth=2, label=f"mean of {span} steps")
            axes.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=_INK)
        axes.set(xlabel="step", ylabel="loss")
        svg = _svg(figure, name)
    keys = ("step", "loss", "grad_norm", "learning_rate", "tokens", "seconds", "tokens_per_second")
    rows = [{key: row[key] for key in keys if key in row} for row in training.steps]
    return Picture(name, f"Loss, {training.stage.name}", f"Training loss over {len(steps)} steps", svg, to_csv(rows))


def growth_curve(growth: Growth, unit: str) -> Picture:
    """Measures of one unit after each macro-iteration, with 95% intervals."""
    name = slug(f"growth-{growth.stage.name}-{unit}")
    measures = [m for m in growth.measures if m.unit == unit]
    names = list(dict.fromkeys(m.name for m in measures))
    with _figure(name, 5.2, 2.9) as (figure, axes):
        for number, one in enumerate(names):
            points = sorted((m for m in measures if m.name == one), key=lambda m: m.iteration)
            at = [m.iteration for m in points]
            style = _style(number, len(names))
            axes.fill_between(
                at, [m.low for m in points], [m.high for m in points], color=style["color"], alpha=0.16, linewidth=0
            )
            axes.plot(at, [m.value for m in points], label=one, **style)
        ticks = sorted({m.iteration for m in measures})
        axes.set_xticks(ticks, ["start" if tick == 0 else str(tick) for tick in ticks])
        axes.set(xlabel="macro-iteration", ylabel=unit)
        axes.set_ylim(bottom=0)
        axes.legend(loc="best", frameon=False, fontsize=9, labelcolor=_INK)
        svg = _svg(figure, name)
    rows = [
        {"iteration": m.iteration, "name": m.name, "value": m.value, "low": m.low, "high": m.high, "n": m.n}
        for m in measures
    ]
    return Picture(name, f"{', '.join(names)}", f"{', '.join(names)} by macro-iteration", svg, to_csv(rows))


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """CSV text with the keys of all rows as its head."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _style(number: int, count: int) -> dict[str, Any]:
    if number == count - 1:
        return {"color": _FINAL, "linewidth": 2.2, "marker": "o", "markersize": 5, "linestyle": "-"}
    colour = _FIRST if number == 0 else _OTHERS[(number - 1) % len(_OTHERS)]
    at = number % len(_MARKERS)
    return {"color": colour, "linewidth": 1.6, "marker": _MARKERS[at], "markersize": 4.5, "linestyle": _DASHES[at]}


def _length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(lengths), [size_text(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("tokens to read")


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 4)


@contextmanager
def _figure(name: str, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure without a display and without global state (`pyplot`); the same numbers give the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    look: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.5, "text.color": _INK, "axes.labelcolor": _INK,
        "xtick.color": _INK, "ytick.color": _INK, "axes.edgecolor": _NO_SAMPLE, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": False, "axes.labelsize": 9,
    }  # fmt: skip
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        if not name.startswith("depth-"):
            axes.grid(axis="y", color=_NO_SAMPLE, alpha=0.35, linewidth=0.7)
            axes.set_axisbelow(True)
        yield figure, axes


def _svg(figure: Figure, name: str) -> str:
    """SVG for use inside a page: its text takes the page's colour and font, its width the room that is there."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    width = float(re.search(r'width="([\d.]+)pt"', text)[1]) * 4 / 3  # type: ignore[index]
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    size = f'style="width:100%;max-width:{width:.0f}px;height:auto"'
    text = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg {names} viewBox="\1" {size} aria-hidden="true">', text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    # Names such as axes_1 would stand in every picture of the page; nothing refers to them. Nor may a style leak out.
    text = re.sub(r' id="\w+_\d+"', "", text)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.S)
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1; font-family: inherit", text)
    return re.sub(r"\s*\n\s*", " ", re.sub(r">\s+<", "><", text.replace(_INK, "currentColor"))).strip()
