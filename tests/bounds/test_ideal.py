"""Planes over the input bound a first-layer neuron from above for all shares, and tell more than the triangle.

By hand: y = relu(x0 + x1) on [-1, 1]^2, and the least value of x0 - y, which is -1. The triangle's chord
y <= (x0 + x1 + 2) / 2 proves -2; the plane with shares (1, 0), y <= x0 + 1, proves -1.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.duals import Bracket, Duals
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.objective import bound_once, bound_splits, one_pass
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Add, Linear, ReLU
from stbp_milp.properties import same_class
from stbp_milp.sets import VoxelBox
from tests.bounds.bound_cases import BODIES, case, hull_box, members_of

seeds = st.integers(0, 10**6)
each_body = pytest.mark.parametrize("body", BODIES)
ROWS, OFFSET = same_class(0, 3).forms()
ROUNDING = 1e-11


def by_hand() -> tuple[Problem, dict[int, Interval]]:
    b = NetworkBuilder((2,))
    none = torch.zeros(1).double()
    b.add("z", Linear(torch.ones(1, 2).double(), none), "input")
    first = b.add("x0", Linear(torch.tensor([[1.0, 0.0]]).double(), none), "input")
    net = b.build(b.add("f", Add((1.0, -1.0)), first, b.add("y", ReLU(), "z")))
    zero, one = torch.zeros(1, 2).double(), torch.ones(1, 2).double()
    problem = Problem.of(net, VoxelBox(zero, -one, one))
    bounds = preactivations(problem, BoundingOptions())
    return problem.idealised(bounds), bounds


def never(lower: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    return torch.zeros(lower.shape[0], dtype=torch.bool)


@pytest.mark.parametrize(
    ("shares", "expected"), [((0.5, 0.5), -2.0), ((1.0, 0.0), -1.0), ((1.0, 1.0), -3.0), ((0.0, 0.0), -3.0)]
)
def test_by_hand(shares: tuple[float, float], expected: float) -> None:
    problem, bounds = by_hand()
    (relu,) = problem.network.relus
    form = torch.ones(1, 1).double(), torch.zeros(1).double()
    duals = Duals(shares={relu: torch.tensor(shares).double().view(1, 1, 1, 2)})
    assert float(bound_once(Bounded(problem, bounds), Forms(*form), duals).lower) == pytest.approx(expected)
    assert float(bound_once(Bounded(problem, bounds), Forms(*form)).lower) == pytest.approx(-2.0)
    best = optimise(Bounded(problem, bounds), Forms(*form), never, OptimiserOptions(steps=40))
    assert float(best.lower) == pytest.approx(-1.0, abs=0.05)
    assert float(best.lower) <= -1.0


def idealised(body: str, seed: int, text: str = "everywhere") -> tuple[Network, Problem, dict[int, Interval]]:
    net, perturbation = case(body, text, seed, 0.4)
    problem = Problem.of(net, hull_box(perturbation))
    bounds = preactivations(problem, BoundingOptions())
    return net, problem.idealised(bounds), bounds


@each_body
@given(seed=seeds, text=st.sampled_from(["everywhere", "frames:1", "patch-at:0,1,1:2x2@2"]))
@settings(max_examples=6)
def test_any_shares_give_a_bound(body: str, seed: int, text: str) -> None:
    net, problem, bounds = idealised(body, seed, text)
    generator = torch.Generator().manual_seed(seed)
    shares = {
        relu: torch.rand((1, len(ROWS), *ideal.index.shape), generator=generator, dtype=torch.float64)
        for relu, ideal in problem.ideal.items()
    }
    found = bound_once(Bounded(problem, bounds), Forms(ROWS, OFFSET), Duals(shares=shares))
    points = torch.cat([members_of(problem.inputs, seed), problem.inputs.maximiser(-found.form)], 1)
    seen = torch.stack([net(own) for own in points]) @ ROWS.T + OFFSET
    assert bool((found.lower.unsqueeze(1) <= seen + ROUNDING).all())


@each_body
@given(seed=seeds)
@settings(max_examples=4)
def test_hidden_layers_and_rows_are_never_weaker_than_with_triangles_and_hold(body: str, seed: int) -> None:
    net, problem, bounds = idealised(body, seed)
    tight = preactivations(problem, BoundingOptions(slope_steps=4), bounds, same_sets=True)
    for relu, own in tight.items():
        assert bool((own.lower >= bounds[relu].lower).all())
        assert bool((own.upper <= bounds[relu].upper).all())
    best = optimise(Bounded(problem, tight), Forms(ROWS, OFFSET), never, OptimiserOptions(steps=6))
    assert bool((best.lower >= bound_once(Bounded(problem, tight), Forms(ROWS, OFFSET)).lower).all())
    points = torch.cat([members_of(problem.inputs, seed), problem.inputs.maximiser(-best.form)], 1)[0]
    values = net.values(points)
    for relu, own in tight.items():
        operand = values[net.nodes[relu].inputs[0]]
        assert bool((operand >= own.lower - ROUNDING).all())
        assert bool((operand <= own.upper + ROUNDING).all())
    assert bool((best.lower <= values[-1] @ ROWS.T + OFFSET + ROUNDING).all())


@each_body
@given(seed=seeds)
@settings(max_examples=4)
def test_the_gradient_written_out_is_autograds(body: str, seed: int) -> None:
    """Against finite differences: the bound is piecewise linear in the shares, so they agree at random points."""
    _, problem, bounds = idealised(body, seed)
    problem = replace(problem, rounding=None)
    bracket = Bracket.of(problem, bounds)
    generator = torch.Generator().manual_seed(seed)

    def random(ideal_shape: tuple[int, ...]) -> torch.Tensor:
        return torch.rand((1, 1, *ideal_shape), generator=generator, dtype=torch.float64)

    shares = bracket.project(Duals(shares={r: random(i.index.shape) for r, i in problem.ideal.items()})).shares
    direction = {
        r: random(i.index.shape) * (s > 0) * (s < 1)
        for (r, i), s in zip(problem.ideal.items(), shares.values(), strict=True)
    }

    def bound(shares: dict[int, torch.Tensor]) -> torch.Tensor:
        duals = Duals(shares=shares)
        return one_pass(problem, bracket.between(duals), Forms(ROWS[:1], OFFSET[:1]), duals, {}).lower.sum()

    leaves = {r: s.clone().requires_grad_() for r, s in shares.items()}
    with torch.enable_grad():
        value = bound(leaves)
    if not value.requires_grad:
        return
    gradients = torch.autograd.grad(value, list(leaves.values()))
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction.values(), strict=True))
    step = 1e-7
    moved = [bound({r: s + sign * step * direction[r] for r, s in shares.items()}) for sign in (1.0, -1.0)]
    assert float(moved[0] - moved[1]) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-5)


@each_body
@given(seed=seeds)
@settings(max_examples=4)
def test_a_look_ahead_is_the_bound_of_the_split(body: str, seed: int) -> None:
    """Candidates as rows give what each child gives alone, with the same duals."""
    _, problem, bounds = idealised(body, seed)
    duals = optimise(Bounded(problem, bounds), Forms(ROWS[:1], OFFSET[:1]), never, OptimiserOptions(steps=2)).duals
    open_ = {relu: own.undecided.flatten(1)[0].nonzero().flatten()[:2] for relu, own in bounds.items()}
    relu = torch.tensor([[r for r, at in open_.items() for _ in at]])
    neuron = torch.cat(list(open_.values())).unsqueeze(0)
    if not relu.numel():
        return
    ahead = bound_splits(
        Bounded(problem, bounds), Forms(ROWS[:1].unsqueeze(0), OFFSET[:1].unsqueeze(0)), duals, relu, neuron
    )
    for c in range(relu.shape[1]):
        own = bounds[int(relu[0, c])]
        for side in range(2):
            lower, upper = own.lower.flatten(1).clone(), own.upper.flatten(1).clone()
            (lower, upper)[side][0, neuron[0, c]] = 0.0
            child = dict(bounds)
            child[int(relu[0, c])] = Interval(lower.view_as(own.lower), upper.view_as(own.upper))
            alone = bound_once(Bounded(problem, child), Forms(ROWS[:1], OFFSET[:1]), duals).lower
            torch.testing.assert_close(ahead[side, 0, c], alone[0, 0], rtol=1e-9, atol=1e-9)
