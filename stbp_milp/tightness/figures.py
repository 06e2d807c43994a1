"""The study in pictures: certified against budget, gap to the optimum, time against gap, widths of layers."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from stbp_milp.tightness.curves import Point, panel, points, unit
from stbp_milp.tightness.laws import bracket, by_question
from stbp_milp.tightness.measure import LAYERS, Measurement
from stbp_milp.tightness.methods import METHODS

matplotlib.use("Agg")

# One hue a family, told apart by colour-blind readers too; within it lighter for the weaker method.
COLOURS = {
    "box-interval": "#f4a582",
    "box-backward": "#d6604d",
    "stbp-interval": "#92c5de",
    "stbp-backward": "#4393c3",
    "stbp-alpha": "#053061",
    "per-member": "#1b9e77",
    "lp": "#984ea3",
    "lp-cvxpy": "#cab2d6",
    "complete": "#000000",
    "search": "#e7298a",
    "milp": "#8c6d1f",
}
MARKERS = {"box": "s", "stbp": "o", "member": "^", "lp": "D", "exact": "*"}
GAP_FLOOR = 1e-4  # what is closer to the optimum cannot be told from it
_GAP = f"exact optimum - lower bound (score; floor {GAP_FLOOR:g})"


def figures(rows: Sequence[Measurement]) -> Iterator[tuple[str, bytes]]:
    """File names and contents: every figure that the rows have data for, as PNG and PDF."""
    plain = [row for row in rows if row.method != LAYERS]
    found, known = points(plain), _known(plain)
    made = {
        "certified": _certified(found, unit(plain)),
        "gap": _gaps(known),
        "time": _times(known),
        "layers": _layers(rows),
    }
    for name, figure in made.items():
        if figure is None:
            continue
        for kind in ("png", "pdf"):
            buffer = io.BytesIO()
            # Without dates, so that the same rows give the same files.
            figure.savefig(buffer, format=kind, dpi=150, metadata={"CreationDate": None} if kind == "pdf" else {})
            yield f"{name}.{kind}", buffer.getvalue()


def _grid(panels: Sequence[tuple[str, str]], width: float = 4.2, height: float = 3.4) -> tuple[Figure, list[Any]]:
    """One plot a panel, at most four side by side, and room for a legend below."""
    columns = max(1, min(4, len(panels)))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(width * columns, height * lines + 0.9), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (model, text) in zip(axes, panels, strict=False):
        axis.set_title(f"{model}, {text}", fontsize=10)
        axis.grid(alpha=0.3)
    return figure, axes[: len(panels)]


def _legend(figure: Figure, axes: Sequence[Any]) -> None:
    handles = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    order = [name for name in METHODS if name in handles] + [name for name in handles if name not in METHODS]
    columns = max(1, int(1.2 * figure.get_figwidth() / 2))  # an entry takes nearly two inches
    figure.legend([handles[n] for n in order], order, loc="outside lower center", ncols=columns, fontsize=8)


def _curve(axis: Any, name: str, pairs: Sequence[tuple[float, float]]) -> None:
    """A method's points, if it has any, in its colour."""
    if pairs:
        marker = MARKERS[METHODS[name].family]
        axis.plot(*zip(*pairs, strict=True), color=COLOURS[name], marker=marker, markersize=5, label=name)


def _certified(found: Sequence[Point], words: str) -> Figure | None:
    panels = sorted({(p.model, p.set) for p in found})
    if not panels or not any(p.certified for p in found):
        return None
    figure, axes = _grid(panels)
    for axis, of in zip(axes, panels, strict=True):
        own = [p for p in found if (p.model, p.set) == of]
        limit = [(p.budget, 100 * p.unbroken) for p in own if p.unbroken is not None]
        if limit:
            axis.fill_between(*zip(*limit, strict=True), 101, color="#bbbbbb", alpha=0.35, linewidth=0)
            axis.plot(*zip(*limit, strict=True), color="#777777", linestyle="--", label="not broken (upper limit)")
        for name in METHODS:
            _curve(axis, name, [(p.budget, 100 * p.certified[name]) for p in own if name in p.certified])
        axis.set_xlabel(f"budget ({words})", fontsize=8)
        axis.set_ylim(-3, 101)
    axes[0].set_ylabel("certified instances (%)")
    _legend(figure, axes)
    return figure


def _known(rows: Sequence[Measurement]) -> list[tuple[Measurement, float]]:
    """Bounds whose exact optimum is known, with their gaps."""
    exact = {key: bracket(own).exact for key, own in by_question(rows).items()}
    return [
        (row, max(GAP_FLOOR, optimum - row.lower))
        for row in rows
        if row.lower is not None and (optimum := exact[row.instance_key]) is not None and row.method != "complete"
    ]


def _gaps(known: Sequence[tuple[Measurement, float]]) -> Figure | None:
    """A box a method: quartiles, whiskers to the 5th and 95th percentile. `complete` stops at a sign: it has no gap."""
    panels = sorted({panel(row) for row, _ in known})
    if not panels:
        return None
    figure, axes = _grid(panels)
    for axis, of in zip(axes, panels, strict=True):
        names = [name for name in METHODS if any(row.method == name and panel(row) == of for row, _ in known)]
        values = [[gap for row, gap in known if row.method == name and panel(row) == of] for name in names]
        boxes = axis.boxplot(values, tick_labels=names, whis=(5, 95), patch_artist=True, showfliers=False)
        for patch, name in zip(boxes["boxes"], names, strict=True):
            patch.set_facecolor(COLOURS[name])
        for line in boxes["medians"]:
            line.set_color("black")
        axis.tick_params(axis="x", rotation=60, labelsize=8)
        axis.set_yscale("log")
    axes[0].set_ylabel(_GAP, fontsize=8)
    return figure


def _times(known: Sequence[tuple[Measurement, float]]) -> Figure | None:
    """A small point a measurement, a large one the method's medians."""
    panels = sorted({panel(row) for row, _ in known})
    if not panels:
        return None
    figure, axes = _grid(panels)
    for axis, of in zip(axes, panels, strict=True):
        for name, method in METHODS.items():
            own = [(row.seconds, gap) for row, gap in known if row.method == name and panel(row) == of]
            if not own:
                continue
            seconds, gaps = zip(*own, strict=True)
            look = {"color": COLOURS[name], "marker": MARKERS[method.family], "linestyle": "none"}
            axis.plot(seconds, gaps, markersize=3, alpha=0.35, **look)
            middle = [statistics.median(seconds)], [statistics.median(gaps)]
            axis.plot(*middle, markersize=10, markeredgecolor="white", label=name, **look)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("seconds", fontsize=8)
    axes[0].set_ylabel(_GAP, fontsize=8)
    _legend(figure, axes)
    return figure


def _layers(rows: Sequence[Measurement]) -> Figure | None:
    panels = sorted({panel(row) for row in rows if row.widths})
    if not panels:
        return None
    figure, axes = _grid(panels)
    for axis, of in zip(axes, panels, strict=True):
        own = [entry for row in rows if panel(row) == of for entry in row.widths]
        depth = max(entry["layer"] for entry in own)
        for name in METHODS:
            ratios = {
                k: [e["ratio"] for e in own if e["method"] == name and e["layer"] == k] for k in range(1, depth + 1)
            }
            _curve(axis, name, [(k, statistics.mean(values)) for k, values in ratios.items() if values])
        axis.axhline(1.0, color="#777777", linestyle="--", linewidth=1)
        axis.set_xticks(range(1, depth + 1))
        axis.set_xlabel("ReLU layer", fontsize=8)
        axis.set_yscale("log")
    axes[0].set_ylabel("mean width / exact width")
    _legend(figure, axes)
    return figure
