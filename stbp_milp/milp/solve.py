"""Settle one margin on one region: a proved lower bound of it, and a clip that may break it.

Words: a *proof* is a dual bound above the program's tolerance; a *candidate* is a clip read off a stored point, which
counts only after the original model and the set agree on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from solvers import Preference, Solution, SolveLimits, Termination, choose
from stbp_milp.errors import SoundnessError
from stbp_milp.milp.encode import Encoded
from stbp_milp.milp.points import complete, extract


@dataclass(frozen=True, eq=False)
class MilpResult:
    """What one program established about the smallest margin on its region.

    Attributes:
        dual_bound: of the solver; plus infinity when the fixed phases leave no input.
        tolerance: what of it does not count.
        candidate: the clip `(*shape)` of the best stored point, float64, in the region, or None.
    """

    dual_bound: float
    tolerance: float
    termination: Termination
    candidate: np.ndarray | None
    seconds: float
    binaries: int
    nodes: int
    solver: str

    @property
    def lower(self) -> float:
        """Proved lower bound of the margin."""
        return self.dual_bound - self.tolerance


def until_sign(limits: SolveLimits, tolerance: float) -> SolveLimits:
    """The limits, and a stop once the margin's sign is settled, either way."""
    return replace(limits, stop_above=1.5 * tolerance, stop_below=-tolerance)


def minimum(
    encoded: Encoded, preference: Preference, limits: SolveLimits, start: np.ndarray | None = None
) -> MilpResult:
    """Minimise the encoded margin.

    Args:
        encoded: the program.
        preference: which solver.
        limits: when to stop; see `until_sign`.
        start: a clip `(*shape)` of the region to begin from.

    Raises:
        RefusedError: no solver takes the program.
        SoundnessError: the program is infeasible although no phase was fixed.
    """
    began = time.monotonic()
    program = encoded.program
    if encoded.empty:
        return MilpResult(float("inf"), 0.0, Termination.INFEASIBLE, None, 0.0, program.binaries, 0, "none")
    if not program.variables:
        solution, solver = _constant(encoded), "none"
    else:
        backend, moderate = choose(program, preference), encoded.moderate
        point = None if start is None else moderate.start(complete(encoded, start))
        solution, solver = backend.solve(moderate.program, limits, point), backend.name
        if solution.point is not None:
            solution = replace(solution, point=moderate.point(solution.point))
    if solution.termination is Termination.INFEASIBLE and not encoded.split:
        raise SoundnessError(
            f"{solver} finds no input in the region although no phase was fixed; a bound handed to it must be wrong, "
            "report this network and set"
        )
    candidate = None if solution.point is None else extract(encoded, solution.point)
    seconds = time.monotonic() - began
    return MilpResult(
        solution.dual_bound,
        encoded.tolerance,
        solution.termination,
        candidate,
        seconds,
        program.binaries,
        solution.nodes,
        solver,
    )


def _constant(encoded: Encoded) -> Solution:
    """A program without columns: the margin is one number, or the phases leave no input."""
    program = encoded.program
    point = np.zeros(0)
    if program.violation(point) > 0:
        return Solution(Termination.INFEASIBLE, float("inf"), None, None, 0.0, 0)
    return Solution(Termination.OPTIMAL, program.offset, point, program.offset, 0.0, 0)
