"""Minimisation of one margin on one region: a proved lower bound, and a clip that may break the property.

A *proof* is a dual bound above the program's tolerance. A *candidate* is a clip extracted from a stored point; it
counts only after the original model and the set have confirmed it.
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
        dual_bound: the solver's dual bound; plus infinity if the fixed phases leave no input.
        tolerance: the amount by which the dual bound may be too large.
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
    """Returns the limits with stops as soon as the margin's sign is settled either way."""
    return replace(limits, stop_above=1.5 * tolerance, stop_below=-tolerance)


def minimum(
    encoded: Encoded, preference: Preference, limits: SolveLimits, start: np.ndarray | None = None
) -> MilpResult:
    """Minimises the encoded margin.

    Args:
        encoded: the program.
        preference: the solver to use.
        limits: when to stop; see `until_sign`.
        start: a clip `(*shape)` of the region to begin from.

    Raises:
        RefusedError: no solver accepts the program.
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
            f"{solver} finds no input in the region although no phase was fixed; a bound given to it must be wrong, "
            "please report this network and set"
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
    """Solves a program without columns: the margin is one number, or the phases leave no input."""
    program = encoded.program
    point = np.zeros(0)
    if program.violation(point) > 0:
        return Solution(Termination.INFEASIBLE, float("inf"), None, None, 0.0, 0)
    return Solution(Termination.OPTIMAL, program.offset, point, program.offset, 0.0, 0)
