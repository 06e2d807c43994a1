"""Solving one piece as a mixed-integer program, with the bounds that are already known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solvers import Preference, SolveLimits, Termination
from stbp_milp.bounds.problem import Problem
from stbp_milp.branching.piece import Piece, stack
from stbp_milp.branching.views import WholeView
from stbp_milp.milp import Accuracy, InputRegion, MilpResult, cut_rounds, encode, minimum, tighten, until_sign
from stbp_milp.network.normal_form import AffineMap, normal_form
from stbp_milp.search import Deadline
from stbp_milp.verdict import Reason


@dataclass(frozen=True)
class ProgramOptions:
    """How programs are solved.

    Attributes:
        solver: the solver; "auto" takes Gurobi if its licence allows, then SCIP, then HiGHS.
        tighten_share: the share of the time that LP-based tightening may take.
        cut_rounds: rounds of ideal single-neuron cuts at the root. A round costs a small linear program and often
            proves the sign by itself; the solver gets only the cuts of the first round, as more would slow it down.
        start: whether the solver gets a first point, found by descent.
    """

    solver: Preference = "auto"
    memory_bytes: int = 2 << 30
    threads: int = 1
    seed: int = 0
    tighten_share: float = 0.3
    cut_rounds: int = 4
    start: bool = True


@dataclass(frozen=True, eq=False)
class Solved:
    """What a program established about a piece.

    Attributes:
        lower: proved lower bound, less the solver's tolerances; infinity if the phases leave no input.
        candidate: an input `(*input_shape)` that may break the property, or None.
        open_for: why the sign may still be open.
        report: what the solver reported, or None if it was not asked.
    """

    lower: float
    candidate: Tensor | None = None
    open_for: Reason = Reason.TOLERANCE
    report: MilpResult | None = None


def solve_piece(
    piece: Piece,
    whole_maps: Sequence[AffineMap],
    rows: Tensor,
    offset: Tensor,
    options: ProgramOptions,
    deadline: Deadline,
) -> Solved:
    """Tightens bounds, then minimises the piece's clause, the largest of `rows (R, K) @ output + offset (R,)`.

    If the program's numbers are so large that their rounding reaches a solver's tolerances, no solver is called.
    """
    batch = stack([piece])
    whole = isinstance(piece.family.view, WholeView)
    maps = tuple(whole_maps) if whole else normal_form(batch.problem.network)
    region = InputRegion.of(piece.inputs)
    boxes = {relu: (_flat(b.lower), _flat(b.upper)) for relu, b in piece.bounds.items()}
    phases = {relu: _flat(p).astype(int) for relu, p in piece.phases.items()}
    accuracy = _accuracy(batch.problem, maps, whole)
    tightened = tighten(maps, region, boxes, options.tighten_share * deadline.remaining(), phases, accuracy)
    if tightened.empty:
        return Solved(math.inf)
    if deadline.expired():
        return Solved(-math.inf, open_for=Reason.SOLVER_TIME)
    encoded = encode(maps, region, tightened.boxes, _flat(rows).reshape(rows.shape), _flat(offset), phases, accuracy)
    if deadline.expired():
        return Solved(-math.inf, open_for=Reason.SOLVER_TIME)
    proved = -math.inf
    if options.cut_rounds:
        weaker = encoded
        for done, (lower, stronger) in enumerate(cut_rounds(weaker, options.cut_rounds, 0.3 * deadline.remaining())):
            proved = max(proved, lower)
            if proved > 0.0:
                return Solved(proved)
            if done == 1:
                encoded = stronger
        if deadline.expired():
            return Solved(proved, open_for=Reason.SOLVER_TIME)
    if not encoded.trusted:
        return Solved(proved, open_for=Reason.ROUNDING)
    start = _descend(batch.problem, rows.mean(0)).cpu().numpy() if options.start else None
    limits = SolveLimits(
        deadline.remaining(), memory_bytes=options.memory_bytes, threads=options.threads, seed=options.seed
    )
    limits = until_sign(limits, encoded.tolerance)
    result = minimum(encoded, options.solver, limits, start)
    candidate = None if result.candidate is None else torch.from_numpy(result.candidate).to(rows.device)
    late = result.termination in (Termination.TIME, Termination.MEMORY)
    return Solved(max(proved, result.lower), candidate, Reason.SOLVER_TIME if late else Reason.TOLERANCE, result)


def _accuracy(problem: Problem, maps: Sequence[AffineMap], whole: bool) -> Accuracy:
    """Returns the accuracy of the maps: biases of derived networks contain clean values, with their errors."""
    if whole or problem.rounding is None:
        return Accuracy(problem.gamma)
    errors = {
        relu: _flat(problem.rounding.errors[problem.network.operand(relu)]) for relu in (None, *problem.network.relus)
    }
    sources = {0: _flat(problem.rounding.errors[0])} | {
        r: _flat(problem.rounding.errors[r]) for r in problem.network.relus
    }
    own = {
        affine.relu: errors[affine.relu] + sum(affine.magnitude(source) @ sources[source] for source in affine.weights)
        for affine in maps
    }
    if problem.rounding.composed:  # maps composed of several layers have a rounding error of their own
        for affine in maps:
            size = problem.rounding.composed.get(problem.network.operand(affine.relu))
            own[affine.relu] = own[affine.relu] + (0.0 if size is None else 4 * problem.gamma * _flat(size))
    return Accuracy(problem.gamma, own)


def _descend(problem: Problem, row: Tensor, steps: int = 10) -> Tensor:
    """Finds a point of the (only) set with a small `row @ output` by moving to the maximiser along the gradient."""
    point = problem.inputs.centre[:1]
    best, least = point[0], float("inf")
    for _ in range(steps):
        with torch.enable_grad():
            at = point.detach().requires_grad_(True)
            value = (problem.network(at) @ row).sum()
            (slope,) = torch.autograd.grad(value, at)
        if float(value.detach()) < least:
            best, least = point[0], float(value.detach())
        point = problem.inputs.maximiser(-slope.unsqueeze(1)).squeeze(1)
    return best


def _flat(values: Tensor) -> np.ndarray:
    return values.detach().reshape(-1).cpu().numpy()
