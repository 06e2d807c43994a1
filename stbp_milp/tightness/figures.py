"""The study in pictures: certified against budget, gap to the optimum, time against gap, widths of layers."""

from __future__ import annotations

import io
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import matplotlib
from matplotlib.figure import Figure

from stbp_milp.tightness.curves import Point, panel, points, unit
from stbp_milp.tightness.laws import bracket, by_question
from stbp_milp.tightness.measure import LAYERS, Measurement
from stbp_milp.tightness.methods import METHODS

matplotlib.use("Agg")

# One hue a family, told apart by colour-blind readers too, and lighter for the weaker method; a marker each.
LOOKS = {
    "box-interval": ("#f4a582", "s"),
    "box-backward": ("#d6604d", "D"),
    "stbp-interval": ("#92c5de", "o"),
    "stbp-backward": ("#4393c3", "p"),
    "stbp-alpha": ("#053061", "h"),
    "per-member": ("#1b9e77", "^"),
    "lp": ("#984ea3", "v"),
    "lp-cvxpy": ("#cab2d6", "d"),
    "complete": ("#000000", "*"),
    "search": ("#e7298a", "P"),
    "milp": ("#8c6d1f", "X"),
}
CURVE = 5  # budgets that a curve takes; fewer are drawn as points
GAP_FLOOR = 1e-4  # what is closer to the optimum cannot be told from it
_GAP = "exact optimum - lower bound\n(unit of the network's output)"

Panel = tuple[str, str]
Series = Mapping[str, Mapping[float, float]]  # of every method of the figure: the values over x
Gaps = Sequence[tuple[Measurement, float]]
T = TypeVar("T")


def figures(rows: Sequence[Measurement]) -> Iterator[tuple[str, bytes]]:
    """File names and contents: every figure that the rows have data for, as PNG."""
    plain = [row for row in rows if row.method != LAYERS]
    found, known = points(plain), _known(plain)
    made = {
        "certified": certified(found, unit(plain)),
        "gap": _gaps(known),
        "time": _times(known),
        "layers": _layers(rows),
    }
    for name, figure in made.items():
        if figure is not None:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=150)
            yield f"{name}.png", buffer.getvalue()


def _grouped(entries: Iterable[tuple[Panel, T]]) -> dict[Panel, list[T]]:
    """What belongs to each panel, in the panels' order."""
    groups: dict[Panel, list[T]] = {}
    for of, entry in entries:
        groups.setdefault(of, []).append(entry)
    return dict(sorted(groups.items()))


def _grid(counts: Mapping[Panel, Iterable[int]], x: str, y: str) -> tuple[Figure, list[Any]]:
    """One plot a panel, at most three side by side; titles say how many instances each of its marks stands for."""
    columns = min(3, len(counts))
    lines = math.ceil(len(counts) / columns)
    figure = Figure(figsize=(max(6.5, 4.4 * columns), 3.4 * lines + 1.2), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for axis in axes[len(counts) :]:
        axis.set_visible(False)
    for axis, ((model, text), numbers) in zip(axes, counts.items(), strict=False):
        least, most = min(numbers), max(numbers)
        axis.set_title(
            f"{model}, {text}\nn = {least if least == most else f'{least} to {most}'} instances", fontsize=11
        )
        axis.set_xlabel(x)
        axis.grid(alpha=0.3)
    for axis in axes[::columns]:
        axis.set_ylabel(y)
    return figure, axes[: len(counts)]


def _legend(figure: Figure, axes: Sequence[Any], title: str = "") -> None:
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [name for name in METHODS if name in handles] + [name for name in handles if name not in METHODS]
    columns = int(figure.get_figwidth() / 2.1)  # an entry takes two inches
    figure.legend([handles[n] for n in order], order, title=title, loc="outside lower center", ncols=columns)


def _side_by_side(axis: Any, series: Series, base: float) -> None:
    """At every x a stem and a marker a method, next to one another, so that equal values hide none of them."""
    places = sorted({x for values in series.values() for x in values})
    for k, (name, values) in enumerate(series.items()):
        colour, marker = LOOKS[name]
        at = [places.index(x) + 0.8 * ((k + 0.5) / len(series) - 0.5) for x in values]
        heights = list(values.values())
        axis.vlines(at, base, heights, color=colour, linewidth=2)
        axis.plot(at, heights, marker, color=colour, label=name)
    axis.set_xticks(range(len(places)), [f"{x:g}" for x in places])
    axis.set_xlim(-0.5, len(places) - 0.5)
    axis.grid(visible=False, axis="x")
    for between in range(1, len(places)):
        axis.axvline(between - 0.5, color="#cccccc", linewidth=1)


def _curves(axis: Any, series: Series) -> None:
    """A curve a method, the earlier ones thicker and below, so that equal values hide none of them."""
    for above, (name, values) in zip(reversed(range(len(series))), series.items(), strict=True):
        colour, marker = LOOKS[name]
        look = {"linewidth": 1.5 + 0.8 * above, "markersize": 5 + 1.2 * above}
        axis.plot(list(values), list(values.values()), color=colour, marker=marker, label=name, **look)


def certified(found: Sequence[Point], words: str) -> Figure | None:
    """Shares over budgets, in the unit `words`: curves, or points side by side where they are few."""
    found = [p for p in found if p.certified]
    if not found:
        return None
    names = [name for name in METHODS if any(name in p.certified for p in found)]
    panels = _grouped(((p.model, p.set), p) for p in found)
    counts = {of: [p.questions for p in own] for of, own in panels.items()}
    figure, axes = _grid(counts, f"budget ({words})", "certified instances (%)")
    for axis, own in zip(axes, panels.values(), strict=True):
        series = {name: {p.budget: 100 * p.certified[name] for p in own if name in p.certified} for name in names}
        limits = [(k, p.budget, 100 * p.unbroken) for k, p in enumerate(own) if p.unbroken is not None]
        look = {"color": "#777777", "linestyle": "--", "label": "not broken (upper limit)"}
        if len(own) < CURVE:
            _side_by_side(axis, series, 0)
            for k, _, share in limits:
                axis.plot([k - 0.45, k + 0.45], [share, share], zorder=0, **look)
        else:
            _curves(axis, series)
            if limits:
                axis.plot(*list(zip(*limits, strict=True))[1:], zorder=3, **look)
        axis.set_ylim(-6, 106)
    _legend(figure, axes)
    return figure


def _known(rows: Sequence[Measurement]) -> list[tuple[Measurement, float]]:
    """Bounds whose exact optimum is known, with their gaps; `complete`, which stops at a sign, has none."""
    exact = {key: bracket(own).exact for key, own in by_question(rows).items()}
    return [
        (row, max(GAP_FLOOR, optimum - row.lower))
        for row in rows
        if row.lower is not None and (optimum := exact[row.instance_key]) is not None and row.method != "complete"
    ]


def _by_method(known: Gaps) -> dict[Panel, dict[str, list[tuple[float, float]]]]:
    """Seconds and gaps of every panel and method."""
    names = [name for name in METHODS if any(row.method == name for row, _ in known)]
    return {
        of: {name: [(row.seconds, gap) for row, gap in own if row.method == name] for name in names}
        for of, own in _grouped((panel(row), (row, gap)) for row, gap in known).items()
    }


def _numbers(panels: Mapping[Panel, Mapping[str, Sequence[Any]]]) -> dict[Panel, list[int]]:
    """How many instances each of a panel's methods has."""
    return {of: [len(own) for own in methods.values() if own] for of, methods in panels.items()}


def _gaps(known: Gaps) -> Figure | None:
    """A marker a measurement, next to one another over the method's name, and a line at their median."""
    panels = _by_method(known)
    if not panels:
        return None
    figure, axes = _grid(_numbers(panels), "", _GAP)
    for axis, methods in zip(axes, panels.values(), strict=True):
        for place, (name, own) in enumerate(methods.items()):
            if own:
                colour, marker = LOOKS[name]
                gaps = sorted(gap for _, gap in own)
                at = [place + 0.8 * ((k + 0.5) / len(gaps) - 0.5) for k in range(len(gaps))]
                axis.plot(at, gaps, marker, color=colour, markersize=4.5)
                middle = statistics.median(gaps)
                axis.hlines(middle, place - 0.4, place + 0.4, color="black", label="median over the instances")
        axis.set_xticks(range(len(methods)), methods, rotation=60, ha="right", rotation_mode="anchor")
        _floor(axis)
    _legend(figure, axes)
    return figure


def _times(known: Gaps) -> Figure | None:
    """A small marker a measurement, a large one the method's medians; hollow, so that none hides another."""
    panels = _by_method(known)
    if not panels:
        return None
    figure, axes = _grid(_numbers(panels), "time (s)", _GAP)
    for axis, methods in zip(axes, panels.values(), strict=True):
        for name, own in methods.items():
            if own:
                colour, marker = LOOKS[name]
                seconds, gaps = zip(*own, strict=True)
                axis.plot(seconds, gaps, marker, color=colour, markersize=4, alpha=0.6)
                middle = [statistics.median(seconds)], [statistics.median(gaps)]
                axis.plot(*middle, marker, color=colour, markersize=11, fillstyle="none", mew=2, label=name)
        axis.set_xscale("log")
        _floor(axis)
    _legend(figure, axes, "large markers: medians over the instances, small markers: single instances")
    return figure


def _floor(axis: Any) -> None:
    axis.set_yscale("log")
    axis.axhline(GAP_FLOOR, color="#777777", linestyle=":", zorder=0, label=f"gap of at most {GAP_FLOOR:g}")


def _layers(rows: Sequence[Measurement]) -> Figure | None:
    panels = _grouped((panel(row), entry) for row in rows for entry in row.widths)
    if not panels:
        return None
    counts = {of: list(Counter((e["method"], e["layer"]) for e in own).values()) for of, own in panels.items()}
    figure, axes = _grid(counts, "ReLU layer", "mean width / exact width")
    names = [name for name in METHODS if any(e["method"] == name for own in panels.values() for e in own)]
    for axis, own in zip(axes, panels.values(), strict=True):
        ratios: dict[str, dict[float, list[float]]] = {name: {} for name in names}
        for entry in own:
            ratios[entry["method"]].setdefault(entry["layer"], []).append(entry["ratio"])
        means = {name: {layer: statistics.mean(v) for layer, v in of.items()} for name, of in ratios.items()}
        _side_by_side(axis, means, 1)
        sizes = {layer: len(values) for of in ratios.values() for layer, values in of.items()}
        axis.set_xticks(range(len(sizes)), [f"{layer} (n = {sizes[layer]})" for layer in sorted(sizes)])
        axis.axhline(1, color="#777777", linestyle="--", linewidth=1, label="exact")
        axis.set_yscale("log")
    _legend(figure, axes)
    return figure
