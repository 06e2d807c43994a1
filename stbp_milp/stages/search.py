"""Branch and bound on the pieces that first bounds leave open."""

from __future__ import annotations

from stbp_milp.branching import Expander, Piece
from stbp_milp.memory import is_exhaustion, room
from stbp_milp.plan import Plan
from stbp_milp.search import Expansion, Pace, Search, SearchEnd, best_first
from stbp_milp.stages.context import Context, State


def branch_and_bound(context: Context, state: State) -> None:
    search, expander, plan = state.search, state.expander, state.plan
    assert search is not None
    assert expander is not None
    assert plan is not None
    state.end = _searched(context, state, search, expander, plan)
    if state.end is not SearchEnd.STOPPED:  # a stopped expansion does not return its pieces
        state.ledger.raise_lower(search.lower())


def _searched(context: Context, state: State, search: Search[Piece], expand: Expander, plan: Plan) -> SearchEnd:
    pace = Pace(plan.most_at_once)
    held = max(piece.memory for piece in state.pieces)
    state.pieces = []  # the search holds the open ones

    def step(pieces: list[Piece]) -> Expansion[Piece]:
        # The search no longer holds this batch, but its bounds count too.
        state.ledger.raise_lower(min(search.lower(), *(p.lower for p in pieces)))
        state.tell(context, pieces[0].method, search.open + len(pieces))
        try:
            with pace.measured(len(pieces), context.deadline.remaining()):
                return expand(pieces)
        except (MemoryError, RuntimeError) as error:
            if not is_exhaustion(error):
                raise
        # Batches are smaller from now on; a single piece that is too large is given up, with the bound that it has.
        pace.halve()
        if len(pieces) > 1:
            return Expansion(pieces)
        state.short_of_memory = True
        return Expansion((), pieces)

    def over() -> bool:
        full = search.open * held > plan.options.open_memory or room() <= 0
        state.short_of_memory |= full
        return full or context.deadline.expired()

    return best_first(search, step, lambda: pace.batch, over)
