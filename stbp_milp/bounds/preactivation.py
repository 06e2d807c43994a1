"""Pre-activation bounds, layer by layer: the closed form first, then intervals, then backward passes.

Cheap bounds come before expensive ones: only neurons that intervals leave undecided get a backward pass, in chunks
that fit a memory budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from stbp_milp.bounds.ascent import climb_neurons
from stbp_milp.bounds.backward import FORMS_ALIVE, input_form, neuron_forms
from stbp_milp.bounds.first_layer import first_layer
from stbp_milp.bounds.forward import ForwardForms, moved_voxels
from stbp_milp.bounds.forward import memory as forward_memory
from stbp_milp.bounds.interval import Interval, interval
from stbp_milp.bounds.lines import undecided
from stbp_milp.bounds.problem import Preactivations, Problem, Relaxed, select_preactivations
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Convolution, Linear, Nonlinear, Reshape, Scale
from stbp_milp.sets import PerturbationSet, VoxelBox


@dataclass(frozen=True)
class BoundingOptions:
    """How pre-activations are bounded.

    Attributes:
        deep: "backward" for a backward pass on undecided neurons, "interval" for intervals only.
        memory_bytes: memory for the forms of one chunk.
        slope_steps: gradient steps on the slopes below undecided neurons, where every neuron has its own slopes
            (alpha-CROWN on hidden layers); 0 keeps the adaptive slopes.
        work: the largest number of multiplications per item for backward passes to one layer; a layer whose undecided
            neurons would cost more keeps its intervals.
    """

    deep: Literal["backward", "interval"] = "backward"
    memory_bytes: int = 512 << 20
    slope_steps: int = 0
    work: float = math.inf


@torch.no_grad()
def preactivations(
    problem: Problem,
    options: BoundingOptions,
    known: Preactivations | None = None,
    fresh_from: int = 0,
    expired: Callable[[], bool] = lambda: False,
    same_sets: bool = False,
) -> dict[int, Interval]:
    """Computes bounds of all pre-activations.

    Args:
        known: bounds that hold already (a parent's, with the phases of split neurons); the result is never weaker.
        fresh_from: ReLUs at node positions below this one keep their known bounds.
        expired: ends backward passes and gradient steps early, with the best bounds so far.
        same_sets: were the known bounds computed for these very sets? Those of affine functions of the input are then
            exact.
    """
    network = problem.network
    last_use = {i: position for position, node in enumerate(network.nodes) for i in node.inputs}
    layers = _Layers(problem, options, expired)
    moved: dict[int, Interval] = {0: _hull(problem)}  # deviations of nodes that later nodes still read
    for position, node in enumerate(network.nodes[1:], start=1):
        if isinstance(node.layer, Nonlinear):
            operand = node.inputs[0]
            before = None if known is None else known[position]
            if before is not None and (position < fresh_from or (same_sets and layers.affine[operand])):
                own = before
            else:
                own, moved[operand] = layers.bounded(position, moved[operand], before)
            layers.bounds[position] = own
            moved[operand] = moved[operand].meet(problem.at(operand).deviations(own))
        operands = [moved[i] for i in node.inputs]
        result = interval(node.layer, operands, [problem.at(i) for i in node.inputs], problem.gamma)
        if problem.rounding is not None and position in problem.rounding.composed:
            result = result.widened(2 * problem.gamma * problem.rounding.composed[position])
        moved[position] = result
        for i in node.inputs:
            if last_use[i] == position:
                moved.pop(i, None)
    return layers.bounds


class _Layers:
    """The state of bounding one layer after the other. Mutable, for one pass through a network."""

    def __init__(self, problem: Problem, options: BoundingOptions, expired: Callable[[], bool]) -> None:
        self._problem, self._options, self._expired = problem, options, expired
        self.affine = problem.network.affine_depth()
        self.bounds: dict[int, Interval] = {}
        self._below = problem.network.multiplications()
        self._relaxations: dict[int, Relaxed] = {}
        self._forward: ForwardForms | None = None

    @cached_property
    def _columns(self) -> float:
        """The number of columns of forward forms; infinite if they do not fit into memory, or have no rules."""
        if not self._problem.network.is_piecewise_linear:
            return math.inf
        columns = len(moved_voxels(self._problem))
        return columns if forward_memory(self._problem, columns) <= self._options.memory_bytes else math.inf

    def bounded(self, node: int, moved: Interval, known: Interval | None) -> tuple[Interval, Interval]:
        """Bounds the values and deviations of a nonlinear node's operand, given bounds that are known of both."""
        problem, options = self._problem, self._options
        layer, operand = problem.network.nodes[node].layer, problem.network.operand(node)
        clean = problem.at(operand)

        def values() -> Interval:
            own = clean.values(moved)
            return own if known is None else own.meet(known)

        if self.affine[operand]:
            closer = _exact(problem, operand, moved, options, self._below[operand])
            moved = moved if closer is None else moved.meet(closer)
        elif options.deep == "backward" and not self._expired():
            if _most(undecided(layer, values())) > 2 * self._columns:  # bounds all neurons at the cost of a few
                self._forward = self._forward or ForwardForms(problem)
                moved = moved.meet(self._forward.deviations(operand, self.bounds))
            wanted = undecided(layer, values())
            if 2 * _most(wanted) * self._below[operand] <= options.work:
                closer = self._backward(operand, wanted)
                moved = moved if closer is None else moved.meet(closer)
        return values(), moved

    def _backward(self, operand: int, wanted: Tensor) -> Interval | None:
        self._problem = self._problem.sized(self.bounds, max(operand, *self.bounds))  # relaxations need their own too
        for relu in self.bounds.keys() - self._relaxations.keys():
            self._relaxations[relu] = self._problem.relaxation(relu, self.bounds[relu])
        return _backward(self._problem, operand, wanted, self._relaxations, self.bounds, self._options, self._expired)


def _hull(problem: Problem) -> Interval:
    """Returns the box of the inputs' deviations; its sides are differences, so the rounding error is relative."""
    lower, upper = problem.inputs.hull()
    centre = problem.inputs.centre
    return Interval((1 + 2 * problem.gamma) * (lower - centre), (1 + 2 * problem.gamma) * (upper - centre))


def empty(bounds: Preactivations, parts: int) -> Tensor:
    """Tells which items, `(N,)` bool, are empty: some neuron's lower bound exceeds its upper bound.

    Both bounds hold despite rounding, so if they cross no input of the item's set is left. If no phase was fixed,
    crossing bounds are a contradiction between bounding methods.
    """
    crossed = [(b.lower > b.upper).flatten(1).any(1) for b in bounds.values()]
    return torch.stack(crossed).any(0) if crossed else torch.zeros(parts, dtype=torch.bool)


def _exact(problem: Problem, operand: int, own: Interval, options: BoundingOptions, below: int) -> Interval | None:
    """Bounds deviations of an affine function of the input exactly: by the closed form, or by every row's support.

    Returns None if intervals are exact already, or if the supports would cost more than `work`.
    """
    if isinstance(problem.inputs, VoxelBox) and _one_mixing_layer(problem.network, operand):
        return None  # one linear form over a box
    if isinstance(problem.inputs, PerturbationSet):
        closed = first_layer(problem.network, problem.inputs, operand, problem.gamma, options.memory_bytes)
        if closed is not None:
            return closed
    if 2 * own.lower[0].numel() * below > options.work:
        return None
    everything = torch.ones_like(own.lower, dtype=torch.bool)
    return _backward(problem.sized({}, operand), operand, everything, {}, {}, options, lambda: False)


def _one_mixing_layer(network: Network, node: int) -> bool:
    mixing = 0
    while node:
        layer = network.nodes[node].layer
        if isinstance(layer, Convolution | Linear):
            mixing += 1
        elif not isinstance(layer, Scale | Reshape):
            return False
        (node,) = network.nodes[node].inputs
    return mixing <= 1


def _backward(
    problem: Problem,
    operand: int,
    wanted: Tensor,
    relaxations: dict[int, Relaxed],
    earlier: Preactivations,
    options: BoundingOptions,
    expired: Callable[[], bool],
) -> Interval | None:
    """Bounds deviations of the `wanted` neurons `(N, *shape)` by backward passes; all others stay unbounded."""
    flat = wanted.flatten(1)
    counts = flat.sum(1)
    most = int(counts.max())
    if not most:
        return None
    lower = torch.full(flat.shape, -torch.inf, dtype=problem.network.dtype, device=problem.device)
    upper = torch.full_like(lower, torch.inf)
    largest = max(node_size(problem.network, i) for i in range(operand + 1))
    per_row = FORMS_ALIVE * largest
    if options.slope_steps and earlier:  # memory for slopes, their gradients, Adam's two moments, and the graph
        shares = sum(ideal.terms for ideal in problem.ideal.values())
        per_row += 4 * sum(node_size(problem.network, relu) for relu in earlier) + 2 * per_row + 10 * shares
    affordable = max(1, options.memory_bytes // (2 * per_row * lower.element_size()))
    items_at_once = max(1, min(problem.parts, affordable // most))
    rows_at_once = min(most, affordable)
    # Every item's wanted neurons come first in its order; items with fewer are padded with others.
    order = flat.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    for items in torch.split(torch.arange(problem.parts, device=problem.device), items_at_once):
        part = problem if items_at_once >= problem.parts else problem.select(items)
        lines = relaxations if items_at_once >= problem.parts else {k: r.select(items) for k, r in relaxations.items()}
        for neurons in torch.split(order[items, : int(counts[items].max())], rows_at_once, dim=1):
            if expired():
                break  # the rest keep their intervals
            start = neuron_forms(part, operand, neurons)
            value = input_form(part, lines, start).lower(part.inputs)
            if options.slope_steps and earlier and not expired():
                below = earlier if items_at_once >= problem.parts else select_preactivations(earlier, items)
                better = climb_neurons(part, below, start, options.slope_steps, expired)
                value = torch.maximum(value, better)
            lower[items] = lower[items].scatter(1, neurons, value[:, : neurons.shape[1]])
            upper[items] = upper[items].scatter(1, neurons, -value[:, neurons.shape[1] :])
    return Interval(lower.view(wanted.shape), upper.view(wanted.shape))


def _most(wanted: Tensor) -> int:
    return int(wanted.flatten(1).sum(1).max())


def node_size(network: Network, position: int) -> int:
    return math.prod(network.nodes[position].shape)
