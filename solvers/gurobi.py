"""Gurobi: the fastest backend if its licence covers the program.

`pip install gurobipy` includes a licence for 2,000 variables and 2,000 rows; a larger program fails only when it is
optimised (error 10010). Solving an oversized empty program once therefore shows which licence is in force.
"""

from __future__ import annotations

import time
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np

from solvers.backend import RefusedError, Solution, SolveLimits, Termination, conclude
from solvers.program import MixedIntegerProgram

BUNDLED_SIZE = 2000  # the number of variables, and of rows, that the bundled licence allows
_SIZE_LIMIT_EXCEEDED = 10010
_NO_WIDTH = 1e-9  # rows no wider than this become equations: Gurobi keeps rows to 1e-6, and an equation counts as one
_BOUNDED = (Termination.TIME, Termination.MEMORY, Termination.STOPPED_ABOVE)  # statuses with a valid dual bound


class Gurobi:
    """Gurobi through gurobipy, with cutting planes off, which is faster on programs of networks."""

    name = "gurobi"

    def accepts(self, program: MixedIntegerProgram) -> str | None:
        if find_spec("gurobipy") is None:
            return "Gurobi is not installed; pip install gurobipy"
        if self._missing_licence:
            return self._missing_licence
        m, n = program.rows.shape
        if max(m, n) > BUNDLED_SIZE and self._size_limited:
            return (
                f"the program has {n} variables and {m} rows, but Gurobi's bundled licence stops at {BUNDLED_SIZE}; "
                "install a full licence (free for academics) or use another solver"
            )
        return None

    def solve(self, program: MixedIntegerProgram, limits: SolveLimits, start: np.ndarray | None = None) -> Solution:
        refusal = self.accepts(program)
        if refusal:
            raise RefusedError(refusal)
        import gurobipy

        began = time.monotonic()
        try:
            with _environment() as environment, gurobipy.Model(env=environment) as model:
                variables = _fill(model, program)
                if start is not None:
                    variables.Start = np.where(np.isnan(start), gurobipy.GRB.UNDEFINED, start)
                _configure(model, limits, limits.seconds - (time.monotonic() - began))
                model.optimize()
                return _read(model, variables, program, limits, began)
        except gurobipy.GurobiError as error:
            raise RefusedError(f"Gurobi refused the program (error {error.errno}): {error}") from error

    @cached_property
    def _missing_licence(self) -> str | None:
        import gurobipy

        try:
            _environment().dispose()
        except gurobipy.GurobiError as error:
            return f"Gurobi has no usable licence (error {error.errno}): {error}"
        return None

    @cached_property
    def _size_limited(self) -> bool:
        import gurobipy

        with _environment() as environment, gurobipy.Model(env=environment) as model:
            model.addMVar(BUNDLED_SIZE + 1)
            try:
                model.optimize()
            except gurobipy.GurobiError as error:
                if error.errno == _SIZE_LIMIT_EXCEEDED:
                    return True
                raise RefusedError(f"Gurobi cannot solve an empty program (error {error.errno}): {error}") from error
        return False


def _environment() -> Any:
    """Makes a new quiet environment: environments must not be shared between threads."""
    import gurobipy

    environment = gurobipy.Env(empty=True)
    environment.setParam("OutputFlag", 0)
    environment.start()
    return environment


def _fill(model: Any, program: MixedIntegerProgram) -> Any:
    types = np.where(program.integer, "B", "C")
    variables = model.addMVar(program.variables, lb=program.lower, ub=program.upper, vtype=types)
    model.setObjective(program.cost @ variables + program.offset)
    equal = program.row_upper - program.row_lower <= _NO_WIDTH
    for chosen, sense, sides in (
        (equal, "=", program.row_lower),
        (~equal & np.isfinite(program.row_lower), ">", program.row_lower),
        (~equal & np.isfinite(program.row_upper), "<", program.row_upper),
    ):
        if chosen.any():
            model.addMConstr(program.rows[chosen], variables, sense, sides[chosen])
    return variables


def _configure(model: Any, limits: SolveLimits, seconds: float) -> None:
    model.Params.Cuts = 0
    model.Params.MIPGap = 0.0
    model.Params.Threads = limits.threads
    model.Params.Seed = limits.seed
    if seconds < float("inf"):
        model.Params.TimeLimit = max(seconds, 0.0)
    if limits.memory_bytes is not None:
        model.Params.SoftMemLimit = limits.memory_bytes / 1e9
    if limits.stop_above is not None:
        model.Params.BestBdStop = limits.stop_above
    if limits.stop_below is not None:
        model.Params.BestObjStop = limits.stop_below


def _read(model: Any, variables: Any, program: MixedIntegerProgram, limits: SolveLimits, began: float) -> Solution:
    from gurobipy import GRB

    boxed = np.isfinite(program.lower).all() and np.isfinite(program.upper).all()
    terminations = {
        GRB.OPTIMAL: Termination.OPTIMAL,
        GRB.INFEASIBLE: Termination.INFEASIBLE,
        GRB.INF_OR_UNBD: Termination.INFEASIBLE if boxed else Termination.ERROR,
        GRB.UNBOUNDED: Termination.UNBOUNDED,
        GRB.TIME_LIMIT: Termination.TIME,
        GRB.MEM_LIMIT: Termination.MEMORY,
        GRB.USER_OBJ_LIMIT: Termination.STOPPED_ABOVE,
    }
    termination = terminations.get(model.Status, Termination.ERROR)
    point = np.asarray(variables.X) if model.SolCount else None
    # Without integer variables Gurobi keeps no bound while it runs; only an optimum is a bound.
    known = termination is Termination.OPTIMAL or (model.IsMIP and termination in _BOUNDED)
    bound = float(model.ObjBound) if known else -np.inf
    nodes = int(model.NodeCount) if model.IsMIP else 0
    return conclude(program, limits, termination, bound, point, time.monotonic() - began, nodes)
