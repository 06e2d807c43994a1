"""Backward linear bounds: a linear form on a node becomes a linear form on the input plus a constant.

    <form, value(node)> >= <form, clean(node)> + <input_form, x - centre> + constant - error   for every x of the set,

and the input's support function completes it: `min = ... - deviation(-input_form)`, exact for that form and set. The
error bounds the effect of rounding (`bounds.rounding`); it is computed for problems whose bounds are claimed.
Affine layers transpose the form; a ReLU multiplies it by its lower slope where positive, its upper slope where
negative (CROWN, Zhang et al. 2018), and adds `-sign * multiplier * z` for split neurons (beta-CROWN, Wang et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stbp_milp.bounds.ideal import through_planes
from stbp_milp.bounds.lines import Lines
from stbp_milp.bounds.problem import Problem, Relaxed
from stbp_milp.bounds.relaxation import Relaxation
from stbp_milp.network.layers import Concatenate, Linear, Nonlinear, Permute, Reshape
from stbp_milp.network.operations import reads, transpose
from stbp_milp.sets import InputSet, inner

FORMS_ALIVE = 4  # copies of a batch of forms that a backward pass holds at once (form, slope, product, transpose)


@dataclass(frozen=True, eq=False)
class InputForm:
    """A linear lower bound on the set: `value >= constant + <form, x - centre> - error`.

    Attributes:
        form: `(N, M, *input_shape)`.
        constant: `(N, M)`.
        error: `(N, M)`; None if rounding is not counted.
    """

    form: Tensor
    constant: Tensor
    error: Tensor | None = None

    def lower(self, inputs: InputSet) -> Tensor:
        """Computes the lower bound over each set, `(N, M)`; it is never NaN if rounding is counted."""
        lower = self.constant - inputs.deviation(-self.form)
        if self.error is None:
            return lower
        lower = lower - self.error
        return lower.masked_fill(lower.isnan(), -torch.inf)


@dataclass(frozen=True, eq=False)
class Split:
    """One split neuron per form: its ReLU's node, its flat position, and +1 (active) or -1; `(N, M)` each."""

    relu: Tensor
    neuron: Tensor
    sign: Tensor


@dataclass(frozen=True, eq=False)
class NodeForms:
    """M affine forms on a node for each of N items, from which a backward pass starts.

    Attributes:
        node: the position of the node.
        form: `(N, M, *shape of node)`.
        constant: `(N, M)` if the forms are on deviations: what is added to them. None if they are on values.
    """

    node: int
    form: Tensor
    constant: Tensor | None = None


def input_form(
    problem: Problem,
    relaxations: Mapping[int, Relaxed],
    start: NodeForms,
    multipliers: Mapping[int, Tensor] | None = None,
    record: dict[int, Tensor] | None = None,
    split: Split | None = None,
) -> InputForm:
    """Propagates forms back to the input.

    Args:
        problem: if rounding is counted, it has the sizes of all nodes up to the one where the forms start.
        start: the forms.
        relaxations: one for every nonlinear node before that node.
        multipliers: the signed multipliers of nonlinear nodes with split neurons, `(N, M, *shape)`: for ReLUs
            `sign * beta`, and the bound holds where `sign * z >= 0`; for others of any sign, and it holds on the bounds
            of the operand.
        record: if given, receives the form on every nonlinear node's output, for branching scores.
        split: one neuron per form whose phase is taken as known.
    """
    network = problem.network
    node, form, constant = start.node, start.form, start.constant
    pending: dict[int, Tensor] = {node: form}
    error = _cost_of_start(problem, node, form, constant is None)
    if constant is None:
        constant = inner(form, problem.clean[node])
    for position in range(node, 0, -1):
        current = pending.pop(position, None)
        if current is None:
            continue
        layer, operands = network.nodes[position].layer, network.nodes[position].inputs
        own = None if multipliers is None else multipliers.get(position)
        if error is not None:
            error = error + _cost_of_node(problem, position, current, relaxations.get(position), own, position == node)
        if isinstance(layer, Nonlinear):
            if record is not None:
                record[position] = current.detach()
            back, onto_input, gap = _through(current, relaxations[position], position, own, split, network.input_shape)
            constant = constant + gap
            _accumulate(pending, operands[0], back)
            if onto_input is not None:
                _accumulate(pending, 0, onto_input)
            continue
        for i, operand in enumerate(operands):
            if reads(layer, i):
                _accumulate(pending, operand, transpose(layer, i, current, network.nodes[operand].shape))
    if 0 not in pending:  # the node does not depend on the input
        pending[0] = form.new_zeros(*form.shape[:2], *network.input_shape)
    if error is not None and problem.rounding is not None and node:
        error = error + _cost(pending[0], problem.rounding.weight(0))
    return InputForm(pending[0], constant, error)


def _cost_of_start(problem: Problem, node: int, form: Tensor, of_values: bool) -> Tensor | None:
    """Bounds the effect of rounding on a form on values or deviations, `(N, M)`; None if it is not counted."""
    rounding = problem.rounding
    if rounding is None:
        return None
    weight = rounding.weight(node)
    return _cost(form, weight + rounding.errors[node] if of_values else weight)


def _cost_of_node(
    problem: Problem,
    position: int,
    form: Tensor,
    lines: Relaxed | None,
    multiplier: Tensor | None,
    first: bool,
) -> Tensor | float:
    """Bounds the effect of rounding on a form that passes a node, `(N, M)`; the `first` one's size counts already."""
    rounding, layer = problem.rounding, problem.network.nodes[position].layer
    assert rounding is not None
    weights = []
    if not first and not isinstance(layer, Reshape | Permute | Concatenate):  # which round nothing
        weights.append(rounding.weight(position))
    if lines is not None and lines.error is not None:
        weights.append(lines.error)
    cost = _cost(form, sum(weights[1:], weights[0])) if weights else 0.0
    if multiplier is None:
        return cost
    weight = rounding.of_multiplier(problem.network.operand(position))
    if isinstance(lines, Lines):
        weight = weight + 2 * problem.gamma * (lines.bounds.lower.abs() + lines.bounds.upper.abs())
    return cost + _cost(multiplier, weight)


def _cost(form: Tensor, weight: Tensor) -> Tensor:
    """Computes `|form| . weight`, `(N, M)`, for weights `(N or 1, *shape)`."""
    return inner(form.abs(), weight)


def neuron_forms(problem: Problem, node: int, neurons: Tensor) -> NodeForms:
    """Returns forms on deviations of single neurons of a node: the M neurons, followed by their negatives.

    The forms of a linear layer's neurons are its rows, one layer further back, which saves the product with unit
    vectors. Rows that were composed of several layers have a rounding error of their own: the constant `(N, M)`.

    Args:
        problem: if rounding is counted, it has the sizes of all nodes up to `node`.
        neurons: flat indices `(N, M)`.
    """
    network, rounding = problem.network, problem.rounding
    layer, shape = network.nodes[node].layer, network.nodes[node].shape
    none = torch.zeros(neurons.shape, dtype=network.dtype, device=neurons.device)
    if isinstance(layer, Linear):
        if rounding is not None and (layer.magnitude is not None or node in rounding.composed):
            none = none - rounding.weight(node).flatten()[neurons]
        return _both_ways(network.nodes[node].inputs[0], layer.weight[neurons], none)
    unit = none.new_zeros(*neurons.shape, math.prod(shape)).scatter_(2, neurons.unsqueeze(-1), 1.0)
    return _both_ways(node, unit.view(*neurons.shape, *shape), none)


def _both_ways(node: int, form: Tensor, constant: Tensor) -> NodeForms:
    return NodeForms(node, torch.cat([form, -form], 1), torch.cat([constant, constant], 1))


def _accumulate(pending: dict[int, Tensor], operand: int, form: Tensor) -> None:
    pending[operand] = pending[operand] + form if operand in pending else form


def _through(
    form: Tensor,
    lines: Relaxed,
    relu: int,
    multiplier: Tensor | None,
    split: Split | None,
    input_shape: tuple[int, ...],
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns the form on a node's operand, the form that planes carry to the input, and the constant."""
    if isinstance(lines, Lines):
        back, gap = lines.through(form)
        if multiplier is None:
            return back, None, gap
        return back - multiplier, None, gap + lines.held(multiplier)
    exact = onto_input = None
    constant = form.new_zeros(())
    if split is not None:
        form, exact, constant = _through_split(form, split, relu, lines.clean)
    if lines.planes is not None:
        form, onto_input, gap = through_planes(form, lines.planes, input_shape)
        constant = constant + gap
    back, gap = _through_relu(form, lines)
    constant = constant + gap
    if multiplier is not None:
        back = back - multiplier
        constant = constant - inner(multiplier, lines.clean)
    return back if exact is None else back + exact, onto_input, constant


def _through_split(form: Tensor, split: Split, relu: int, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the form without the split neurons, the split neurons' exact form on the operand, and their constant."""
    flat, at = form.flatten(2), split.neuron.unsqueeze(-1)
    here = split.relu == relu
    at = torch.where(here.unsqueeze(-1), at, torch.zeros_like(at))
    own = torch.where(here, flat.gather(2, at).squeeze(-1), torch.zeros_like(split.sign))
    through = torch.where(split.sign > 0, own, torch.zeros_like(own))
    z = clean.flatten(1).expand(form.shape[0], -1).gather(1, at.squeeze(-1))
    exact = torch.zeros_like(flat).scatter_(2, at, through.unsqueeze(-1))
    rest = flat.scatter_add(2, at, -own.unsqueeze(-1))
    return rest.view_as(form), exact.view_as(form), through * z - own * z.clamp(min=0)


def _through_relu(form: Tensor, lines: Relaxation) -> tuple[Tensor, Tensor]:
    """Returns the form on the operand and the constant that the two lines contribute.

    The positive part of the form meets the lower line, the negative part the upper one.
    """
    positive = form.clamp(min=0)
    if lines.lower_slope.shape[1] == 1 and form.shape[1] > 1:  # shared lines: fewer passes over the forms
        slope, lower_gap = lines.lower_slope, lines.lower_slope.squeeze(1) * lines.clean - lines.output
        back = torch.addcmul(form * lines.upper_slope.unsqueeze(1), positive, slope - lines.upper_slope.unsqueeze(1))
        return back, inner(form, lines.upper_gap) + inner(positive, lower_gap - lines.upper_gap)
    below, negative = positive * lines.lower_slope, form - positive
    gap = inner(below, lines.clean) - inner(positive, lines.output) + inner(negative, lines.upper_gap)
    return torch.addcmul(below, negative, lines.upper_slope.unsqueeze(1)), gap
