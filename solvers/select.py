"""The choice of a solver: Gurobi if its licence covers the program, then SCIP, then HiGHS."""

from __future__ import annotations

from typing import Literal

from solvers.backend import Backend, RefusedError
from solvers.gurobi import Gurobi
from solvers.highs import Highs
from solvers.program import MixedIntegerProgram
from solvers.scip import Scip

Preference = Literal["auto", "scip", "gurobi", "highs"]


def choose(program: MixedIntegerProgram, preference: Preference = "auto") -> Backend:
    """Returns the preferred backend, or the first of Gurobi, SCIP and HiGHS that accepts the program.

    Raises:
        RefusedError: the preferred backend refuses, or all of them do; the message gives their reasons.
        ValueError: no backend has that name.
    """
    backends: dict[str, Backend] = {"gurobi": Gurobi(), "scip": Scip(), "highs": Highs()}
    if preference != "auto":
        if preference not in backends:
            raise ValueError(f"no solver is named {preference!r}; choose auto, {', '.join(backends)}")
        backends = {preference: backends[preference]}
    reasons: list[str] = []
    for backend in backends.values():
        refusal = backend.accepts(program)
        if refusal is None:
            return backend
        reasons.append(refusal)
    raise RefusedError("; ".join(reasons))
