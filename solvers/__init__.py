"""Mixed-integer linear programs and the solvers for them; this package knows no networks and no tensors.

`choose(program, "auto")` picks a backend that accepts the program. `backend.solve(program, limits)` returns what is
*proved* (`Solution.dual_bound`) and, separately, a point that was *found*.
"""

from solvers.backend import Backend, RefusedError, Solution, SolveLimits, Termination
from solvers.gurobi import Gurobi
from solvers.highs import Highs
from solvers.program import MixedIntegerProgram
from solvers.relaxation import LinearRelaxation, dual_bound
from solvers.scaling import Scaled, scaled
from solvers.scip import Scip
from solvers.select import Preference, choose

__all__ = [
    "Backend",
    "Gurobi",
    "Highs",
    "LinearRelaxation",
    "MixedIntegerProgram",
    "Preference",
    "RefusedError",
    "Scaled",
    "Scip",
    "Solution",
    "SolveLimits",
    "Termination",
    "choose",
    "dual_bound",
    "scaled",
]
