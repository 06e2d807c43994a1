"""Backward linear bounds: a linear form on a node becomes a linear form on the input plus a constant.

    <form, value(node)> >= <form, clean(node)> + <input_form, x - centre> + constant   for every x of the set,

and the input's support function ends it: `min = ... - deviation(-input_form)`, exactly for that form and set.
Affine layers transpose the form; a ReLU multiplies it by its lower slope where positive, its upper slope where
negative (CROWN, Zhang et al. 2018), and adds `-sign * multiplier * z` for split neurons (beta-CROWN, Wang et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stbp_milp.bounds.relaxation import Relaxation
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Linear, ReLU
from stbp_milp.network.operations import reads, transpose
from stbp_milp.sets import InputSet, inner

FORMS_ALIVE = 4  # copies of a batch of forms that a backward pass holds at once (form, slope, product, transpose)


@dataclass(frozen=True, eq=False)
class InputForm:
    """`value >= constant + <form, x - centre>` on the set; form `(N, M, *input_shape)`, constant `(N, M)`."""

    form: Tensor
    constant: Tensor

    def lower(self, inputs: InputSet) -> Tensor:
        """The least value over each set, `(N, M)`."""
        return self.constant - inputs.deviation(-self.form)


def input_form(
    network: Network,
    clean: Sequence[Tensor],
    relaxations: Mapping[int, Relaxation],
    node: int,
    form: Tensor,
    multipliers: Mapping[int, Tensor] | None = None,
    record: dict[int, Tensor] | None = None,
    constant: Tensor | None = None,
) -> InputForm:
    """Push forms `(N, M, *shape of node)` back to the input.

    Args:
        clean: values of all nodes at the centre, each `(N or 1, *shape)`.
        relaxations: one for every ReLU node before `node`.
        multipliers: for ReLU nodes with split neurons the signed multiplier `sign * beta`, `(N, M, *shape)`: the bound
            holds where `sign * z >= 0`.
        record: if given, receives the form on every ReLU's output, for branching scores.
        constant: the forms' clean values `(N, M)`, where they are not `<form, clean value of node>`.
    """
    pending: dict[int, Tensor] = {node: form}
    if constant is None:
        constant = inner(form, clean[node])
    for position in range(node, 0, -1):
        current = pending.pop(position, None)
        if current is None:
            continue
        layer, operands = network.nodes[position].layer, network.nodes[position].inputs
        if isinstance(layer, ReLU):
            operand = operands[0]
            if record is not None:
                record[position] = current.detach()
            back, gap = _through_relu(current, relaxations[position])
            constant = constant + gap
            if multipliers is not None and position in multipliers:
                back = back - multipliers[position]
                constant = constant - inner(multipliers[position], clean[operand])
            _accumulate(pending, operand, back)
            continue
        for i, operand in enumerate(operands):
            if reads(layer, i):
                _accumulate(pending, operand, transpose(layer, i, current, network.nodes[operand].shape))
    if 0 not in pending:  # the node does not depend on the input
        pending[0] = form.new_zeros(*form.shape[:2], *network.input_shape)
    return InputForm(pending[0], constant)


def neuron_forms(network: Network, clean: Sequence[Tensor], node: int, neurons: Tensor) -> tuple[int, Tensor, Tensor]:
    """Single neurons of a node as forms: where to start a backward pass, the forms there, their clean values.

    Args:
        neurons: flat indices `(N, M)`.

    Neurons of a matrix start as its rows, one layer further back: no product with unit vectors.
    """
    layer, shape = network.nodes[node].layer, network.nodes[node].shape
    value = clean[node].flatten(1).expand(neurons.shape[0], -1).gather(1, neurons)
    if isinstance(layer, Linear):
        return network.nodes[node].inputs[0], layer.weight[neurons], value
    unit = value.new_zeros(*neurons.shape, math.prod(shape)).scatter_(2, neurons.unsqueeze(-1), 1.0)
    return node, unit.view(*neurons.shape, *shape), value


def _accumulate(pending: dict[int, Tensor], operand: int, form: Tensor) -> None:
    pending[operand] = pending[operand] + form if operand in pending else form


def _through_relu(form: Tensor, relaxation: Relaxation) -> tuple[Tensor, Tensor]:
    """The form on the operand and the constant the two lines contribute.

    With p the positive part of the form, its product with the right line is `form * upper + p * (lower - upper)`.
    """
    positive = form.clamp(min=0)
    upper_slope, upper_gap = relaxation.upper_slope.unsqueeze(1), relaxation.upper_gap
    if relaxation.lower_slope.dim() == form.dim():  # slopes of their own for every form
        lower_slope, gap_difference = relaxation.lower_slope, relaxation.lower_gap - upper_gap.unsqueeze(1)
        gap = inner(form, upper_gap) + (positive * gap_difference).flatten(2).sum(-1)
    else:
        lower_slope = relaxation.lower_slope.unsqueeze(1)
        gap = inner(form, upper_gap) + inner(positive, relaxation.lower_gap - upper_gap)
    return torch.addcmul(form * upper_slope, positive, lower_slope - upper_slope), gap
