"""The methods that are compared: a query in, a lower bound of its margin out.

The *whole-clip box* is the smallest box around the set: the whole clip's wherever every frame may move. *STBP* bounds
the set itself: the closed form in the first layer, the support function at the end of every backward pass. A bound is
the least over the property's clauses; a clause of several rows counts by the mean of its rows, but `lp`, `lp-cvxpy`,
`milp` and `complete` take the largest of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solvers import LinearRelaxation, SolveLimits, Termination
from stbp_milp.attack import AttackConfiguration, attack
from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.cells import cell_problem, cells
from stbp_milp.bounds.interval import Interval, interval
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Preactivations, Problem
from stbp_milp.milp import PROOF_MARGIN, Encoded, InputRegion, encode, minimum, tighten
from stbp_milp.network.layers import Linear, ReLU
from stbp_milp.network.normal_form import normal_form
from stbp_milp.network.operations import apply
from stbp_milp.query import Configuration, Query
from stbp_milp.search import Deadline
from stbp_milp.sets import Patch, PerturbationSet, VoxelBox, concatenate, divide
from stbp_milp.verify import verify

HIDDEN_STEPS, FINAL_STEPS = 12, 60  # of gradient ascent on slopes: every hidden neuron's, and the property's
MEMBERS_AT_MOST, GROUPS = 4096, 64
_MEMBERS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Request:
    """A question and what answering it may take.

    Attributes:
        memory_bytes: what batches and solvers are planned by.
    """

    query: Query
    deadline: Deadline
    memory_bytes: int = 1 << 30
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What a method says of the least margin over the set, in the unit of the network's output.

    Attributes:
        lower: proved, minus infinity where nothing is.
        upper: seen on a clip of the set, infinity where none was.
        certified: is the margin positive? None: where `lower` exceeds what rounding can have added.
        note: what should be known about the number.
    """

    lower: float
    upper: float = math.inf
    certified: bool | None = None
    note: str = ""


Run = Callable[[Request], Found]


@dataclass(frozen=True)
class Method:
    """A method by name.

    Attributes:
        family: of methods drawn in one colour: "box", "stbp", "member", "lp", "exact", "attack".
        tolerance: how far, relative to 1 + |bound|, its bound may lie above the truth: solvers keep rows to 1e-6.
    """

    name: str
    family: str
    run: Run
    tolerance: float = 1e-6


def whole_set(query: Query) -> Problem:
    """The network on the set itself."""
    return Problem.of(query.model.network, query.set.build(query.clip))


def whole_box(query: Query) -> Problem:
    """The network on the smallest box around the set."""
    inputs = VoxelBox(query.clip.unsqueeze(0), *query.set.build(query.clip).hull())
    return Problem.of(query.model.network, inputs)


def alpha_bounds(problem: Problem, request: Request) -> tuple[dict[int, Interval], dict[int, Interval]]:
    """Bounds of ReLU operands by backward passes, and the same improved by ascent on hidden slopes."""
    plain = preactivations(problem, BoundingOptions(), expired=request.deadline.expired)
    half = request.deadline.within(0.5 * request.deadline.remaining())
    options = BoundingOptions(slope_steps=HIDDEN_STEPS)
    return plain, preactivations(problem, options, plain, expired=half.expired, same_sets=True)


# --- one pass ---------------------------------------------------------------------------------------------


def _intervals(problem: Problem, query: Query) -> Found:
    bounds = preactivations(problem, BoundingOptions("interval"))
    return Found(float(interval_forms(problem, bounds, *query.property.forms()).min()))


def interval_forms(problem: Problem, bounds: Preactivations, rows: Tensor, offset: Tensor) -> Tensor:
    """Intervals to the end: lower bounds `(N, M)` of `rows @ output + offset`.

    A last linear layer is composed with the rows, as certified training does.
    """
    network, clean = problem.network, problem.clean
    last = len(network.nodes) - 1
    values: dict[int, Interval] = {0: Interval(*problem.inputs.hull())}
    for position, node in enumerate(network.nodes[1:], start=1):
        if isinstance(node.layer, ReLU):
            values[position] = interval(node.layer, [bounds[position]], [], clean[position])
            continue
        layer, operands = node.layer, [clean[i] for i in node.inputs]
        if position == last and isinstance(layer, Linear):
            layer = Linear(rows @ layer.weight, rows @ layer.bias + offset)
            return interval(layer, [values[i] for i in node.inputs], operands, apply(layer, operands)).lower
        values[position] = interval(layer, [values[i] for i in node.inputs], operands, clean[position])
    output, layer = values[last], Linear(rows, offset)
    return interval(layer, [output], [clean[last]], apply(layer, [clean[last]])).lower


def _backward(problem: Problem, request: Request) -> Found:
    bounds = preactivations(problem, BoundingOptions(), expired=request.deadline.expired)
    return Found(_forms(problem, bounds, request))


def _forms(problem: Problem, bounds: Preactivations, request: Request) -> float:
    rows, offset = request.query.property.forms()
    memory, expired = request.memory_bytes, request.deadline.expired
    return float(bound_once(problem, bounds, rows, offset, memory_bytes=memory, expired=expired).lower.min())


def _alpha(request: Request) -> Found:
    problem = whole_set(request.query)
    plain, tight = alpha_bounds(problem, request)
    first = _forms(problem, plain, request)

    def settled(lower: Tensor, items: Tensor) -> Tensor:
        return torch.zeros(len(items), dtype=torch.bool)

    found = optimise(
        problem,
        tight,
        *request.query.property.forms(),
        settled,
        OptimiserOptions(steps=FINAL_STEPS),
        expired=request.deadline.expired,
        memory_bytes=request.memory_bytes,
    )
    # Adaptive slopes are not monotone in the bounds, so the first bound may be the better one.
    note = "out of time: slopes are not at their best" if request.deadline.expired() else ""
    return Found(max(first, float(found.lower.min())), note=note)


# --- members ----------------------------------------------------------------------------------------------


def _members(request: Request) -> Found:
    """The least of the members' backward bounds; of groups' where members are too many to be listed."""
    query = request.query
    whole = query.set.build(query.clip)
    assert isinstance(whole, PerturbationSet)
    problem = Problem.of(query.model.network, whole)
    count = float(whole.choice.members()[0])
    listed = count <= MEMBERS_AT_MOST
    parts = whole.singletons() if listed else concatenate(divide(whole, GROUPS))
    lower, done = math.inf, 0
    for batch in _batches(problem, parts, listed):
        if request.deadline.expired():
            return Found(-math.inf, note=f"out of time after {done} of {parts.parts} members")
        bounds = preactivations(batch, BoundingOptions(), expired=request.deadline.expired)
        lower, done = min(lower, _forms(batch, bounds, request)), done + batch.parts
    return Found(lower, note=f"{done} members" if listed else f"{done} groups of {count:.4g} members")


def _batches(problem: Problem, parts: PerturbationSet, members: bool) -> Iterator[Problem]:
    """The parts some at a time; patches on crops of every layer, where that is a saving."""
    if members and isinstance(parts.choice, Patch) and parts.choice.size != parts.choice.voxels:
        for cell in cells(problem.network, parts):
            own = cell_problem(problem, parts.select(cell.members), cell.voxels)
            for items in torch.split(torch.arange(own.parts), _MEMBERS_AT_ONCE):
                yield own.select(items)
        return
    for items in torch.split(torch.arange(parts.parts), _MEMBERS_AT_ONCE):
        yield problem.with_inputs(parts.select(items))


# --- programs ---------------------------------------------------------------------------------------------


def flat_boxes(bounds: Preactivations) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Bounds of one set for a program, each `(size,)`."""
    return {relu: (b.lower.flatten().numpy(), b.upper.flatten().numpy()) for relu, b in bounds.items()}


def programs(request: Request, share: float = 0.0) -> Iterator[Encoded]:
    """The program of every clause, with the bounds of `stbp-alpha`; `share`: of the time for LP-based tightening."""
    query = request.query
    stages, region = normal_form(query.model.network), InputRegion.of(query.set.build(query.clip))
    _, bounds = alpha_bounds(whole_set(query), request)
    boxes = flat_boxes(bounds)
    if share:
        boxes = dict(tighten(stages, region, boxes, share * request.deadline.remaining()).boxes)
    for clause in query.property.clauses:
        rows = list(clause)
        yield encode(stages, region, boxes, query.property.rows[rows].numpy(), query.property.offset[rows].numpy())


def _linear(request: Request) -> Found:
    """The triangle relaxation of every undecided ReLU, the set by the convex hull of its members.

    What counts is the dual bound recomputed from the solver's multipliers, so it is rigorous.
    """
    lower = math.inf
    for encoded in programs(request):
        program = encoded.program
        seconds = request.deadline.remaining()
        value = program.offset
        if program.variables:
            value += LinearRelaxation(program, request.seed).minimum(program.cost, seconds)
        lower = min(lower, value)
    late = request.deadline.expired()
    return Found(lower, note="out of time: not the optimum of the linear program" if late else "")


def _second_opinion(request: Request) -> Found:
    from stbp_milp.tightness.second_opinion import least_margin  # cvxpy takes a second to import

    _, bounds = alpha_bounds(whole_set(request.query), request)
    lower = least_margin(request.query, flat_boxes(bounds), request.deadline.remaining())
    return Found(lower, certified=lower > PROOF_MARGIN)


def _milp(request: Request) -> Found:
    """The exact program, minimised to its optimum clause by clause."""
    query = request.query
    lower = upper = math.inf
    clauses, terminations = len(query.property.clauses), []
    for done, encoded in enumerate(programs(request, share=0.2)):
        seconds = request.deadline.remaining() / (clauses - done)
        limits = SolveLimits(seconds, memory_bytes=request.memory_bytes, threads=request.threads, seed=request.seed)
        result = minimum(encoded, "auto", limits)
        lower = min(lower, result.dual_bound)
        terminations.append(result.termination)
        if result.candidate is not None:
            upper = min(upper, margin(query, torch.from_numpy(result.candidate)))
    late = sum(termination is not Termination.OPTIMAL for termination in terminations)
    note = f"{late} of {clauses} clauses not to the optimum" if late else ""
    return Found(lower, upper, certified=lower > PROOF_MARGIN, note=note)


def _complete(request: Request) -> Found:
    left = request.deadline.remaining()
    configuration = Configuration(left, "auto", request.seed, request.threads, request.memory_bytes)
    outcome = verify(request.query, configuration)
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


def margin(query: Query, clip: Tensor) -> float:
    """The margin of one clip (C, T, H, W) by the network in float64."""
    with torch.no_grad():
        return float(query.property.margin(query.model.network(clip.to(torch.float64).unsqueeze(0))))


METHODS = {
    method.name: method
    for method in (
        Method("attack", "attack", _attack),
        Method("box-interval", "box", lambda request: _intervals(whole_box(request.query), request.query)),
        Method("stbp-interval", "stbp", lambda request: _intervals(whole_set(request.query), request.query)),
        Method("box-backward", "box", lambda request: _backward(whole_box(request.query), request)),
        Method("stbp-backward", "stbp", lambda request: _backward(whole_set(request.query), request)),
        Method("stbp-alpha", "stbp", _alpha),
        Method("per-member", "member", _members),
        Method("lp", "lp", _linear),
        Method("lp-cvxpy", "lp", _second_opinion, 1e-5),
        Method("complete", "exact", _complete, 1e-5),
        Method("milp", "exact", _milp, 1e-5),
    )
}
"""Every method by its name, from quick to exact; the attack first, for its upper bound."""
