"""A network of undecided neurons is the same function on the set, and has the same bounds.

By hand: z = (x0 + 3, x0), y = relu(z), f = y0 + y1 on [-1, 1]: y0 = x0 + 3 is active, so f = x0 + 3 + y1.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.fold import fold
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.graph import NetworkBuilder
from stbp_milp.network.layers import Linear, ReLU
from stbp_milp.network.normal_form import normal_form
from stbp_milp.properties import same_class
from stbp_milp.sets import VoxelBox, concatenate
from tests.bounds.bound_cases import BODIES, case, hull_box, members_of

ROWS, OFFSET = same_class(0, 3).forms()


def test_by_hand() -> None:
    b = NetworkBuilder((1,))
    b.add("z", Linear(torch.ones(2, 1).double(), torch.tensor([3.0, 0.0]).double()), "input")
    net = b.build(b.add("f", Linear(torch.ones(1, 2).double(), torch.zeros(1).double()), b.add("y", ReLU(), "z")))
    one = torch.ones(1, 1).double()
    problem = Problem.of(net, VoxelBox(0 * one, -one, one))
    folded = fold(problem, normal_form(net), preactivations(problem, BoundingOptions()), 1_000)
    assert folded is not None
    (node, left) = folded.neurons[2]
    assert left.tolist() == [1]
    assert folded.problem.network.nodes[node].shape == (1,)
    points = torch.tensor([[-1.0], [-0.5], [1.0]]).double()
    assert folded.problem.network(points).flatten().tolist() == pytest.approx([2.0, 2.5, 5.0])
    assert fold(problem, normal_form(net), preactivations(problem, BoundingOptions()), 1) is None


@pytest.mark.parametrize("body", BODIES)
@given(seed=st.integers(0, 10**6), epsilon=st.sampled_from([0.02, 0.1, 0.4]))
@settings(max_examples=6)
def test_same_function_and_same_bounds(body: str, seed: int, epsilon: float) -> None:
    net, small = case(body, "patch-at:0,1,1:2x2@2", seed, epsilon)
    _, large = case(body, "everywhere", seed, epsilon)
    boxes = concatenate([hull_box(small), hull_box(large)])
    problem = Problem.of(net, boxes)
    bounds = preactivations(problem, BoundingOptions())
    problem = problem.idealised(bounds)
    folded = fold(problem, normal_form(net), bounds, 10**7)
    assert folded is not None
    for item, points in enumerate(members_of(boxes, seed)):
        expected = net(points)
        torch.testing.assert_close(folded.problem.network(points), expected, rtol=1e-9, atol=1e-9)
        assert item < 2
    best = optimise(
        Bounded(problem, bounds),
        Forms(ROWS, OFFSET),
        lambda lower, items: torch.zeros(len(items), dtype=torch.bool),
        OptimiserOptions(3),
    )
    own = folded.bounds(bounds)
    for duals in (None, best.duals):
        moved = None if duals is None else folded.duals(duals)
        ours = bound_once(Bounded(folded.problem, own), Forms(ROWS, OFFSET), moved).lower
        torch.testing.assert_close(
            ours, bound_once(Bounded(problem, bounds), Forms(ROWS, OFFSET), duals).lower, rtol=1e-9, atol=1e-9
        )
