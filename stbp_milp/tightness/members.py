"""Bounds member by member: the least of the members' bounds, and the exact optimum by programs on few members.

The exact optimum is a branch and bound over *pairs* of a member and a clause: the pair with the lowest bound goes to
the MILP next, until the lowest remaining bound is no lower than an observed margin. A set with too many members to list
counts as one member whose choice is modelled by binaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from solvers import SolveLimits
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.cells import cell_problem, cells
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.milp import PROOF_MARGIN, InputRegion, encode, minimum, tighten
from stbp_milp.network.normal_form import AffineMap, normal_form
from stbp_milp.sets import Patch, PerturbationSet, VoxelBox, concatenate, divide
from stbp_milp.tightness.bounding import Found, Request, alpha_bounds, flat_boxes, margin, whole_set

MEMBERS_AT_MOST, GROUPS = 4096, 64
_AT_ONCE = 32
_TIGHTEN_SHARE = 0.2  # the share of a program's time for LP-based tightening


def least_of_members(request: Request) -> Found:
    """Returns the least of the members' backward bounds, or of groups' bounds if there are too many members to list."""
    whole = _built(request)
    count = float(whole.choice.members()[0])
    listed = count <= MEMBERS_AT_MOST
    parts = whole.singletons() if listed else concatenate(divide(whole, GROUPS))
    lower, done = math.inf, 0
    for _, bounds in _bounded(request, parts, listed):
        lower, done = min(lower, float(bounds.min())), done + len(bounds)
    if done < parts.parts:
        return Found(-math.inf, note=f"out of time after {done} of {parts.parts} members", late=True)
    return Found(lower, note=f"{done} members" if listed else f"{done} groups of {count:.4g} members")


def exact_minimum(request: Request, upper: float) -> Found:
    """Finds the smallest margin over the set, as far as time allows.

    Args:
        upper: an observed margin.
    """
    query, whole = request.query, _built(request)
    listed = float(whole.choice.members()[0]) <= MEMBERS_AT_MOST
    members = whole.singletons() if listed else whole
    bound = torch.full((members.parts, len(query.property.clauses)), -torch.inf, dtype=torch.float64)
    first = replace(request, deadline=request.deadline.within(0.3 * request.deadline.remaining()))
    for items, bounds in _bounded(first, members, listed):
        bound[items] = bounds
    maps = normal_form(query.model.network)
    solved = torch.zeros_like(bound, dtype=torch.bool)
    programs, tolerance = 0, PROOF_MARGIN
    while not request.deadline.expired():
        open_ = bound.where(~solved & (bound < upper), torch.inf)
        if not bool(torch.isfinite(open_).any()) and not bool((open_ == -torch.inf).any()):
            break
        member, clause = divmod(int(open_.argmin()), bound.shape[1])
        lower, slack, seen = _solved(request, maps, members.select(torch.tensor([member])), clause, upper)
        bound[member, clause] = max(float(bound[member, clause]), lower)
        upper, programs, tolerance = min(upper, seen), programs + 1, max(tolerance, slack)
        solved[member, clause] = True
    lower = float(bound.min())
    left = int((~solved & (bound < upper)).sum())
    note = f"{programs} programs" if not left else f"{programs} programs, {left} left"
    return Found(lower, upper, certified=lower > tolerance, note=note, late=left > 0)


def _solved(
    request: Request, maps: tuple[AffineMap, ...], member: PerturbationSet, clause: int, upper: float
) -> tuple[float, float, float]:
    """Returns a clause's dual bound on a member (its optimum, or above `upper`), its tolerance, and a margin."""
    query, region = request.query, InputRegion.of(member)
    problem = whole_set(query).with_inputs(member)
    if region.choice is None:
        problem = problem.with_inputs(VoxelBox(member.centre, *member.hull()))
    boxes = flat_boxes(alpha_bounds(problem, request)[1])
    boxes = dict(tighten(maps, region, boxes, _TIGHTEN_SHARE * request.deadline.remaining()).boxes)
    rows = list(query.property.clauses[clause])
    encoded = encode(maps, region, boxes, query.property.rows[rows].numpy(), query.property.offset[rows].numpy())
    left, memory = request.deadline.remaining(), request.memory_bytes
    # A bound this far above an observed margin settles the pair, the solver's tolerance included.
    limits = SolveLimits(left, upper + encoded.tolerance, None, memory, request.threads, request.seed)
    result = minimum(encoded, "auto", limits)
    seen = math.inf if result.candidate is None else margin(query, torch.from_numpy(result.candidate))
    return result.dual_bound, result.tolerance, seen


def _built(request: Request) -> PerturbationSet:
    return request.query.set.build(request.query.clip)


def _bounded(request: Request, parts: PerturbationSet, members: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields parts and their backward bounds `(n, clauses)`, batch by batch while time allows."""
    forms = Forms(*request.query.property.forms())
    expired = request.deadline.expired
    problem = Problem.of(request.query.model.network, parts)
    for items, batch in _batches(problem, parts, members):
        if expired():
            return
        bounds = preactivations(batch, BoundingOptions(), expired=expired)
        yield items, bound_once(Bounded(batch, bounds), forms, memory_bytes=request.memory_bytes).lower


def _batches(problem: Problem, parts: PerturbationSet, members: bool) -> Iterator[tuple[Tensor, Problem]]:
    """Yields the parts in batches; members that are patches are bounded on crops of every layer."""
    if members and isinstance(parts.choice, Patch) and parts.choice.size[1:] != parts.choice.voxels[1:]:
        for cell in cells(problem.network, parts):
            own = cell_problem(problem, parts.select(cell.members), cell.voxels)
            for at in _chunks(own.parts):
                yield cell.members[at], own.select(at)
        return
    for items in _chunks(parts.parts):
        yield items, problem.with_inputs(parts.select(items))


def _chunks(count: int) -> Sequence[Tensor]:
    return torch.split(torch.arange(count), _AT_ONCE)
