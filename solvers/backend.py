"""What a solver must promise. A *dual bound* is proved; a *point* was found; the two are never mixed.

The question is usually only a sign: is the minimum positive? `SolveLimits.stop_above` ends a run whose dual bound
already says yes, `stop_below` one whose stored point already says no.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from solvers.program import MixedIntegerProgram


class RefusedError(RuntimeError):
    """A backend cannot take a program: not installed, no licence, or a program beyond the licence's size."""


class Termination(Enum):
    OPTIMAL = "optimal"
    STOPPED_ABOVE = "stopped above"  # dual bound >= stop_above
    STOPPED_BELOW = "stopped below"  # objective of the stored point <= stop_below
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    TIME = "time"
    MEMORY = "memory"
    ERROR = "error"


@dataclass(frozen=True)
class SolveLimits:
    """When a run ends early. `memory_bytes` is kept by SCIP and Gurobi; HiGHS has no such limit."""

    seconds: float = float("inf")
    stop_above: float | None = None
    stop_below: float | None = None
    memory_bytes: int | None = None
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Solution:
    """How a run ended and what it established.

    Attributes:
        dual_bound: proved lower bound of the minimum up to the solver's tolerances; minus infinity when nothing
            is proved, plus infinity only when the program is infeasible.
        point: the best point the solver *stored*, or None. A primal bound that the solver merely claims is no point.
        objective: the program's objective at `point`, computed here and not taken from the solver.
    """

    termination: Termination
    dual_bound: float
    point: np.ndarray | None  # (n,)
    objective: float | None
    seconds: float
    nodes: int


class Backend(Protocol):
    """A solver.

    Laws: for every accepted program, `dual_bound <= min <= objective` up to the solver's tolerances, whatever limit
    ended the run and whatever start was given; `point` is feasible up to the tolerances.
    """

    @property
    def name(self) -> str:
        """The solver's name in lower case."""

    def accepts(self, program: MixedIntegerProgram) -> str | None:
        """None when the program can be solved here, otherwise a sentence that says why not."""

    def solve(self, program: MixedIntegerProgram, limits: SolveLimits, start: np.ndarray | None = None) -> Solution:
        """Minimise.

        Args:
            program: what to solve.
            limits: when to stop early.
            start: a point `(n,)` to begin from; NaN marks a variable left open. A bad one does no harm.

        Raises:
            RefusedError: the program is not accepted.
        """


def conclude(
    program: MixedIntegerProgram,
    limits: SolveLimits,
    termination: Termination,
    bound: float,
    point: np.ndarray | None,
    seconds: float,
    nodes: int,
) -> Solution:
    """The solution record with its invariants restored: the same rules for every backend.

    A run ended by a limit counts as stopped above (or below) when its bound (or point) has in fact arrived there,
    whatever the solver calls it.
    """
    objective = None if point is None else program.objective(point)
    if termination is Termination.INFEASIBLE:
        return Solution(termination, float("inf"), None, None, seconds, nodes)
    if termination in (Termination.UNBOUNDED, Termination.ERROR) or not bound < float("inf"):
        # An infinite bound without a verdict of infeasibility proves nothing that can be named.
        bound = float("-inf")
    if termination not in (Termination.OPTIMAL, Termination.UNBOUNDED, Termination.ERROR):
        if limits.stop_above is not None and bound >= limits.stop_above:
            termination = Termination.STOPPED_ABOVE
        elif limits.stop_below is not None and objective is not None and objective <= limits.stop_below:
            termination = Termination.STOPPED_BELOW
        elif termination in (Termination.STOPPED_ABOVE, Termination.STOPPED_BELOW):
            termination = Termination.ERROR
    return Solution(termination, bound, point, objective, seconds, nodes)
