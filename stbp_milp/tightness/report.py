"""The study as a Markdown page: what each method certifies, at what cost, and how wide its layers' bounds are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from stbp_milp.tightness.curves import Point, panel, points, unit
from stbp_milp.tightness.laws import bracket, by_question
from stbp_milp.tightness.measure import LAYERS, Measurement
from stbp_milp.tightness.methods import METHODS

RATIO_OF = "stbp-backward"  # the one-pass bound that is compared with the best whole-clip-box method
WORTH = (0.2, 0.6)  # between these shares of the box method a ratio says something


def page(rows: Sequence[Measurement], command: str) -> str:
    """Returns all tables; `command` is the command line that makes them again."""
    plain = [row for row in rows if row.method != LAYERS]
    parts = [
        f"# Tightness study\n\nCommand: `{command}`\n",
        f"## Certified\n\nShares of the instances, in percent. Budget: {unit(plain)}. *Unbroken*: no attack or search "
        "found a counterexample, so no method can certify more. *Ratio*: "
        f"{RATIO_OF} to the best whole-clip-box method (bold where that is between {WORTH[0]:.0%} and "
        f"{WORTH[1]:.0%}).\n",
        certified(points(plain)),
        "## Methods\n\nGap: exact optimum minus lower bound, in the unit of the network's output, over instances whose "
        "optimum is known to 1e-4; `complete` stops at the sign. Memory: above what the process held before.\n",
        methods(plain),
    ]
    if len(plain) < len(rows):
        parts += [
            "## Layers\n\nMean width of pre-activation bounds relative to the exact width (1 is exact), the mean over "
            "instances, on sampled neurons.\n",
            layers(rows),
        ]
    return "\n".join(parts)


def certified(all_points: Sequence[Point]) -> str:
    """Per panel and budget."""
    names = [name for name in METHODS if any(name in p.certified for p in all_points)]
    header = ["network", "set", "budget", "instances", *names, "unbroken", "decided", "exact known", "ratio"]
    lines = []
    for p in all_points:
        shares = [_percent(p.certified.get(name)) for name in names]
        known = (p.unbroken, p.decided, p.exact)
        lines.append([p.model, p.set, f"{p.budget:g}", str(p.questions), *shares, *map(_percent, known), ratio(p)])
    return _table(header, lines)


def ratio(point: Point) -> str:
    """Says how many times as many instances STBP certifies."""
    own, box = point.certified.get(RATIO_OF), point.best_box
    if own is None or box is None:
        return "-"
    if not box:
        return "∞" if own else "-"
    text = f"{own / box:.2f}"
    return f"**{text}**" if WORTH[0] <= box <= WORTH[1] else text


def methods(rows: Sequence[Measurement]) -> str:
    """Per method, over all instances."""
    exact = {key: bracket(own).exact for key, own in by_question(rows).items()}
    lines = []
    for name in METHODS:
        own = [row for row in rows if row.method == name]
        if not own:
            continue
        gaps = [e - r.lower for r in own if r.lower is not None and (e := exact[r.instance_key]) is not None]
        memory = [row.own_mib for row in own if row.own_mib is not None]
        unfinished = sum(row.ended != "done" for row in own)
        lines.append(
            [
                name,
                str(len(own)),
                str(unfinished),
                f"{statistics.median(row.seconds for row in own):.3g}",
                f"{max(row.seconds for row in own):.3g}",
                f"{statistics.median(memory):.0f}" if memory else "-",
                str(len(gaps)),
                f"{max(0.0, statistics.median(gaps)):.4g}" if gaps else "-",
                f"{max(0.0, max(gaps)):.4g}" if gaps else "-",
            ]
        )
    header = ["method", "measured", "killed or failed", "median s", "longest s", "median MiB", "gaps known"]
    return _table([*header, "median gap", "largest gap"], lines)


def layers(rows: Sequence[Measurement]) -> str:
    """Per network, set, layer and method."""
    groups: dict[tuple[str, str, int], dict[str, list[float]]] = {}
    for row in rows:
        for entry in row.widths:
            own = groups.setdefault((*panel(row), entry["layer"]), {})
            own.setdefault(entry["method"], []).append(entry["ratio"])
    names = list(dict.fromkeys(name for own in groups.values() for name in own))
    lines = [
        [model, text, str(layer), *(f"{statistics.mean(own[name]):.4f}" if name in own else "-" for name in names)]
        for (model, text, layer), own in sorted(groups.items())
    ]
    return _table(["network", "set", "layer", *names], lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
