"""Bounds from relaxations hold, never loosen, and the relaxation is the one of the textbook.

By hand: with a = relu(x), x in [-1, 1], the operand `a - x - 1` has the interval [-2, 1]; its relaxation, the triangle
`a <= (x + 1) / 2`, gives [-1, 0].
"""

from __future__ import annotations

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import LinearRelaxation
from stbp_milp.errors import SoundnessError
from stbp_milp.milp import InputRegion, encode, tighten
from stbp_milp.milp.encode import Boxes, widen
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Add, Linear, ReLU, Scale
from stbp_milp.network.normal_form import AffineMap, normal_form
from stbp_milp.sets import VoxelBox
from tests.milp.small_networks import CHOICES, NETWORKS, around, interval_boxes, network

seeds = st.integers(0, 10**6)


def triangle() -> Network:
    b = NetworkBuilder((1,))
    b.add("a", ReLU(), "input")
    b.add("difference", Add((1.0, -1.0)), "a", "input")
    b.add("z", Scale(torch.ones(1), -torch.ones(1)), "difference")
    b.add("r", ReLU(), "z")
    b.add("f", Linear(torch.ones(1, 1).double(), torch.zeros(1).double()), "r")
    return b.build("f")


def test_triangle_by_hand() -> None:
    net = triangle()
    region = InputRegion.of(VoxelBox(*(torch.tensor([[v]]).double() for v in (0.0, -1.0, 1.0))))
    boxes = interval_boxes(net, region)
    second = net.relus[1]
    assert [side.tolist() for side in boxes[second]] == [[-2.0], [1.0]]
    result = tighten(normal_form(net), region, boxes, seconds=5.0)
    assert result.improved == 1
    assert result.finished
    lower, upper = result.boxes[second]
    # The upper side is nearer to zero and comes first; it shows the neuron inactive up to the slack, or nearly so.
    assert upper[0] == pytest.approx(0.0, abs=1e-5)
    assert upper[0] >= 0.0
    assert lower[0] == pytest.approx(-1.0, abs=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("choice", ["everywhere", "any 2 pixels", "patch"])
@given(seed=seeds)
@settings(max_examples=3)
def test_tightened_boxes_hold_the_samples_and_never_loosen(kind: str, choice: str, seed: int) -> None:
    net = network(kind, seed, hidden=5)
    inputs = around(net, choice, seed)
    region = InputRegion.of(inputs)
    boxes = interval_boxes(net, region)
    result = tighten(normal_form(net), region, boxes, seconds=10.0)
    assert result.finished
    values = net.values(inputs.sample(200, torch.Generator().manual_seed(seed)))
    for relu, (lower, upper) in result.boxes.items():
        assert (lower >= boxes[relu][0]).all()
        assert (upper <= boxes[relu][1]).all()
        operand = values[net.nodes[relu].inputs[0]].flatten(1).numpy()
        assert (operand >= lower - 1e-9).all()
        assert (operand <= upper + 1e-9).all()


def test_no_time_changes_nothing() -> None:
    net = network("three layers", 0, hidden=5)
    region = InputRegion.of(around(net, "everywhere", 0))
    boxes = interval_boxes(net, region)
    result = tighten(normal_form(net), region, boxes, seconds=0.0)
    assert not result.finished
    assert result.improved == 0
    for relu, (lower, upper) in result.boxes.items():
        assert (lower == boxes[relu][0]).all()
        assert (upper == boxes[relu][1]).all()


def test_a_contradiction_stops_the_run() -> None:
    """x reaches from -1 to 1; a lower bound of 2 contradicts the box, with a fixed phase it empties the subproblem."""
    net = triangle()
    region = InputRegion.of(VoxelBox(*(torch.tensor([[v]]).double() for v in (0.0, -1.0, 1.0))))
    wrong = interval_boxes(net, region) | {net.relus[0]: (np.array([2.0]), np.array([3.0]))}
    with pytest.raises(SoundnessError, match="contradict"):
        tighten(normal_form(net), region, wrong, seconds=5.0)
    assert tighten(normal_form(net), region, wrong, 5.0, {net.relus[0]: np.array([1])}).empty


@pytest.mark.parametrize("choice", list(CHOICES))
@given(seed=seeds)
@settings(max_examples=4)
def test_relaxation_agrees_with_cvxpy(choice: str, seed: int) -> None:
    net = network("three layers", seed, hidden=4)
    inputs = around(net, choice, seed)
    maps, region = normal_form(net), InputRegion.of(inputs)
    boxes = tighten(maps, region, interval_boxes(net, region), seconds=10.0).boxes
    form = np.random.default_rng(seed).normal(size=2)
    encoded = encode(maps, region, boxes, form, 0.25)
    if not encoded.program.variables:
        return
    found = LinearRelaxation(encoded.program).minimum(encoded.program.cost, 10.0) + encoded.program.offset
    # The encoding meets the widened boxes with intervals of its own: it lies between the two textbook relaxations.
    wide, exact = (_textbook(maps, region, b, form) + 0.25 for b in (_wide(boxes), boxes))
    assert wide - 1e-6 <= found <= exact + 1e-6
    assert exact - wide < 1e-3


def _wide(boxes: Boxes) -> Boxes:
    return {relu: widen(*box) for relu, box in boxes.items()}


def _textbook(maps: tuple[AffineMap, ...], region: InputRegion, boxes: Boxes, form: np.ndarray) -> float:
    """The triangle relaxation, written down again."""
    x = cvxpy.Variable(region.centre.size)
    constraints = [x >= region.lower, x <= region.upper]
    if region.choice is not None:
        choice = region.choice
        z = cvxpy.Variable(choice.cover.shape[1])
        cover = choice.cover @ z
        constraints += [z >= 0, z <= 1, choice.rows @ z >= choice.row_lower, choice.rows @ z <= choice.row_upper]
        constraints += [x <= region.centre + cvxpy.multiply(region.upper - region.centre, cover)]
        constraints += [x >= region.centre - cvxpy.multiply(region.centre - region.lower, cover)]
    sources = {0: x}
    for affine in maps:
        value = affine.bias + sum(matrix @ sources[source] for source, matrix in affine.weights.items())
        if affine.relu is None:
            problem = cvxpy.Problem(cvxpy.Minimize(form @ value), constraints)
            return float(problem.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10))
        lower, upper = boxes[affine.relu]
        y = cvxpy.Variable(affine.bias.size)
        for i in range(affine.bias.size):
            if upper[i] <= 0:
                constraints.append(y[i] == 0)
            elif lower[i] >= 0:
                constraints.append(y[i] == value[i])
            else:
                chord = upper[i] / (upper[i] - lower[i])
                constraints += [y[i] >= 0, y[i] >= value[i], y[i] <= chord * (value[i] - lower[i])]
                constraints += [value[i] >= lower[i], value[i] <= upper[i]]
        sources[affine.relu] = y
    raise AssertionError("the last map is the output")
