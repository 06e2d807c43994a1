"""The contract of a solver: a *dual bound* is proved, a *point* was found, and the two are never mixed.

Usually only the sign matters: is the minimum positive? `SolveLimits.stop_above` ends a run whose dual bound already
says yes, and `stop_below` ends one whose stored point already says no.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from solvers.program import MixedIntegerProgram


class RefusedError(RuntimeError):
    """A backend cannot solve a program: it is not installed, or its licence is missing or too small."""


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
    """When a run ends early; SCIP and Gurobi enforce `memory_bytes`, but HiGHS has no such limit."""

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
        dual_bound: proved lower bound of the minimum up to the solver's tolerances; minus infinity if nothing is
            proved, plus infinity only if the program is infeasible.
        point: the best point that the solver *stored*, or None; a primal bound without a stored point does not count.
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

    Laws: for every accepted program, `dual_bound <= min <= objective` up to the solver's tolerances, whichever limit
    ended the run and whichever start was given; `point` is feasible up to the tolerances.
    """

    @property
    def name(self) -> str:
        """The solver's name in lower case."""

    def accepts(self, program: MixedIntegerProgram) -> str | None:
        """Returns None if the solver can solve the program, otherwise a sentence that says why not."""

    def solve(self, program: MixedIntegerProgram, limits: SolveLimits, start: np.ndarray | None = None) -> Solution:
        """Minimises the program's objective.

        Args:
            program: the program.
            limits: when to stop early.
            start: a point `(n,)` to begin from; NaN marks an open variable. A bad start does no harm.

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
    """Makes the solution and restores its invariants, by the same rules for every backend.

    A run that was ended by a limit counts as stopped above (or below) if its bound (or point) has in fact reached that
    limit, whatever status the solver reports.
    """
    objective = None if point is None else program.objective(point)
    if termination is Termination.INFEASIBLE:
        return Solution(termination, float("inf"), None, None, seconds, nodes)
    if termination in (Termination.UNBOUNDED, Termination.ERROR) or not bound < float("inf"):
        # An infinite bound without a status of infeasibility proves nothing.
        bound = float("-inf")
    if termination not in (Termination.OPTIMAL, Termination.UNBOUNDED, Termination.ERROR):
        if limits.stop_above is not None and bound >= limits.stop_above:
            termination = Termination.STOPPED_ABOVE
        elif limits.stop_below is not None and objective is not None and objective <= limits.stop_below:
            termination = Termination.STOPPED_BELOW
        elif termination in (Termination.STOPPED_ABOVE, Termination.STOPPED_BELOW):
            termination = Termination.ERROR
    return Solution(termination, bound, point, objective, seconds, nodes)
