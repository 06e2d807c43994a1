"""The MILP, which settles a subproblem with few undecided ReLUs exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

from solvers import RefusedError
from stbp_milp.branching import Piece
from stbp_milp.branching.exact import ProgramOptions, solve_piece
from stbp_milp.branching.expand import Program
from stbp_milp.network.normal_form import AffineMap
from stbp_milp.search import Deadline
from stbp_milp.stages.context import TARGET, Context, State


def program(context: Context, state: State, maps: Sequence[AffineMap]) -> Program | None:
    """Returns a function that solves one piece; None if no solver may be used. `maps` is the network's normal form."""
    configuration, property = context.configuration, context.query.property
    if configuration.solver == "none":
        return None
    options = ProgramOptions(configuration.solver, context.memory, configuration.threads, configuration.seed)

    def solve(piece: Piece, deadline: Deadline) -> float:
        rows = list(property.clauses[piece.clause])
        try:
            solved = solve_piece(piece, maps, property.rows[rows], property.offset[rows], options, deadline)
        except RefusedError as error:
            state.refusal = str(error)
            return -math.inf
        if solved.candidate is not None and context.strategy.candidates:
            state.judge(piece.family.view.clips(solved.candidate.unsqueeze(0)), "milp")
        if solved.lower <= TARGET:
            state.open_for[solved.open_for] += 1
        return solved.lower

    return solve
