"""Intervals to the end: the weakest bound, of STBP as published above its first layer, that certified training uses."""

from __future__ import annotations

from torch import Tensor

from stbp_milp.bounds.interval import Interval, interval
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.layers import Linear, ReLU
from stbp_milp.network.operations import apply


def interval_bound(problem: Problem, rows: Tensor, offset: Tensor) -> Tensor:
    """Lower bounds `(N, M)` of `rows @ output + offset`: the first layer as it can be had, intervals above.

    A last linear layer is composed with the rows, as certified training does; otherwise the rows are bounded over the
    box of the outputs, which is the same for a single output.

    Args:
        rows: `(M, K)`; offset: `(M,)`.
    """
    network, clean = problem.network, problem.clean
    bounds = preactivations(problem, BoundingOptions("interval"))
    last = len(network.nodes) - 1
    values: dict[int, Interval] = {0: Interval(*problem.inputs.hull())}
    for position, node in enumerate(network.nodes[1:], start=1):
        if isinstance(node.layer, ReLU):
            values[position] = interval(node.layer, [bounds[position]], [], clean[position])
            continue
        layer, operands = node.layer, [clean[i] for i in node.inputs]
        if position == last and isinstance(layer, Linear):
            layer = Linear(rows @ layer.weight, rows @ layer.bias + offset)
            return interval(layer, [values[i] for i in node.inputs], operands, apply(layer, operands)).lower
        values[position] = interval(layer, [values[i] for i in node.inputs], operands, clean[position])
    layer = Linear(rows, offset)
    return interval(layer, [values[last]], [clean[last]], apply(layer, [clean[last]])).lower
