"""Interval bounds of the output: the bound of published STBP above its first layer, used in certified training."""

from __future__ import annotations

from torch import Tensor

from stbp_milp.bounds.interval import Interval, interval
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.bounds.rounding import absolute_weight
from stbp_milp.network.layers import Linear, ReLU
from stbp_milp.network.operations import apply


def interval_bound(problem: Problem, rows: Tensor, offset: Tensor) -> Tensor:
    """Computes lower bounds `(N, M)` of `rows @ output + offset`: the best bounds of the first layer, intervals above.

    A last linear layer is composed with the rows, as in certified training; otherwise the rows are bounded over the box
    of the outputs, which is the same for a single output.

    Args:
        rows: `(M, K)`; offset: `(M,)`.
    """
    network, gamma = problem.network, problem.gamma
    bounds = preactivations(problem, BoundingOptions("interval"))
    last = len(network.nodes) - 1
    lower, upper = problem.inputs.hull()
    moved: dict[int, Interval] = {0: Interval(lower - problem.inputs.centre, upper - problem.inputs.centre)}
    for position, node in enumerate(network.nodes[1:], start=1):
        operands, at = [moved[i] for i in node.inputs], [problem.at(i) for i in node.inputs]
        if isinstance(node.layer, ReLU):
            operands = [at[0].deviations(bounds[position]).meet(operands[0])]
        elif position == last and isinstance(node.layer, Linear):
            weight, magnitude = rows @ node.layer.weight, rows.abs() @ absolute_weight(node.layer)
            moves = interval(Linear(weight, offset, magnitude), operands, at, gamma)
            break
        moved[position] = interval(node.layer, operands, at, gamma)
    else:
        moves = interval(Linear(rows, offset), [moved[last]], [problem.at(last)], gamma)
    clean = apply(Linear(rows, offset), [problem.clean[last]])
    if problem.rounding is None:
        return clean + moves.lower
    return clean + moves.lower - (problem.rounding.errors[last] + 4 * gamma * problem.clean[last].abs()) @ rows.abs().T
