"""Settle one margin on one region: a proved lower bound of it, and a clip that may break it.

Words: a *proof* is a dual bound above `PROOF_MARGIN`; a *candidate* is a clip read off a stored point, which counts
only after the original model and the set agree on it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from solvers import Preference, Solution, SolveLimits, Termination, choose, scaled
from stbp_milp.errors import SoundnessError
from stbp_milp.milp.encode import Encoded
from stbp_milp.milp.points import complete, extract

# Solvers keep rows and integrality to about 1e-6, and dual bounds were seen 1e-5 above the true minimum. A bound has
# to clear ten times that before it proves a sign.
PROOF_MARGIN = 1e-4


@dataclass(frozen=True, eq=False)
class MilpResult:
    """What one program established about the smallest margin on its region.

    Attributes:
        dual_bound: proved lower bound; plus infinity when the fixed phases leave no input.
        candidate: the clip `(*shape)` of the best stored point, float64, in the region, or None.
    """

    dual_bound: float
    termination: Termination
    candidate: np.ndarray | None
    seconds: float
    binaries: int
    nodes: int
    solver: str

    @property
    def proved(self) -> bool:
        """Is the margin positive on the whole region, solver tolerances included?"""
        return self.dual_bound > PROOF_MARGIN


def sign_limits(seconds: float, memory_bytes: int | None = None, threads: int = 1, seed: int = 0) -> SolveLimits:
    """Limits that stop once the margin's sign is settled, either way."""
    return SolveLimits(seconds, 1.5 * PROOF_MARGIN, -PROOF_MARGIN, memory_bytes, threads, seed)


def minimum(
    encoded: Encoded, preference: Preference, limits: SolveLimits, start: np.ndarray | None = None
) -> MilpResult:
    """Minimise the encoded margin.

    Args:
        encoded: the program.
        preference: which solver.
        limits: when to stop; see `sign_limits`.
        start: a clip `(*shape)` of the region to begin from.

    Raises:
        RefusedError: no solver takes the program.
        SoundnessError: the program is infeasible although no phase was fixed.
    """
    began = time.monotonic()
    program = encoded.program
    if encoded.empty:
        return MilpResult(float("inf"), Termination.INFEASIBLE, None, 0.0, program.binaries, 0, "none")
    if not program.variables:
        solution, solver = _constant(encoded), "none"
    else:
        backend, moderate = choose(program, preference), scaled(program)
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
        solution.dual_bound, solution.termination, candidate, seconds, program.binaries, solution.nodes, solver
    )


def _constant(encoded: Encoded) -> Solution:
    """A program without columns: the margin is one number, or the phases leave no input."""
    program = encoded.program
    point = np.zeros(0)
    if program.violation(point) > 0:
        return Solution(Termination.INFEASIBLE, float("inf"), None, None, 0.0, 0)
    return Solution(Termination.OPTIMAL, program.offset, point, program.offset, 0.0, 0)
