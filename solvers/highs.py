"""HiGHS: free, always installed, and the solver of the linear relaxations.

Its option `objective_bound` is a cutoff in a mixed-integer run: nodes beyond it are discarded, and "infeasible" then
means "nothing better", so it is never set. Instead, a callback that reads the dual bound stops the run. The option
`objective_target` compares the best *stored* solution and is safe.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from solvers.backend import RefusedError, Solution, SolveLimits, Termination, conclude
from solvers.program import MixedIntegerProgram


@dataclass(frozen=True)
class Highs:
    """HiGHS through highspy. It has no memory limit."""

    name: str = "highs"

    def accepts(self, program: MixedIntegerProgram) -> str | None:
        if find_spec("highspy") is None:
            return "HiGHS is not installed; pip install highspy"
        return None

    def solve(self, program: MixedIntegerProgram, limits: SolveLimits, start: np.ndarray | None = None) -> Solution:
        refusal = self.accepts(program)
        if refusal:
            raise RefusedError(refusal)
        began = time.monotonic()
        solver = highs_model(program, limits)
        if start is not None:
            known = np.flatnonzero(~np.isnan(start)).astype(np.int32)
            values = np.clip(start, program.lower, program.upper)[known]
            solver.setSolution(known.size, known, values)
        if limits.stop_above is not None:
            solver.cbMipInterrupt += _stop_above(limits.stop_above)
        if limits.stop_below is not None:
            solver.setOptionValue("objective_target", limits.stop_below)
        if limits.seconds < float("inf"):
            solver.setOptionValue("time_limit", max(limits.seconds - (time.monotonic() - began), 0.0))
        with _stdout_to(2):  # although silent, it prints when it retries a solution
            solver.run()
        return _read(solver, program, limits, began)


@contextmanager
def _stdout_to(target: int) -> Iterator[None]:
    """Redirects the process's standard output, above all that of C code, to another descriptor inside the block."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(target, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def highs_model(program: MixedIntegerProgram, limits: SolveLimits, relaxed: bool = False) -> Any:
    """Makes a quiet solver that holds the program; `relaxed` drops integrality."""
    import highspy

    with open(os.devnull, "wb") as nowhere, _stdout_to(nowhere.fileno()):
        # It prints a banner when it is created, before it can be silenced.
        solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.silent()
    solver.setOptionValue("threads", limits.threads)
    if limits.threads == 1:
        solver.setOptionValue("parallel", "off")
    solver.setOptionValue("random_seed", limits.seed)
    solver.setOptionValue("mip_rel_gap", 0.0)
    m, n = program.rows.shape
    whole, continuous = int(highspy.HighsVarType.kInteger), int(highspy.HighsVarType.kContinuous)
    kinds = np.where(program.integer & (not relaxed), whole, continuous).astype(np.int32)
    rows = program.rows
    solver.passModel(
        n,
        m,
        rows.nnz,
        0,
        int(highspy.MatrixFormat.kRowwise),
        0,
        int(highspy.ObjSense.kMinimize),
        program.offset,
        program.cost.astype(np.float64),
        program.lower.astype(np.float64),
        program.upper.astype(np.float64),
        program.row_lower.astype(np.float64),
        program.row_upper.astype(np.float64),
        rows.indptr.astype(np.int32),
        rows.indices.astype(np.int32),
        rows.data.astype(np.float64),
        np.zeros(n + 1, dtype=np.int32),
        np.zeros(1, dtype=np.int32),
        np.zeros(1),
        kinds,
    )
    return solver


def _stop_above(value: float) -> Any:
    def check(event: Any) -> None:
        if event.data_out.mip_dual_bound >= value:
            event.interrupt()

    return check


def _read(solver: Any, program: MixedIntegerProgram, limits: SolveLimits, began: float) -> Solution:
    from highspy import HighsModelStatus

    boxed = np.isfinite(program.lower).all() and np.isfinite(program.upper).all()
    terminations = {
        HighsModelStatus.kOptimal: Termination.OPTIMAL,
        HighsModelStatus.kModelEmpty: Termination.OPTIMAL,
        HighsModelStatus.kInfeasible: Termination.INFEASIBLE,
        HighsModelStatus.kUnboundedOrInfeasible: Termination.INFEASIBLE if boxed else Termination.ERROR,
        HighsModelStatus.kUnbounded: Termination.UNBOUNDED,
        HighsModelStatus.kTimeLimit: Termination.TIME,
        HighsModelStatus.kMemoryLimit: Termination.MEMORY,
        HighsModelStatus.kInterrupt: Termination.STOPPED_ABOVE,
        HighsModelStatus.kObjectiveTarget: Termination.STOPPED_BELOW,
    }
    termination = terminations.get(solver.getModelStatus(), Termination.ERROR)
    information = solver.getInfo()
    solution = solver.getSolution()
    feasible = int(information.primal_solution_status) == 2
    point = np.array(solution.col_value) if solution.value_valid and feasible else None
    if program.binaries:
        bound = float(information.mip_dual_bound)
    else:
        # A linear program has no such field: its optimum is the bound, and an interrupted run proves nothing.
        optimal = termination is Termination.OPTIMAL
        bound = float(information.objective_function_value) if optimal else float("-inf")
    nodes = max(int(information.mip_node_count), 0)
    return conclude(program, limits, termination, bound, point, time.monotonic() - began, nodes)
