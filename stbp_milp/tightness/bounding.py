"""The input and the result of the compared methods, and the bounds that several of them build on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Preactivations, Problem
from stbp_milp.memory import resident
from stbp_milp.query import Configuration, Query
from stbp_milp.search import Deadline
from stbp_milp.sets import VoxelBox

HIDDEN_STEPS = 12  # steps of gradient ascent on the slopes of every hidden neuron


@dataclass(frozen=True, eq=False)
class Request:
    """A question and the limits for answering it.

    Attributes:
        memory_bytes: memory for batches and solvers, beyond what the process holds already.
    """

    query: Query
    deadline: Deadline
    memory_bytes: int = 1 << 30
    threads: int = 1
    seed: int = 0

    def configuration(self) -> Configuration:
        """For the verifier, with the time that is left; its limit is the whole process's."""
        held = resident() + self.memory_bytes
        return Configuration(self.deadline.remaining(), "auto", self.seed, self.threads, held)


@dataclass(frozen=True)
class Found:
    """A method's bounds of the smallest margin over the set, in the unit of the network's output.

    Attributes:
        lower: proved lower bound; minus infinity if nothing is proved.
        upper: smallest margin observed on a clip of the set; infinity without one.
        certified: is the margin proved to be positive? None: it is, if `lower` exceeds what rounding can have added.
        note: a remark about the number.
        late: did time run out before the method ended?
    """

    lower: float
    upper: float = math.inf
    certified: bool | None = None
    note: str = ""
    late: bool = False


def whole_set(query: Query) -> Problem:
    """The network on the set itself."""
    return Problem.of(query.model.network, query.set.build(query.clip))


def whole_box(query: Query) -> Problem:
    """The network on the smallest box around the set."""
    inputs = VoxelBox(query.clip.unsqueeze(0), *query.set.build(query.clip).hull())
    return Problem.of(query.model.network, inputs)


def alpha_bounds(problem: Problem, request: Request) -> tuple[dict[int, Interval], dict[int, Interval]]:
    """Returns pre-activation bounds by backward passes, and the same improved by ascent on hidden slopes."""
    plain = preactivations(problem, BoundingOptions(), expired=request.deadline.expired)
    half = request.deadline.within(0.5 * request.deadline.remaining())
    options = BoundingOptions(slope_steps=HIDDEN_STEPS)
    return plain, preactivations(problem, options, plain, expired=half.expired, same_sets=True)


def forms_bound(problem: Problem, bounds: Preactivations, request: Request) -> float:
    forms = Forms(*request.query.property.forms())
    memory, expired = request.memory_bytes, request.deadline.expired
    return float(bound_once(Bounded(problem, bounds), forms, memory_bytes=memory, expired=expired).lower.min())


def flat_boxes(bounds: Preactivations) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Converts the bounds of one set for a program, each `(size,)`."""
    return {relu: (b.lower.flatten().numpy(), b.upper.flatten().numpy()) for relu, b in bounds.items()}


def margin(query: Query, clip: Tensor) -> float:
    """Computes the margin of one clip (C, T, H, W) by the network in float64."""
    with torch.no_grad():
        return float(query.property.margin(query.model.network(clip.to(torch.float64).unsqueeze(0))))
