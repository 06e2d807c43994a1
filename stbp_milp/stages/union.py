"""One bound of the whole set per clause; clauses that this proves are not examined again."""

from __future__ import annotations

import math
from dataclasses import replace

from stbp_milp.bounds.ascent import OptimiserOptions
from stbp_milp.bounds.bounded import Forms
from stbp_milp.bounds.interrupt import interruptible
from stbp_milp.bounds.problem import Problem
from stbp_milp.bounds.rounding import PRECISE_WORK
from stbp_milp.branching import Bounder, Effort, Family, OnCrops, Piece, Roots
from stbp_milp.plan import Plan
from stbp_milp.search import SearchEnd
from stbp_milp.stages.context import TARGET, Context, State

_PRECISE_RATE = 3e8  # multiplications per second of the remaining time for clean values: about a tenth of it


def union_bound(context: Context, state: State) -> None:
    """Bounds the whole set for every clause, and closes the clauses that this proves.

    Raises:
        OutOfTimeError: time ran out before the first bound.
    """
    bounder, plan = _prepared(context, state)
    state.tell(context, "union bound", 1)
    with state.ledger.timed("union bound"):
        pieces = _pieces(context, bounder, plan)
    state.ledger.lower = min((piece.lower for piece in pieces), default=-math.inf)
    proved = {piece.clause: piece for piece in pieces if piece.lower > TARGET}
    for piece in proved.values():
        state.ledger.close(piece)
    state.plan, state.bounder = plan, bounder.on([clause for clause in bounder.clauses if clause not in proved])
    if not state.bounder.clauses:
        state.end = SearchEnd.CLOSED


def _prepared(context: Context, state: State) -> tuple[Bounder, Plan]:
    network, property = context.query.model.network, context.query.property
    with interruptible(context.deadline.expired):
        work = min(PRECISE_WORK, _PRECISE_RATE * context.deadline.remaining())
        problem = Problem.of(network, context.set, work)
    clauses = range(len(property.clauses))
    plan = Plan.of(network, len(clauses), context.configuration.timeout, context.memory, context.strategy)
    bounder = Bounder(
        whole=Family(problem=problem, whole=context.set),
        forms=Forms(*property.forms()),
        clauses=clauses,
        target=TARGET,
        options=plan.options,
        deadline=context.deadline,
        witness=state.judge,
        interrupt=plan.interrupt,
        counts=state.ledger.counts,
    )
    return bounder, plan


def _pieces(context: Context, bounder: Bounder, plan: Plan) -> list[Piece]:
    """Returns one piece per clause; none if bounding members on crops is cheaper."""
    many, alone = context.many_places, float(context.set.choice.members()[0]) == 1.0
    hardly = not plan.matrices and (alone or (many and not plan.union))
    if not context.strategy.union or hardly:
        return []
    if many and not plan.matrices:
        bounder = bounder.on(bounder.clauses, plan.quick)
    optimiser = OptimiserOptions(steps=0) if many else plan.options.root
    effort = Effort(optimiser=replace(optimiser))
    return Roots(bounder, OnCrops(bounder)).pieces(bounder.whole, context.set, "union bound", effort)
