"""Bounds of every ReLU's operand, layer by layer: the closed form first, then intervals, then backward passes.

A quick bound comes before an expensive one: only neurons that intervals leave undecided get a backward pass, in
chunks under a memory budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stbp_milp.bounds.ascent import climb_neurons
from stbp_milp.bounds.backward import FORMS_ALIVE, input_form, neuron_forms
from stbp_milp.bounds.first_layer import first_layer
from stbp_milp.bounds.interval import Interval, interval
from stbp_milp.bounds.problem import Preactivations, Problem, select_preactivations
from stbp_milp.bounds.relaxation import Relaxation, relax
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Convolution, Linear, ReLU, Reshape, Scale
from stbp_milp.network.operations import products
from stbp_milp.sets import PerturbationSet, VoxelBox


@dataclass(frozen=True)
class BoundingOptions:
    """How operands of ReLUs are bounded.

    Attributes:
        deep: "backward" for a backward pass on undecided neurons, "interval" for intervals only.
        memory_bytes: what the forms of one chunk may take.
        slope_steps: gradient steps on the slopes below every undecided neuron, each with slopes of its own
            (alpha-CROWN on hidden layers); 0 keeps the adaptive ones.
        work: multiplications that backward passes to one layer may cost an item; a layer whose undecided neurons
            would cost more keeps its intervals.
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
    """Bounds of the operand of every ReLU.

    Args:
        known: bounds that hold already (a parent's, with the phases of split neurons); the result is never weaker.
        fresh_from: ReLUs at node positions below it keep their known bounds as they are.
        expired: ends backward passes and gradient steps early, with the best bounds so far.
        same_sets: the known bounds are of these very sets, so those of affine functions of the input are exact.
    """
    network = problem.network
    affine = network.affine_depth()
    below = multiplications(network)
    last_use = {i: position for position, node in enumerate(network.nodes) for i in node.inputs}
    lower, upper = problem.inputs.hull()
    values: dict[int, Interval] = {0: Interval(lower, upper)}
    bounds: dict[int, Interval] = {}
    relaxations: dict[int, Relaxation] = {}
    for position, node in enumerate(network.nodes[1:], start=1):
        if isinstance(node.layer, ReLU):
            operand = node.inputs[0]
            if known is not None and (position < fresh_from or (same_sets and affine[operand])):
                own = known[position]
            else:
                own = values[operand] if known is None else values[operand].meet(known[position])
                if affine[operand]:
                    own = own.meet(_exact(problem, operand, own, options, below[operand]))
                elif options.deep == "backward" and 2 * _most_undecided(own) * below[operand] <= options.work:
                    for earlier in bounds.keys() - relaxations.keys():
                        relaxations[earlier] = relax(bounds[earlier], problem.clean[network.nodes[earlier].inputs[0]])
                    own = _backward(problem, operand, own, relaxations, bounds, options, expired)
            bounds[position] = own
            values[operand] = own
        operands = [values[i] for i in node.inputs]
        values[position] = interval(
            node.layer, operands, [problem.clean[i] for i in node.inputs], problem.clean[position]
        )
        for i in node.inputs:
            if last_use[i] == position:
                values.pop(i, None)
    return bounds


def empty(bounds: Preactivations, parts: int, tolerance: float = 1e-9) -> Tensor:
    """`(N,)` bool: the bounds of some neuron contradict its phase, so no input of the item's set remains.

    The tolerance is relative to the neuron's magnitude, 1 at least: bounds of a neuron that cannot move meet in one
    number, and rounding may cross them. Says nothing where no phase was fixed.
    """
    crossed = [
        b.lower - b.upper > tolerance * (1 + torch.maximum(b.lower.abs(), b.upper.abs())) for b in bounds.values()
    ]
    return torch.stack([c.flatten(1).any(1) for c in crossed]).any(0)


def _exact(problem: Problem, operand: int, own: Interval, options: BoundingOptions, below: int) -> Interval:
    """Bounds of an affine function of the input: the closed form, or every row's support (intervals beyond `work`)."""
    if isinstance(problem.inputs, VoxelBox) and _one_mixing_layer(problem.network, operand):
        return own  # intervals are exact for one linear form over a box
    if isinstance(problem.inputs, PerturbationSet):
        closed = first_layer(problem.network, problem.clean[operand], problem.inputs, operand, options.memory_bytes)
        if closed is not None:
            return closed
    if 2 * own.lower[0].numel() * below > options.work:
        return own
    everything = Interval(torch.full_like(own.lower, -1.0), torch.full_like(own.upper, 1.0))
    return _backward(problem, operand, everything, {}, {}, options, lambda: False, exact=True)


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
    own: Interval,
    relaxations: dict[int, Relaxation],
    earlier: Preactivations,
    options: BoundingOptions,
    expired: Callable[[], bool],
    exact: bool = False,
) -> Interval:
    """`own` with every undecided neuron bounded by a backward pass of its own (`exact`: and nothing else counts)."""
    lower, upper = own.lower.flatten(1).clone(), own.upper.flatten(1).clone()
    undecided = own.undecided.flatten(1)
    counts = undecided.sum(1)
    most = int(counts.max())
    if not most:
        return own
    largest = max(node_size(problem.network, i) for i in range(operand + 1))
    per_row = FORMS_ALIVE * largest
    if options.slope_steps and earlier:  # slopes, their gradients and Adam's two moments, and the graph
        shares = sum(ideal.terms for ideal in problem.ideal.values())
        per_row += 4 * sum(node_size(problem.network, relu) for relu in earlier) + 2 * per_row + 10 * shares
    affordable = max(1, options.memory_bytes // (2 * per_row * lower.element_size()))
    items_at_once = max(1, min(problem.parts, affordable // most))
    rows_at_once = min(most, affordable)
    # The undecided neurons of every item come first in its order; items with fewer pad with neurons that are decided.
    order = undecided.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    for items in torch.split(torch.arange(problem.parts, device=problem.device), items_at_once):
        part = problem if items_at_once >= problem.parts else problem.select(items)
        lines = relaxations if items_at_once >= problem.parts else {k: r.select(items) for k, r in relaxations.items()}
        for neurons in torch.split(order[items, : int(counts[items].max())], rows_at_once, dim=1):
            if expired() and not exact:
                break  # intervals hold for the rest
            node, form, clean = neuron_forms(part.network, part.clean, operand, neurons)
            form, clean = torch.cat([form, -form], 1), torch.cat([clean, -clean], 1)
            value = input_form(part.network, part.clean, lines, node, form, constant=clean).lower(part.inputs)
            if options.slope_steps and earlier and not expired():
                below = earlier if items_at_once >= problem.parts else select_preactivations(earlier, items)
                value = torch.maximum(
                    value, climb_neurons(part, below, node, form, clean, options.slope_steps, expired)
                )
            low, high = value[:, : neurons.shape[1]], -value[:, neurons.shape[1] :]
            if not exact:
                low = torch.maximum(low, lower[items].gather(1, neurons))
                high = torch.minimum(high, upper[items].gather(1, neurons))
            lower[items] = lower[items].scatter(1, neurons, low)
            upper[items] = upper[items].scatter(1, neurons, high)
    return Interval(lower.view_as(own.lower), upper.view_as(own.upper))


def _most_undecided(bounds: Interval) -> int:
    return int(bounds.undecided.flatten(1).sum(1).max())


def multiplications(network: Network) -> list[int]:
    """Of every node: the multiplications that a form takes from it back to the input."""
    total, result = 0, []
    for node in network.nodes:
        total += products(node.layer, node.shape)
        result.append(total)
    return result


def node_size(network: Network, position: int) -> int:
    return math.prod(network.nodes[position].shape)
