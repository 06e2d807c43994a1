"""Intervals to the end: the bound that certified training trains for, as the verifier computes it."""

from __future__ import annotations

from stbp_milp.bounds.interval import Interval, interval
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.layers import Linear, ReLU
from stbp_milp.network.operations import apply
from stbp_milp.properties import Property


def interval_bound(problem: Problem, property: Property) -> float:
    """A lower bound of the margin over a problem's one set: its first layer as it can be had, intervals above.

    The last layer is bounded together with the property's rows if it is linear; otherwise the rows are bounded over
    its box, which is the same for a single output.
    """
    rows, offset = property.forms()
    network, clean = problem.network, problem.clean
    bounds = preactivations(problem, BoundingOptions("interval"))
    last = len(network.nodes) - 1
    values: dict[int, Interval] = {}
    for position, node in enumerate(network.nodes):
        if isinstance(node.layer, ReLU):
            values[position] = interval(node.layer, [bounds[position]], [], clean[position])
        elif position and all(i in values for i in node.inputs):
            layer, operands = node.layer, [clean[i] for i in node.inputs]
            if position == last and isinstance(layer, Linear):
                layer = Linear(rows @ layer.weight, rows @ layer.bias + offset)
            values[position] = interval(layer, [values[i] for i in node.inputs], operands, apply(layer, operands))
    if isinstance(network.nodes[last].layer, Linear):
        lower = values[last].lower
    else:
        box = values[last]
        lower = box.lower @ rows.clamp(min=0).T + box.upper @ rows.clamp(max=0).T + offset
    return float(lower.min())
