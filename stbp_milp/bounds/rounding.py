"""The effect of rounding on bounds: an error bound that is computed for every claimed bound and subtracted from it.

The verified function `f` is the network over the real numbers, with the weights, factors and offsets that its layers
hold. Its bounds are computed in floating point. A computed inner product of n terms errs by at most
`gamma_n |a| . |b|` with `gamma_n = n u / (1 - n u)`, u the unit roundoff, in whatever order it is added up (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1). Below, `gamma` belongs to the number of terms of
all layers together, of the input, and some more, so it is at least twice the gamma of any single sum.

Notation: c is the clean input, `c_k` the computed clean value of node k, `E_k >= |c_k - f_k(c)|` (*errors*);
`d_k(x) = f_k(x) - f_k(c)` the deviation; `S_k` bounds, for all x of the sets, `|c_k| + E_k` and the sum of the sizes of
the terms that make up node k, `sum_i |L_i| |f_i(x)| + |b|` (*sizes*; of the input and of ReLUs, the value itself). All
of it is taken before cancellation, so a node that is the difference of two large numbers has a large size.

Theorem (backward passes). Let `A_k` be the forms that a backward pass *computed* on the nodes, from a form A on node n
down to `A_0` on the input, and t the constant it computed. Then for all x of the sets (and phases)

    A . f_n(x) >= t + A_0 . (x - c) - |A_n| . E_n - sum over nodes k of 4 gamma |A_k| . S_k
                  - sum over ReLUs of |A_k| . (E_z + 4 gamma (S_z + |l| + |u|)), where not decided
                  - sum over ReLUs of |m| . (E_z + 4 gamma S_z),

with z the ReLU's operand, [l, u] its bounds, and m the multipliers of split neurons; a neuron counts as decided where
its bounds and its clean value have one sign. (For a form on deviations, which has no constant of its own,
`|A_n| . E_n` is left out.)

Proof. An affine node: `d_k = sum_i L_i d_i` holds exactly, and the computed transpose differs from `L_i^T A_k` by at
most `gamma/2 |L_i|^T |A_k|`, which changes the form's value by at most `gamma/2 |A_k| . |L_i| |d_i|`, that is
`gamma |A_k| . S_k`, as `|d_i| <= 2 S_i`: the clean input is in the sets. Adding forms where branches meet rounds by
`u |A_i|` each, worth at most `2 u |A_i| . S_i`. A decided ReLU passes the form or drops it: its deviation is that of
its operand, or none. Any other lies between two lines whose computed slope and intercept are each off by a few u of
|l| + |u|, or below a plane whose constant is a sum of terms of together at most 4 S_z (`bounds.ideal`), decided or not;
the gap at
`c_k` is not the one at `f_k(c)`, by at most E_z, as all slopes are in [0, 1]; the product of form and slope rounds by
`u |A_k| . 2 S_k`. Split neurons: `s z(x) >= 0` for the true z, so `- m (z_c + d)` is off by E_z and by the rounding of
the product and the sum with the form. The constant is a sum of inner products with numbers no larger than those sizes,
each of fewer terms than gamma counts. 4 gamma instead of the 2 to 3 that add up covers this sum's own rounding. The
input's support function is a sum of gains, each not negative, or a middle and a radius of sides of at most S_0
(`sets`): the node 0 of the sum.

A smooth function or a product lies between two lines of slopes a, which hold for the true function and all real z in
[l, u]: their intercepts make up for their own rounding (`bounds.lines`). The gap at `c_k` is not the one at `f_k(c)`,
by at most `|a| . E_z + E_k`, and products and sums round by `4 gamma (|a| . (2 S_z + |l| + |u|) + 2 S_k)`; the term
that a multiplier drops, `m (z - l)`, holds l itself, and rounds by no more than `4 gamma |m| . (S_z + |l| + |u|)`.

Intervals and closed forms round relative to the deviations (`bounds.interval`), so what does not move is bounded
exactly, at every depth; clean values whose errors would spoil every bound are computed in several words
(`bounds.precise`). Networks derived from others (restricted, folded, cropped) keep the clean values and errors of the
whole. Where their matrices are products whose entries can cancel, `Linear.magnitude` holds what the entries' terms add
up to without their signs, or `Rounding.composed` what the rows' terms do on the sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from stbp_milp.bounds import smooth
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.precise import precise_values
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import (
    Add,
    Concatenate,
    Convolution,
    Input,
    Linear,
    Maximum,
    Nonlinear,
    Permute,
    Product,
    ReLU,
    Reshape,
    Scale,
    Select,
    Smooth,
    halves,
)
from stbp_milp.network.operations import apply, linear, reads
from stbp_milp.sets import InputSet

SAFETY = 4.0  # the factor of gamma in the theorem
_FEW = 64  # operations other than inner products
_GOOD = 2.0**-34  # clean values with larger relative errors are computed in several words
PRECISE_WORK = 2.0**33  # multiplications that this may take

Values = tuple[Tensor, Tensor]
"""Computed values and bounds of their errors."""


@dataclass(frozen=True, eq=False)
class Rounding:
    """What the theorem needs of a problem.

    Attributes:
        gamma: the constant gamma for the number of terms.
        errors: bounds of |computed clean value - exact clean value| of every node, `(N or 1, *shape)`.
        composed: per node composed of several layers, the size relative to which it was rounded, `(1, *shape)`.
        sizes: the sizes of the nodes for which they are known, `(1, *shape)`.
    """

    gamma: float
    errors: tuple[Tensor, ...]
    composed: Mapping[int, Tensor] = field(default_factory=dict)
    sizes: Mapping[int, Tensor] = field(default_factory=dict)

    def select(self, items: Tensor) -> Rounding:
        return replace(self, errors=tuple(e if e.shape[0] == 1 else e[items] for e in self.errors))

    def weight(self, node: int) -> Tensor:
        """Returns `4 gamma S` of a node, `(1, *shape)`."""
        return SAFETY * self.gamma * self.sizes[node]

    def of_relu(self, operand: int, clean: Tensor, bounds: Interval, planes: Tensor | None = None) -> Tensor:
        """Computes the additional error per unit of a form on a ReLU, `(N, *shape)`.

        It is zero if bounds and clean value decide the ReLU alike: its deviation is then that of its operand, or zero.
        Neurons with planes (flat positions) are an exception: they pass their form to the input by rows of their own.
        """
        error = self.errors[operand]
        reach = bounds.upper.abs().maximum(bounds.lower.abs()).mul_(2 * SAFETY * self.gamma)
        exact = ((bounds.lower >= 0) & (clean >= error)) | ((bounds.upper <= 0) & (clean <= -error))
        if planes is not None:
            exact.flatten(1)[:, planes] = False
        return (error + self.weight(operand) + reach).masked_fill_(exact, 0.0)

    def of_lines(self, layer: Nonlinear, nodes: tuple[int, int], steep: Tensor, bounds: Interval) -> Tensor:
        """Computes the additional error per unit of a form on a smooth function or a product, `(N, *shape)`.

        Args:
            nodes: the operand and the layer.
            steep: the largest magnitude of a slope, `(N, *operand_shape)`.
        """
        operand, own = nodes
        reach = bounds.upper.abs().maximum(bounds.lower.abs()).mul_(2 * SAFETY * self.gamma)
        error = torch.where(steep == 0, 0.0, steep * (self.errors[operand] + 2 * self.weight(operand) + reach))
        if isinstance(layer, Product):
            x, y = halves(error, 1)
            error = x + y
        return error + self.errors[own] + 2 * self.weight(own)

    def of_multiplier(self, operand: int) -> Tensor:
        """Computes the error per unit of a split neuron's multiplier, `(N or 1, *shape)`."""
        return self.errors[operand] + self.weight(operand)


def rounded(network: Network, centre: Tensor, most_work: float = PRECISE_WORK) -> tuple[tuple[Tensor, ...], Rounding]:
    """Computes clean values of all nodes at `centre` `(N, *input_shape)`, and bounds of their errors.

    Args:
        most_work: multiplications that more precise values may take if those of a forward pass are too inaccurate.
    """
    own = gamma(network, centre.dtype)
    clean, errors = values_with_errors(network, own, {0: (centre, torch.zeros_like(centre))})
    bad = any(_is_bad(*pair) for pair in zip(clean, errors, strict=True))
    exact = network.is_piecewise_linear  # the words of `bounds.precise` have no smooth functions
    if bad and exact and centre.shape[0] == 1 and centre.dtype == torch.float64:
        precise = precise_values(network, centre, most_work)
        if precise is not None:
            clean, errors = precise[0], tuple(map(_with_room, precise[0], precise[1]))
            relus = {relu: _after_relu(clean, errors, network.operand(relu)) for relu in network.relus}
            errors = tuple(relus.get(node, error) for node, error in enumerate(errors))
    return clean, Rounding(own, errors)


def derived(
    network: Network, whole: Rounding, known: Mapping[int, Values], composed: Mapping[int, Tensor] | None = None
) -> tuple[tuple[Tensor, ...], Rounding]:
    """Computes clean values and errors of a network that was derived from another, given the values that matter.

    Args:
        known: clean values and errors of the input, of all pre-activations and of the last node.
    """
    own = whole.gamma + gamma(network, known[0][0].dtype)  # the matrices are products of the whole network's
    clean, errors = values_with_errors(network, own, known)
    return clean, Rounding(own, errors, composed or {})


def values_with_errors(
    network: Network, gamma: float, known: Mapping[int, Values]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Computes the values of a forward pass, each `(N, *shape)`, and bounds of their errors; `known` ones are kept.

    `E_k = (1 + 2 gamma) (sum_i |L_i| (E_i + 2 gamma |c_i|) + 2 gamma |b|)`, plus room for four roundings of the value.
    """
    values: list[Tensor] = []
    errors: list[Tensor] = []
    for position, node in enumerate(network.nodes):
        if position in known:
            value, error = known[position]
        elif isinstance(node.layer, Nonlinear):
            operand = node.inputs[0]
            value = apply(node.layer, [values[operand]])
            if isinstance(node.layer, ReLU):
                error = _after_relu(values, errors, operand)
            else:
                error = _after_curve(node.layer, values[operand], errors[operand], value)
        else:
            operands = [values[i] for i in node.inputs]
            value = apply(node.layer, operands)
            error = 2 * gamma * constant_size(network, position, value)
            for k, i in enumerate(node.inputs):
                if reads(node.layer, k):
                    error = error + absolute(node.layer, k, errors[i] + 2 * gamma * operands[k].abs())
            error = _with_room(value, (1 + 2 * gamma) * error)
        values.append(value)
        errors.append(error)
    return tuple(values), tuple(errors)


def size(
    network: Network,
    position: int,
    clean: Sequence[Tensor],
    rounding: Rounding,
    known: Mapping[int, Tensor],
    inputs: InputSet,
    bounds: Interval | None,
) -> Tensor:
    """Computes the size of one node, `(1, *shape)`.

    Args:
        known: the sizes of its operands.
        bounds: for a nonlinear node, the bounds of its operand.
    """
    node = network.nodes[position]
    least = (clean[position].abs() + rounding.errors[position]).amax(0, keepdim=True)
    if position == 0:
        lower, greater = inputs.hull()
        own = torch.maximum(lower.abs(), greater.abs()).amax(0, keepdim=True)
    elif isinstance(node.layer, Nonlinear):
        assert bounds is not None
        own = _largest(node.layer, bounds).amax(0, keepdim=True)
    else:
        own = constant_size(network, position, least)
        for k, i in enumerate(node.inputs):
            if reads(node.layer, k):
                own = own + absolute(node.layer, k, known[i])
        if position in rounding.composed:
            own = own + rounding.composed[position]
        own = (1 + rounding.gamma) * own
    return torch.maximum(own, least)


def absolute(layer: object, operand: int, x: Tensor) -> Tensor:
    """Computes `|L| x`, with the entries' sizes before cancellation."""
    if isinstance(layer, Linear):
        return F.linear(x, absolute_weight(layer))
    return linear(layer, operand, x, absolute=True)


def absolute_weight(layer: Linear) -> Tensor:
    """Returns `|W|`, with the entries' sizes before cancellation."""
    return layer.weight.abs() if layer.magnitude is None else layer.magnitude


def constant_size(network: Network, position: int, like: Tensor) -> Tensor:
    """Returns `|b|` of an affine node, `(1, *shape)`; where it is zero, with the device and type of `like`."""
    layer, shape = network.nodes[position].layer, network.nodes[position].shape
    if isinstance(layer, Convolution | Linear):
        return layer.bias.abs().view(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)
    if isinstance(layer, Scale):
        return layer.offset.abs().expand(1, *shape)
    if isinstance(layer, Reshape | Permute | Select | Concatenate | Add | Maximum):
        return like.new_zeros(1, *shape)
    raise NotImplementedError(f"constant_size: no rule for layer {type(layer).__name__}")


def gamma(network: Network, dtype: torch.dtype) -> float:
    """Computes `n u / (1 - n u)` for the terms of all layers, the input and a few more; infinite for too many terms."""
    unit = torch.finfo(dtype).eps / 2
    count = _FEW + math.prod(network.input_shape) + sum(terms(node.layer) for node in network.nodes)
    return count * unit / (1 - count * unit) if 2 * count * unit < 1 else math.inf


def _with_room(value: Tensor, error: Tensor) -> Tensor:
    return error + 2 * torch.finfo(value.dtype).eps * value.abs()


def _after_relu(values: Sequence[Tensor], errors: Sequence[Tensor], operand: int) -> Tensor:
    """Returns the errors of a ReLU: zero if it is inactive whatever the error of its operand."""
    return errors[operand].masked_fill(values[operand] + errors[operand] <= 0, 0.0)


def _after_curve(layer: Nonlinear, operand: Tensor, error: Tensor, value: Tensor) -> Tensor:
    """Returns the errors of a smooth function or a product: its own, and what its operand's error can change."""
    if isinstance(layer, Smooth):
        least, most = smooth.slope_range(layer.function, operand - error, operand + error)
        own = smooth.accuracy(layer.function, operand, value)
        return _with_room(value, own + torch.maximum(least.abs(), most.abs()) * error * (1 + 2.0**-20))
    assert isinstance(layer, Product)
    (x, y), (x_error, y_error) = halves(operand.abs(), 1), halves(error, 1)
    return _with_room(value, (x * y_error + y * x_error + x_error * y_error) * (1 + 2.0**-20))


def _largest(layer: Nonlinear, bounds: Interval) -> Tensor:
    """Returns the largest magnitude of a nonlinear node's value, `(N, *shape)`."""
    if isinstance(layer, ReLU):
        return bounds.upper.clamp(min=0)
    if isinstance(layer, Product):
        x, y = halves(torch.maximum(bounds.lower.abs(), bounds.upper.abs()), 1)
        return x * y
    least, most = smooth.value_range(layer.function, bounds.lower, bounds.upper)
    return torch.maximum(least.abs(), most.abs())


def _is_bad(value: Tensor, error: Tensor) -> bool:
    return not bool(error.max() <= _GOOD * value.abs().max())


# --- how many terms ---------------------------------------------------------------------------------------


@singledispatch
def terms(layer: object) -> int:
    """Returns the number of terms of the layer's longest inner product, forward or transposed."""
    raise NotImplementedError(f"terms: no rule for layer {type(layer).__name__}")


@terms.register(Input)
@terms.register(Reshape)
@terms.register(Permute)
@terms.register(Concatenate)
def _(layer: Input | Reshape | Permute | Concatenate) -> int:
    return 0


@terms.register
def _(layer: Convolution) -> int:
    taps = layer.weight[0, 0].numel()
    return taps * max(layer.weight.shape[1], layer.weight.shape[0] // layer.groups) + 2


@terms.register
def _(layer: Linear) -> int:
    return max(layer.weight.shape[-2:]) + 2


@terms.register
def _(layer: Scale) -> int:
    return 4


@terms.register
def _(layer: Select) -> int:
    """In the transpose, an entry has as many terms as it is read."""
    read = layer.index[layer.index >= 0]
    return 1 + int(torch.bincount(read).max()) if len(read) else 1


@terms.register
def _(layer: Add) -> int:
    return 2 * len(layer.coefficients)


@terms.register(ReLU)
@terms.register(Smooth)
@terms.register(Product)
@terms.register(Maximum)
def _(layer: Nonlinear | Maximum) -> int:
    return 8
