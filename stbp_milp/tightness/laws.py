"""Laws that the measurements of one question must satisfy, and the exact optimum that they bracket."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stbp_milp.errors import SoundnessError
from stbp_milp.tightness.measure import Measurement
from stbp_milp.tightness.methods import METHODS

COMPLETE = ("complete", "search", "milp")
WIDTH = 1e-4  # the largest width of a bracket that counts as the exact optimum
AGREEMENT = 1e-4  # of the two linear programs, relative to 1 + |bound|

# Theorems, with the deviation that rounding, widened bounds and solvers' tolerances allow, relative to 1 + |bound|:
# intervals over a smaller set; slopes that start from the backward pass; weak duality on the same bounds.
# Backward bounds with adaptive slopes are not monotone in the set, so nothing orders the other pairs.
ORDERS = (
    ("box-interval", "stbp-interval", 1e-9),
    ("stbp-backward", "stbp-alpha", 1e-9),
    ("stbp-alpha", "lp", 1e-3),
)


@dataclass(frozen=True)
class Bracket:
    """The interval that contains the smallest margin: proved from below, observed from above."""

    lower: float
    upper: float

    @property
    def exact(self) -> float | None:
        """The optimum, if the bracket is narrow enough to be called that."""
        return self.upper if self.upper - self.lower <= WIDTH else None


def by_question(rows: Iterable[Measurement]) -> dict[tuple[str, str, float], list[Measurement]]:
    """Groups the rows by question."""
    groups: dict[tuple[str, str, float], list[Measurement]] = {}
    for row in rows:
        groups.setdefault(row.instance_key, []).append(row)
    return groups


def bracket(rows: Sequence[Measurement]) -> Bracket:
    """Brackets one question's optimum by the complete methods' lower bounds and all observed margins."""
    lower = [r.lower for r in rows if r.method in COMPLETE and r.lower is not None]
    upper = [r.upper for r in rows if r.upper is not None]
    return Bracket(max(lower, default=-math.inf), min(upper, default=math.inf))


def check(rows: Sequence[Measurement]) -> None:
    """Checks that the rows of one question are consistent.

    Raises:
        SoundnessError: a bound exceeds an observed margin, a theorem about two methods is violated, or the two linear
            programs differ.
    """
    seen = bracket(rows).upper
    lower = {row.method: row.lower for row in rows if row.lower is not None}
    where = f"{rows[0].instance} ({rows[0].set}, eps {rows[0].epsilon:g})"
    for method, bound in lower.items():
        if bound > seen + METHODS[method].tolerance * (1 + abs(seen)):
            raise SoundnessError(
                f"{where}: {method} says that the margin is at least {bound:.9g}, a clip of the set has {seen:.9g}"
            )
    finished = {row.method for row in rows if row.ended == "done" and not row.late}  # others may miss their place
    for smaller, larger, tolerance in ORDERS:
        if {smaller, larger} <= finished & lower.keys():
            a, b = lower[smaller], lower[larger]
            if a > b + tolerance * (1 + abs(b)):
                raise SoundnessError(f"{where}: {smaller} {a:.9g} exceeds {larger} {b:.9g}, which theory forbids")
    if {"lp", "lp-cvxpy"} <= finished & lower.keys():
        a, b = lower["lp"], lower["lp-cvxpy"]
        if abs(a - b) > AGREEMENT * (1 + abs(b)):
            raise SoundnessError(f"{where}: the linear program's optimum is {a:.9g}, rebuilt in cvxpy {b:.9g}")
