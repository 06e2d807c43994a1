"""The choice of the ReLU to split: a score from the bound's own relaxation, then a look-ahead at the best candidates.

The score is the loss that a neuron's triangle can have caused in the bound (in the spirit of BaBSR, Bunel et al. 2020).
The few best candidates are split tentatively with the parent's slopes, and the one with the largest product of gains
wins (filtered smart branching, De Palma et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.lines import is_curved, looseness, undecided
from stbp_milp.bounds.objective import ObjectiveBound, bound_splits
from stbp_milp.bounds.problem import Preactivations
from stbp_milp.branching.piece import Batch
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Product

_FAR = 1e30  # what an infinite bound counts as where its middle is taken

FormOf = Callable[[Tensor], Forms]
"""Returns the form of each item, given its clause, `(N,)`."""


def scores(network: Network, bounds: Preactivations, found: ObjectiveBound) -> dict[int, Tensor]:
    """Computes how much every neuron's relaxation can have cost its item's form, `(N, *shape)`; 0 if decided."""
    result = {}
    for relu, interval in bounds.items():
        if relu not in found.relu_forms:
            continue
        form, layer = found.relu_forms[relu][:, 0], network.nodes[relu].layer
        if is_curved(layer):
            loss = looseness(layer, interval).masked_fill(~undecided(layer, interval), 0.0)
            size = form.abs()
            result[relu] = (torch.cat([size, size], 1) if isinstance(layer, Product) else size) * loss
            continue
        lower, upper = interval.lower, interval.upper
        unstable = interval.undecided
        # The upper line is highest above the ReLU at 0; the lower line is furthest below it at one of the ends.
        above = torch.where(unstable, -lower * upper / (upper - lower).clamp(min=1e-12), 0.0)
        slope = found.duals.slopes.get(relu)
        alpha = slope[:, 0] if slope is not None else (upper > -lower).to(form.dtype)
        below = torch.where(unstable, torch.maximum(-alpha * lower, (1 - alpha) * upper), 0.0)
        result[relu] = form.clamp(max=0).abs() * above + form.clamp(min=0) * below
    return result


def candidates(score: dict[int, Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the best `count` neurons per item: ReLU position, flat neuron index and score, each `(N, count)`."""
    neurons = torch.cat([torch.arange(s[0].numel(), device=s.device) for s in score.values()])
    relus = torch.cat([neurons.new_full((s[0].numel(),), relu) for relu, s in score.items()])
    values, at = torch.cat([s.flatten(1) for s in score.values()], 1).topk(count, dim=1)
    return relus[at], neurons[at], values


def split_phase(batch: Batch, relu: Tensor, neuron: Tensor, sign: float) -> Batch:
    """Returns the batch with one neuron of every item on one side of its split.

    A ReLU is active (+1) or inactive (-1); other layers have their operand above or below the middle of its bounds.
    """
    bounds, phases = dict(batch.bounded.bounds), dict(batch.bounded.phases)
    for position in torch.unique(relu).tolist():
        rows = (relu == position).nonzero().flatten()
        old = bounds[position]
        lower, upper = old.lower.flatten(1).clone(), old.upper.flatten(1).clone()
        phase = phases.get(position, torch.zeros_like(old.lower)).flatten(1).clone()
        at = (rows, neuron[rows])
        curved = is_curved(batch.problem.network.nodes[position].layer)
        middle = (lower[at].clamp(min=-_FAR) + upper[at].clamp(max=_FAR)) / 2
        point = middle if curved else torch.zeros_like(middle)
        if sign > 0:
            lower[at] = torch.maximum(lower[at], point)
        else:
            upper[at] = torch.minimum(upper[at], point)
        phase[at] = 1.0 if curved else sign
        bounds[position] = Interval(lower.view_as(old.lower), upper.view_as(old.upper))
        phases[position] = phase.view_as(old.lower)
    return replace(batch, bounded=Bounded(batch.problem, bounds, phases))


@dataclass(frozen=True, eq=False)
class Choice:
    """The neuron to split for every item, `(N,)` each.

    Attributes:
        relu, neuron: the neuron; meaningless where `exists` is False.
        exists: does the form depend on any undecided neuron?
        lower: the bound of the worse child in the look-ahead; the parent's bound without a look-ahead.
    """

    relu: Tensor
    neuron: Tensor
    exists: Tensor
    lower: Tensor


def choose(batch: Batch, found: ObjectiveBound, form_of: FormOf, width: int, at_once: int = 1 << 30) -> Choice:
    """Chooses the best neuron to split for every item.

    Args:
        width: number of candidates of the look-ahead; 1 takes the best score.
        at_once: as for `looked_ahead`.
    """
    network = batch.problem.network
    score = scores(network, batch.bounded.bounds, found)
    if not network.is_piecewise_linear:
        width = 1  # a look-ahead knows the phases of ReLUs only
    if not score:
        nothing = torch.zeros_like(batch.clause)
        return Choice(nothing, nothing, nothing.bool(), found.lower[:, 0])
    total = sum(s[0].numel() for s in score.values())
    relu, neuron, value = candidates(score, min(width, total))
    exists = value[:, 0] > 0
    k = relu.shape[1]
    if k == 1:
        return Choice(relu[:, 0], neuron[:, 0], exists, found.lower[:, 0])
    sides = looked_ahead(batch, form_of, relu, neuron, at_once)
    pick = torch.where(value > 0, merit(sides, found), -torch.inf).argmax(1, keepdim=True)

    def at(values: Tensor) -> Tensor:
        return values.gather(1, pick).squeeze(1)

    return Choice(at(relu), at(neuron), exists, at(torch.minimum(*sides)))


def looked_ahead(
    batch: Batch, form_of: FormOf, relu: Tensor, neuron: Tensor, at_once: int = 1 << 30
) -> tuple[Tensor, Tensor]:
    """Bounds both children of a split at every candidate, each `(N, count)`.

    Args:
        at_once: number of forms that may pass through the network together.
    """
    forms = form_of(batch.clause).to(batch.lower.dtype)
    columns = max(1, at_once // (2 * batch.problem.parts))
    sides = [
        bound_splits(batch.bounded, forms, batch.duals, *some)
        for some in zip(torch.split(relu, columns, 1), torch.split(neuron, columns, 1), strict=True)
    ]
    first, second = torch.cat(sides, 2).unbind()
    return first, second


def merit(sides: tuple[Tensor, Tensor], found: ObjectiveBound) -> Tensor:
    """Computes the merit of splits, `(N, count)`: the product of both gains, as both children must be closed.

    Source: Achterberg, Koch, Martin 2005, Branching rules revisited.
    """
    first, second = ((side - found.lower[:, :1]).clamp(min=1e-6) for side in sides)
    return first * second
