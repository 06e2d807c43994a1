"""Forward affine bounds: every node's deviation as an affine function of the few moved voxels, plus a remainder.

    f_k(x) - f_k(c) = sum_m G_km (x_m - c_m) + r_k,   r_k in an interval.

One forward pass per moved voxel bounds *all* neurons of a network, whereas a backward pass bounds one. Unlike
intervals, the forms keep track of effects of one voxel that cancel, through any number of layers as long as ReLUs are
decided. An undecided ReLU is replaced by its chord, and the rest of the triangle goes into the remainder, which grows
like intervals do (the zonotopes of Singh et al. 2018, with one interval for all error terms). The bounds hold over the
box around the set; they do not use which voxels move together.

Results are rounded outwards: computed columns err by at most `gamma |L| |G|`, which the remainder absorbs
(`bounds.rounding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stbp_milp.bounds.interval import Interval, interval
from stbp_milp.bounds.problem import Preactivations, Problem
from stbp_milp.network.layers import Add, Maximum, ReLU
from stbp_milp.network.operations import linear, reads


@dataclass(frozen=True, eq=False)
class _Form:
    """Columns `(N, M, *shape)` and the remainder."""

    columns: Tensor
    rest: Interval


class ForwardForms:
    """Forms of the nodes of a problem's network, computed on demand. Mutable.

    Args:
        problem: a problem with N sets; every voxel that moves in any of them has a column.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        lower, upper = (side - problem.inputs.centre for side in problem.inputs.hull())
        self._moved = moved_voxels(problem)
        slack = 1 + 2 * problem.gamma
        self._low, self._high = (slack * side.flatten(1)[:, self._moved] for side in (lower, upper))
        self._reach = torch.maximum(-self._low, self._high)
        columns = lower.new_zeros(len(self._moved), lower[0].numel())
        columns[torch.arange(len(self._moved)), self._moved] = 1.0
        first = columns.view(1, -1, *lower.shape[1:]).expand(len(lower), -1, *lower.shape[1:])
        none = torch.zeros_like(lower)
        self._forms: dict[int, _Form] = {0: _Form(first, Interval(none, none))}
        self._last_use = {i: k for k, node in enumerate(problem.network.nodes) for i in node.inputs}
        self._next = 1

    def deviations(self, node: int, bounds: Preactivations) -> Interval:
        """Computes a node's deviations, given bounds of all ReLUs below; nodes must be asked for in order."""
        nodes = self._problem.network.nodes
        while self._next <= node:
            position = self._next
            self._forms[position] = self._after(position, bounds)
            for i in nodes[position].inputs:
                if self._last_use[i] == position:
                    self._forms.pop(i, None)
            self._next += 1
        form = self._forms[node]
        low, high = (self._along(side, form.columns) for side in (self._low, self._high))
        size = 2 * self._problem.gamma * self._size(form.columns)
        least, most = torch.minimum(low, high).sum(1), torch.maximum(low, high).sum(1)
        return Interval(least + form.rest.lower, most + form.rest.upper).widened(size)

    def _after(self, position: int, bounds: Preactivations) -> _Form:
        node, gamma = self._problem.network.nodes[position], self._problem.gamma
        operands = [self._forms[i] for i in node.inputs]
        if isinstance(node.layer, ReLU):
            return self._through_relu(operands[0], node.inputs[0], bounds[position])
        columns: Tensor | float = 0.0
        for i, form in enumerate(operands):
            if reads(node.layer, i):
                columns = columns + _each(node.layer, i, form.columns)
        assert isinstance(columns, Tensor)
        # As a linear map a maximum is a sum; its interval rule would be another function of the operands.
        layer, own = (Add((1.0, 1.0)), operands[1:]) if isinstance(node.layer, Maximum) else (node.layer, operands)
        rest = interval(layer, [form.rest for form in own], [], gamma)
        sizes = [Interval(-size, size) for size in map(self._size, (form.columns for form in own))]
        rounded = interval(layer, sizes, [], gamma).upper.mul_(2 * gamma)
        if self._problem.rounding is not None and position in self._problem.rounding.composed:
            rounded = rounded + 2 * gamma * self._problem.rounding.composed[position]
        return _Form(columns, rest.widened(rounded))

    def _through_relu(self, form: _Form, operand: int, bounds: Interval) -> _Form:
        """Applies the chord's slope; the remainder gets what lies between chord and ReLU, less its clean value."""
        clean, gamma = self._problem.at(operand), self._problem.gamma
        lower, upper, undecided = bounds.lower, bounds.upper, bounds.undecided
        active, inactive = ~undecided & (lower >= 0), ~undecided & (lower < 0)
        slope = torch.where(undecided, upper / (upper - lower), active.to(lower.dtype))
        above = (-slope * lower).masked_fill(~undecided, 0.0)  # relu(z) is in slope z + [0, -slope l]
        at_clean = slope * clean.value - clean.value.clamp(min=0)
        error = clean.error + 2 * gamma * (clean.value.abs() + lower.abs() + upper.abs())
        # If the clean input has the same phase, the ReLU's deviation is that of its operand, or zero.
        exact = (active & (clean.value >= clean.error)) | (inactive & (clean.value <= -clean.error))
        at_clean, error = at_clean.masked_fill(exact, 0.0), error.masked_fill(exact, 0.0)
        error = error + 2 * gamma * slope * self._size(form.columns)
        ends = (slope * form.rest.lower, slope * form.rest.upper)
        rest = Interval(ends[0] + at_clean, ends[1] + at_clean + above)
        return _Form(
            form.columns * slope.unsqueeze(1), rest.widened(error + 2 * gamma * (ends[0].abs() + ends[1].abs()))
        )

    def _size(self, columns: Tensor) -> Tensor:
        """Computes `sum_m |G_m| reach_m`, `(N, *shape)`."""
        return self._along(self._reach, columns.abs()).sum(1)

    @staticmethod
    def _along(weights: Tensor, columns: Tensor) -> Tensor:
        return weights.view(*weights.shape, *[1] * (columns.dim() - 2)) * columns


def moved_voxels(problem: Problem) -> Tensor:
    """Returns the flat positions of the inputs that move in some set, int64."""
    lower, upper = problem.inputs.hull()
    return (upper > lower).flatten(1).any(0).nonzero().flatten()


def _each(layer: object, operand: int, columns: Tensor) -> Tensor:
    """Applies the layer's linear part to every column."""
    out = linear(layer, operand, columns.flatten(0, 1))
    return out.view(*columns.shape[:2], *out.shape[1:])


def memory(problem: Problem, columns: int) -> int:
    """Estimates the bytes of the forms of the two largest layers, including temporary results."""
    sizes: Sequence[int] = sorted(int(torch.Size(node.shape).numel()) for node in problem.network.nodes)
    return 2 * sum(sizes[-2:]) * columns * problem.parts * problem.clean[0].element_size()
