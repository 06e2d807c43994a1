"""SCIP: the default if Gurobi's licence does not cover the program.

Four choices are deliberate. Separation is off (3 to 8 times faster on programs of networks). With a start, primal
heuristics are off and presolving is fast (twice as fast again, because the time goes into the bound). The sign limits
are `limits/dual` and `limits/primal`, never an objective limit, which reports a primal bound without a solution.
`optimizeNogil` lets other threads of the process run.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from solvers.backend import RefusedError, Solution, SolveLimits, Termination, conclude
from solvers.program import MixedIntegerProgram

_TERMINATIONS = {
    "optimal": Termination.OPTIMAL,
    "gaplimit": Termination.OPTIMAL,
    "infeasible": Termination.INFEASIBLE,
    "unbounded": Termination.UNBOUNDED,
    "timelimit": Termination.TIME,
    "memlimit": Termination.MEMORY,
    "primallimit": Termination.STOPPED_BELOW,
    "duallimit": Termination.STOPPED_ABOVE,
}


@dataclass(frozen=True)
class Scip:
    """SCIP through pyscipopt, with one thread, whatever `SolveLimits.threads` says."""

    name: str = "scip"

    def accepts(self, program: MixedIntegerProgram) -> str | None:
        if find_spec("pyscipopt") is None:
            return "SCIP is not installed; pip install pyscipopt"
        return None

    def solve(self, program: MixedIntegerProgram, limits: SolveLimits, start: np.ndarray | None = None) -> Solution:
        refusal = self.accepts(program)
        if refusal:
            raise RefusedError(refusal)
        began = time.monotonic()
        model, variables = _model(program)
        _configure(model, limits, limits.seconds - (time.monotonic() - began))
        if start is not None:
            _trust_start(model)
            _add_start(model, variables, np.clip(start, program.lower, program.upper))
        model.optimizeNogil()
        status = model.getStatus()
        if status == "userinterrupt":  # SCIP catches Ctrl-C, but the user meant to end the whole run
            raise KeyboardInterrupt
        if status == "inforunbd" and np.isfinite(program.lower).all() and np.isfinite(program.upper).all():
            status = "infeasible"
        termination = _TERMINATIONS.get(status, Termination.ERROR)
        point = None
        if model.getNSols() and termination is not Termination.UNBOUNDED:
            best = model.getBestSol()
            point = np.array([model.getSolVal(best, variable) for variable in variables])
        bound = model.getDualbound()
        if abs(bound) >= model.infinity():
            bound = float("inf") if bound > 0 else float("-inf")
        nodes = int(model.getNTotalNodes())
        return conclude(program, limits, termination, bound, point, time.monotonic() - began, nodes)


def _model(program: MixedIntegerProgram) -> tuple[Any, list[Any]]:
    """Makes the SCIP model; returns it with its variables in the program's order.

    Rows are built from term dictionaries, because sums of expressions would copy every partial sum.
    """
    from pyscipopt.scip import Expr, ExprCons, Model, Term

    model = Model()
    model.hideOutput()
    # In pyscipopt an open side is None; infinities would be taken for numbers.
    variables = [
        model.addVar(vtype="B" if whole else "C", lb=_side(low), ub=_side(high), obj=cost)
        for low, high, whole, cost in zip(
            program.lower.tolist(), program.upper.tolist(), program.integer.tolist(), program.cost.tolist(), strict=True
        )
    ]
    model.addObjoffset(program.offset)
    terms = [Term(variable) for variable in variables]
    rows = program.rows.copy()
    rows.sum_duplicates()
    columns, values, starts = rows.indices.tolist(), rows.data.tolist(), rows.indptr.tolist()
    sides = zip(program.row_lower.tolist(), program.row_upper.tolist(), strict=True)
    for i, (low, high) in enumerate(sides):
        if low == -np.inf and high == np.inf:
            continue
        entries = {terms[columns[k]]: values[k] for k in range(starts[i], starts[i + 1])}
        if not entries:
            # An empty row constrains zero, but pyscipopt has no linear row without a variable.
            entries = {terms[0]: 0.0}
        model.addCons(ExprCons(Expr(entries), lhs=_side(low), rhs=_side(high)))
    return model, variables


def _side(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _configure(model: Any, limits: SolveLimits, seconds: float) -> None:
    from pyscipopt.scip import PY_SCIP_PARAMSETTING

    model.setSeparating(PY_SCIP_PARAMSETTING.OFF)
    model.setParam("randomization/randomseedshift", limits.seed)
    if seconds < float("inf"):
        model.setParam("limits/time", min(max(seconds, 0.0), 1e20))
    if limits.memory_bytes is not None:
        model.setParam("limits/memory", limits.memory_bytes / 2**20)
    if limits.stop_below is not None:
        model.setParam("limits/primal", limits.stop_below)
    if limits.stop_above is not None:
        model.setParam("limits/dual", limits.stop_above)


def _trust_start(model: Any) -> None:
    from pyscipopt.scip import PY_SCIP_PARAMSETTING

    model.setHeuristics(PY_SCIP_PARAMSETTING.OFF)
    model.setPresolve(PY_SCIP_PARAMSETTING.FAST)


def _add_start(model: Any, variables: list[Any], start: np.ndarray) -> None:
    known = np.flatnonzero(~np.isnan(start))
    solution = model.createSol() if known.size == start.size else model.createPartialSol()
    for j in known.tolist():
        model.setSolVal(solution, variables[j], float(start[j]))
    model.addSol(solution)
