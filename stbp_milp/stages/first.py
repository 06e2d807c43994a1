"""First pieces: all members if they are few or cheap to bound one by one, otherwise the whole set."""

from __future__ import annotations

from contextlib import suppress

from stbp_milp.branching import Bounder, Effort, Expander, OnCrops, OnMatrices, Piece, Roots, within
from stbp_milp.errors import OutOfTimeError
from stbp_milp.network.normal_form import normal_form
from stbp_milp.plan import Plan
from stbp_milp.search import Deadline, Search, SearchEnd
from stbp_milp.sets import Patch
from stbp_milp.stages.context import TARGET, Context, State
from stbp_milp.stages.program import program


def first_pieces(context: Context, state: State) -> None:
    """Bounds the first pieces, and begins the search with those that stay open.

    Raises:
        OutOfTimeError: time ran out before the first bound.
    """
    assert state.bounder is not None
    assert state.plan is not None
    with state.ledger.timed("split"):
        state.tell(context, "split", 1)
        state.expander, pieces = _started(context, state, state.bounder, state.plan)
        state.pieces = within(state.bounder, pieces, context.query.phases)
    state.search = Search(TARGET, state.ledger.close)
    state.search.add(state.pieces)
    state.ledger.raise_lower(state.search.lower())
    if not state.search.open:
        state.end = SearchEnd.CLOSED


def _started(context: Context, state: State, bounder: Bounder, plan: Plan) -> tuple[Expander, list[Piece]]:
    """Begins on matrices if a share of the time and the memory suffice to write them down, otherwise on crops."""
    if plan.matrices and context.query.model.network.is_piecewise_linear:
        limit = context.deadline.within(context.strategy.matrices_share * context.deadline.remaining())
        with suppress(OutOfTimeError, MemoryError):
            maps = normal_form(context.query.model.network, limit.expired)
            roots = Roots(bounder, OnMatrices(bounder, maps))
            solve = program(context, state, maps)
            expander = Expander(bounder=bounder, roots=roots, program=solve, timed=state.ledger.timed)
            return expander, _pieces(context, roots, limit)
    roots = Roots(bounder, OnCrops(bounder))
    return Expander(bounder=bounder, roots=roots, program=None, timed=state.ledger.timed), _pieces(context, roots)


def _pieces(context: Context, roots: Roots, grouping: Deadline | None = None) -> list[Piece]:
    bounder, pieces = roots.bounder, None
    patches = isinstance(context.set.choice, Patch)
    most = context.strategy.places_listed if patches else bounder.options.few_members
    if float(context.set.choice.members()[0]) <= most:
        pieces = roots.member_pieces(context.set.singletons(), "split", grouping)
    if pieces is not None:
        return pieces
    effort = Effort(optimiser=bounder.options.root, tighten=roots.share())
    return roots.pieces(bounder.whole, context.set, "split", effort)
