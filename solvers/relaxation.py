"""Rigorous bounds from linear relaxations, and one relaxation that is solved for many objectives.

By weak duality *any* multipliers of the rows give a valid lower bound, so no result of a solver has to be trusted: the
solver only proposes the multipliers.
"""

from __future__ import annotations

import time

import numpy as np

from solvers.backend import SolveLimits
from solvers.highs import highs_model
from solvers.program import MixedIntegerProgram

_PRIMAL = 4  # HiGHS' number for the primal simplex


def dual_bound(program: MixedIntegerProgram, cost: np.ndarray, row_duals: np.ndarray) -> float:
    """Computes a proved lower bound of `min cost @ x` over the linear relaxation from multipliers `(m,)` of the rows.

    With `y` the multipliers and `r = cost - rows^T y`, every feasible x has

        cost @ x = y @ (rows @ x) + r @ x >= sum_i min(y_i row_lower_i, y_i row_upper_i) + sum_j min(r_j l_j, r_j u_j),

    where the first minimum is over the side that the sign of `y_i` picks. This holds for every y; a multiplier that
    picks an infinite side is set to zero first. The sum of all magnitudes times the unit roundoff and the number
    of terms is subtracted, so the value is a bound despite float64 rounding. The program's offset is not included.

    Raises:
        ValueError: a variable is unbounded, or a multiplier is NaN.
    """
    if not (np.isfinite(program.lower).all() and np.isfinite(program.upper).all()):
        raise ValueError("a variable has an infinite bound; the dual bound needs a box around every variable")
    if np.isnan(row_duals).any():
        raise ValueError("a row's multiplier is NaN; pass zeros when the solver has none")
    side = np.where(row_duals > 0, program.row_lower, program.row_upper)
    usable = np.isfinite(side) & np.isfinite(row_duals)
    multipliers = np.where(usable, row_duals, 0.0)
    row_terms = multipliers * np.where(usable, side, 0.0)
    reduced = cost - program.rows.T @ multipliers
    box_terms = np.minimum(reduced * program.lower, reduced * program.upper)
    reach = np.maximum(np.abs(program.lower), np.abs(program.upper))
    magnitude = np.abs(row_terms).sum() + ((np.abs(cost) + abs(program.rows).T @ np.abs(multipliers)) * reach).sum()
    terms = sum(program.rows.shape) + 8
    rounding = terms * np.finfo(np.float64).eps * magnitude
    return float(row_terms.sum() + box_terms.sum() - rounding)


class LinearRelaxation:
    """The linear relaxation of a program, minimised for many linear forms, each warm-started from the last basis.

    Law: `minimum(cost, seconds) <= min cost @ x` over the relaxation, whatever ended the run. It holds a solver, so it
    is mutable and must not be shared between threads.

    Raises:
        ValueError: a variable is unbounded.
    """

    def __init__(self, program: MixedIntegerProgram, seed: int = 0) -> None:
        if not (np.isfinite(program.lower).all() and np.isfinite(program.upper).all()):
            raise ValueError("a variable has an infinite bound; the relaxation needs a box around every variable")
        self._program = program
        self._highs = highs_model(program, SolveLimits(seed=seed), relaxed=True)
        self._columns = np.arange(program.variables, dtype=np.int32)

    def minimum(self, cost: np.ndarray, seconds: float) -> float:
        """Returns a proved lower bound of `min cost @ x`, `cost` of shape `(n,)`; nearly the minimum if time suffices.

        The bound is always finite, even if the relaxation is empty.
        """
        return dual_bound(self._program, cost, self._duals(cost, seconds))

    def point(self) -> np.ndarray | None:
        """Returns where the last run ended, `(n,)`: a vertex of the relaxation if it ended in time.

        Returns None if the solver has no point, because it ran out of time before its first one or failed.
        """
        solution = self._highs.getSolution()
        point = np.array(solution.col_value)
        usable = solution.value_valid and point.size == self._columns.size and np.isfinite(point).all()
        return point if usable else None

    def _duals(self, cost: np.ndarray, seconds: float) -> np.ndarray:
        began = time.monotonic()
        self._highs.changeColsCost(self._columns.size, self._columns, cost)
        # The solver's clock runs on over repeated runs, so the limit is absolute.
        left = max(seconds - (time.monotonic() - began), 0.0)
        self._highs.setOptionValue("time_limit", self._highs.getRunTime() + left)
        self._highs.run()
        # The first run has no basis, so presolve and the dual simplex find one. A new objective leaves that basis
        # primal feasible: from there the primal simplex without presolve is 14 times faster than the dual (measured
        # on 7,429 rows: 0.24 s against 3.3 s).
        self._highs.setOptionValue("presolve", "off")
        self._highs.setOptionValue("simplex_strategy", _PRIMAL)
        solution = self._highs.getSolution()
        duals = np.array(solution.row_dual)
        usable = solution.dual_valid and duals.size == self._program.rows.shape[0] and not np.isnan(duals).any()
        return duals if usable else np.zeros(self._program.rows.shape[0])
