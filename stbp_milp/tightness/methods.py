"""The compared methods, which take a query and return a lower bound of its margin.

The *whole-clip box* is the smallest box around the set: the whole clip's, if every frame may move. *STBP* bounds
the set itself: the closed form in the first layer, the support function at the end of every backward pass. A bound is
the least over the property's clauses; a clause of several rows counts by the mean of its rows, but `lp`, `lp-cvxpy`,
`milp`, `search` and `complete` take the largest of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from solvers import LinearRelaxation
from stbp_milp.attack import AttackConfiguration, attack
from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.interval_bound import interval_bound
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.milp import PROOF_MARGIN, Encoded, InputRegion, encode
from stbp_milp.network.normal_form import normal_form
from stbp_milp.query import Query
from stbp_milp.tightness.bounding import (
    Found,
    Request,
    alpha_bounds,
    flat_boxes,
    forms_bound,
    margin,
    whole_box,
    whole_set,
)
from stbp_milp.tightness.members import exact_minimum, least_of_members
from stbp_milp.tightness.optimum import searched_minimum
from stbp_milp.verify import verify

FINAL_STEPS = 60  # steps of gradient ascent on the slopes of the property's forms


Run = Callable[[Request], Found]


@dataclass(frozen=True)
class Method:
    """A method with its name.

    Attributes:
        family: the family of methods drawn in one colour: "box", "stbp", "member", "lp", "exact" or "attack".
        tolerance: how far, relative to 1 + |bound|, its bound may lie above the truth: solvers keep rows to 1e-6.
    """

    name: str
    family: str
    run: Run
    tolerance: float = 1e-6


# --- one pass ---------------------------------------------------------------------------------------------


def _intervals(problem: Problem, query: Query) -> Found:
    return Found(float(interval_bound(problem, *query.property.forms()).min()))


def _backward(problem: Problem, request: Request) -> Found:
    bounds = preactivations(problem, BoundingOptions(), expired=request.deadline.expired)
    return Found(forms_bound(problem, bounds, request))


def _alpha(request: Request) -> Found:
    problem = whole_set(request.query)
    plain, tight = alpha_bounds(problem, request)
    first = forms_bound(problem, plain, request)

    def settled(lower: Tensor, items: Tensor) -> Tensor:
        return torch.zeros(len(items), dtype=torch.bool)

    found = optimise(
        Bounded(problem, tight),
        Forms(*request.query.property.forms()),
        settled,
        OptimiserOptions(steps=FINAL_STEPS),
        expired=request.deadline.expired,
        memory_bytes=request.memory_bytes,
    )
    # Adaptive slopes are not monotone in the bounds, so the first bound may be the better one.
    late = request.deadline.expired()
    note = "slopes are not at their best" if late else ""
    return Found(max(first, float(found.lower.min())), note=note, late=late)


# --- programs ---------------------------------------------------------------------------------------------


def _programs(request: Request) -> Iterator[Encoded]:
    """Encodes the program of every clause on the whole set, with the bounds of `stbp-alpha`."""
    query = request.query
    maps, region = normal_form(query.model.network), InputRegion.of(query.set.build(query.clip))
    _, bounds = alpha_bounds(whole_set(query), request)
    for clause in query.property.clauses:
        rows = list(clause)
        form, offset = query.property.rows[rows].numpy(), query.property.offset[rows].numpy()
        yield encode(maps, region, flat_boxes(bounds), form, offset)


def _linear(request: Request) -> Found:
    """The triangle relaxation of every undecided ReLU, the set by the convex hull of its members.

    The result is the dual bound, recomputed from the solver's multipliers, so it is rigorous.
    """
    lower = math.inf
    for encoded in _programs(request):
        program = encoded.program
        seconds = request.deadline.remaining()
        value = program.offset
        if program.variables:
            value += LinearRelaxation(program, request.seed).minimum(program.cost, seconds)
        lower = min(lower, value)
    late = request.deadline.expired()
    return Found(lower, note="not the optimum of the linear program" if late else "", late=late)


def _second_opinion(request: Request) -> Found:
    from stbp_milp.tightness.second_opinion import least_margin  # cvxpy takes a second to import

    _, bounds = alpha_bounds(whole_set(request.query), request)
    lower = least_margin(request.query, flat_boxes(bounds), request.deadline.remaining())
    return Found(lower, certified=lower > PROOF_MARGIN)


def _milp(request: Request) -> Found:
    """The exact program, minimised to its optimum, on the members that can hold the least margin; see `members`."""
    found = _attack(request)
    return exact_minimum(request, found.upper)


def _search(request: Request) -> Found:
    """The verifier's search, run until the proved bound is within 1e-4 of an observed margin; see `optimum`."""
    short = replace(request, deadline=request.deadline.within(0.1 * request.deadline.remaining()))
    return searched_minimum(request, _attack(short).upper)


def _complete(request: Request) -> Found:
    outcome = verify(request.query, request.configuration())
    return Found(outcome.lower, outcome.upper, outcome.word == "verified", outcome.word)


def _attack(request: Request) -> Found:
    query = request.query
    generator = torch.Generator().manual_seed(request.seed)
    lowest = AttackConfiguration(stop_below=-math.inf)
    result = attack(
        query.model.network,
        query.set.build(query.clip),
        query.property,
        generator,
        request.deadline.expired,
        lowest,
    )
    return Found(-math.inf, margin(query, result.clip), False, f"{result.trials} trials")


METHODS = {
    method.name: method
    for method in (
        Method("attack", "attack", _attack),
        Method("box-interval", "box", lambda request: _intervals(whole_box(request.query), request.query)),
        Method("stbp-interval", "stbp", lambda request: _intervals(whole_set(request.query), request.query)),
        Method("box-backward", "box", lambda request: _backward(whole_box(request.query), request)),
        Method("stbp-backward", "stbp", lambda request: _backward(whole_set(request.query), request)),
        Method("stbp-alpha", "stbp", _alpha),
        Method("per-member", "member", least_of_members),
        Method("lp", "lp", _linear),
        Method("lp-cvxpy", "lp", _second_opinion, 1e-5),
        Method("complete", "exact", _complete, 1e-5),
        Method("search", "exact", _search, 1e-5),
        Method("milp", "exact", _milp, 1e-5),
    )
}
"""All methods by name, from quick to exact, after the attack, which gives an upper bound."""
