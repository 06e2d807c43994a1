"""What rounding can have added to a bound: computed once per query and recorded with every proof.

A computed inner product of n terms errs by at most `gamma_n * |a| . |b|`, with `gamma_n = n u / (1 - n u)` and u the
unit roundoff; through a chain of them the errors add up to `gamma_N |L_k| ... |L_1| |x|` with N the sum of the
lengths (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 3.1 and 3.5). One pass over absolute
values gives that product; slopes of relaxations lie in [0, 1] and their intercepts within the bounds, so backward
passes obey the same estimate, with a factor for the forward bounds they use. Forward bounds are the computed clean
value plus a deviation from it, two such chains of which neither enters the other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Convolution, Linear, ReLU
from stbp_milp.network.operations import apply, linear, reads

_PASSES = 8.0  # forward, backward, concretisation and the bounds of hidden layers, twice over for safety


def rounding_slack(network: Network, lower: Tensor, upper: Tensor, rows: Tensor, offset: Tensor) -> float:
    """How far a bound of `rows @ output + offset` can be off by rounding.

    Args:
        lower, upper: the box of the inputs, `(1, *shape)`.
    """
    magnitudes = [torch.maximum(lower.abs(), upper.abs())]
    terms = magnitudes[0].numel()
    for node in network.nodes[1:]:
        layer, operands = node.layer, node.inputs
        if isinstance(layer, ReLU):
            magnitudes.append(magnitudes[operands[0]])
        else:
            constant = apply(layer, [torch.zeros_like(magnitudes[i]) for i in operands]).abs()
            reached = [
                linear(layer, k, magnitudes[i], absolute=True) for k, i in enumerate(operands) if reads(layer, k)
            ]
            magnitudes.append(sum(reached, constant))
        terms += _length(layer)
    largest = float((magnitudes[-1] @ rows.abs().T + offset.abs()).max())
    unit = torch.finfo(network.dtype).eps / 2
    gamma = terms * unit / (1 - terms * unit)
    return _PASSES * gamma * max(largest, math.ulp(1.0))


def _length(layer: object) -> int:
    """Terms of the longest inner product of a layer, forward or transposed, and a few elementwise operations."""
    if isinstance(layer, Convolution):
        taps = layer.weight[0, 0].numel()
        return taps * max(layer.weight.shape[1], layer.weight.shape[0] // layer.groups) + 6
    return max(layer.weight.shape[-2:]) + 6 if isinstance(layer, Linear) else 6
