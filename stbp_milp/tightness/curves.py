"""The data of tables and figures, made from measurements: certified shares per set, budget and method.

A *panel* is a network with a set. A *budget* is a multiple of the specification's radius if the study sweeps over
multiples, and otherwise the radius itself in the unit of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stbp_milp.tightness.laws import bracket, by_question
from stbp_milp.tightness.measure import LAYERS, Measurement
from stbp_milp.tightness.methods import METHODS

BOX = tuple(name for name, method in METHODS.items() if method.family == "box")


@dataclass(frozen=True)
class Point:
    """One panel at one budget.

    Attributes:
        questions: the number of questions.
        certified: per method, the share that it proves of the questions it was measured on; a killed measurement proves
            nothing, and measurements that an interrupted study has not made yet do not count.
        unbroken: the share that no observed margin breaks; no method can certify more. None: nothing was observed.
        decided: the share with a verdict of the complete search; None if it was not run.
        exact: the share whose exact optimum is known.
    """

    model: str
    set: str
    budget: float
    questions: int
    certified: dict[str, float]
    unbroken: float | None
    decided: float | None
    exact: float

    @property
    def best_box(self) -> float | None:
        """Returns the share of the better method over the whole-clip box."""
        return max((self.certified[name] for name in BOX if name in self.certified), default=None)


def budget(row: Measurement) -> float:
    """Returns the quantity on the x-axis."""
    return round(row.epsilon if row.factor is None else row.factor, 9)


def unit(rows: Sequence[Measurement]) -> str:
    """Returns the unit of the budgets, in words."""
    return "ε, in the unit of the data" if any(r.factor is None for r in rows) else "multiple of the specification's ε"


def panel(row: Measurement) -> tuple[str, str]:
    """Returns a network's name without its file extension, and a set."""
    return Path(row.model).name.removesuffix(".gz").removesuffix(".onnx"), row.set


def points(rows: Sequence[Measurement]) -> list[Point]:
    """Returns the points panel by panel, from small budgets to large ones."""
    groups: dict[tuple[tuple[str, str], float], list[list[Measurement]]] = {}
    for own in by_question(r for r in rows if r.method != LAYERS).values():
        groups.setdefault((panel(own[0]), budget(own[0])), []).append(own)
    return [_point(*key, questions) for key, questions in sorted(groups.items())]


def _point(of: tuple[str, str], at: float, questions: list[list[Measurement]]) -> Point:
    by_method = {name: [r for rows in questions for r in rows if r.method == name] for name in METHODS}
    count = len(questions)
    certified = {
        name: sum(row.certified for row in own) / len(own)
        for name, own in by_method.items()
        if own and name != "attack"
    }
    seen = [min((r.upper for r in rows if r.upper is not None), default=None) for rows in questions]
    known = any(margin is not None for margin in seen)
    complete = by_method["complete"]
    decided = sum(row.note in ("verified", "falsified") for row in complete) / len(complete) if complete else None
    exact = sum(bracket(rows).exact is not None for rows in questions) / count
    unbroken = sum(margin is None or margin > 0 for margin in seen) / count if known else None
    return Point(*of, at, count, certified, unbroken, decided, exact)
