"""Lower bounds of the property never exceed a margin: any slopes, any multipliers, any phases, any set.

By hand first: f = relu(x0 - x1) + 0.5 on [0, 1]^2. Its least value is 0.5. With lower slope 0 the bound is 0.5; with
slope a it is 0.5 - a; where the neuron is active and the multiplier is 1 the bound is 0.5 again.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.backward import NodeForms, input_form
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.duals import Duals
from stbp_milp.bounds.interval import Interval, slope_range
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.bounds.relaxation import relax
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Linear, ReLU
from stbp_milp.properties import same_class
from stbp_milp.sets import InputSet, PerturbationSet, VoxelBox
from tests import micro_instances
from tests.bounds.bound_cases import BODIES, case, escape, hull_box, members_of, operands, random_forms, split
from tests.enumeration import SETS

seeds = st.integers(0, 10**6)
each_set = pytest.mark.parametrize("text", SETS)
each_body = pytest.mark.parametrize("body", BODIES)
PROPERTY = same_class(0, 3)
ROWS, OFFSET = PROPERTY.forms()
ROUNDING = 1e-11


@pytest.mark.parametrize(
    ("slope", "multiplier", "expected"),
    [(0.0, 0.0, 0.5), (0.25, 0.0, 0.25), (1.0, 0.0, -0.5), (1.0, 1.0, 0.5), (1.0, 0.5, 0.0)],
)
def test_by_hand(slope: float, multiplier: float, expected: float) -> None:
    b = NetworkBuilder((2,))
    b.add("z", Linear(torch.tensor([[1.0, -1.0]]).double(), torch.zeros(1).double()), "input")
    net = b.build(b.add("f", Linear(torch.ones(1, 1).double(), torch.tensor([0.5]).double()), b.add("y", ReLU(), "z")))
    box = VoxelBox(torch.full((1, 2), 0.5).double(), torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    problem = Problem.of(net, box)
    (relu,) = net.relus
    bounds = preactivations(problem, BoundingOptions())
    phases = {}
    if multiplier:
        bounds = {relu: Interval(bounds[relu].lower.clamp(min=0), bounds[relu].upper)}
        phases = {relu: torch.ones(1, 1).double()}
    duals = Duals({relu: torch.full((1, 1, 1), slope).double()}, {relu: torch.full((1, 1, 1), multiplier).double()})
    found = bound_once(
        Bounded(problem, bounds, phases), Forms(torch.ones(1, 1).double(), torch.zeros(1).double()), duals
    )
    assert found.lower.item() == pytest.approx(expected)


def rows_on(net: Network, points: Tensor) -> Tensor:
    """The forms' values on points `(N, count, *shape)`: `(N, count, M)`."""
    return torch.stack([net(own) for own in points]) @ ROWS.T + OFFSET


def never(lower: Tensor, items: Tensor) -> Tensor:
    return torch.zeros(lower.shape[0], dtype=torch.bool)


@each_set
@each_body
@given(
    seed=seeds,
    epsilon=st.sampled_from([0.05, 0.4, 2.0]),
    splits=st.integers(0, 2),
    boxed=st.booleans(),
    slope_steps=st.sampled_from([0, 3]),
)
@settings(max_examples=4)
def test_no_input_has_less_than_the_bound(
    body: str, text: str, seed: int, epsilon: float, splits: int, boxed: bool, slope_steps: int
) -> None:
    net, perturbation = case(body, text, seed, epsilon)
    perturbation = split(perturbation, splits, seed)
    inputs: InputSet = hull_box(perturbation) if boxed else perturbation
    problem = Problem.of(net, inputs)
    bounds = preactivations(problem, BoundingOptions(slope_steps=slope_steps))
    once = bound_once(Bounded(problem, bounds), Forms(ROWS, OFFSET))
    best = optimise(Bounded(problem, bounds), Forms(ROWS, OFFSET), never, OptimiserOptions(steps=6))
    assert bool((best.lower >= once.lower).all())
    # The minimiser of the linear form and what descends from it is nearest to breaking the bound.
    minimisers = problem.inputs.maximiser(-best.form)
    seen = rows_on(net, torch.cat([members_of(inputs, seed), minimisers], 1))
    assert bool((best.lower.unsqueeze(1) <= seen + ROUNDING).all())
    # Starting again from the duals found gives the bound found.
    again = bound_once(Bounded(problem, bounds), Forms(ROWS, OFFSET), best.duals)
    torch.testing.assert_close(again.lower, best.lower, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("body", BODIES)
@given(seed=seeds, text=st.sampled_from(["window:2", "any-frames:1", "patch-at:0,1,1:2x2@2", "everywhere", "pixels:1"]))
@settings(max_examples=2)
def test_bound_is_at_most_the_brute_force_optimum(body: str, text: str, seed: int) -> None:
    net, perturbation = case(body, text, seed, 0.3)
    problem = Problem.of(net, perturbation)
    bounds = preactivations(problem, BoundingOptions())
    best = optimise(Bounded(problem, bounds), Forms(ROWS, OFFSET), never, OptimiserOptions(steps=6))
    exact = min(
        micro_instances.box_minimum(net, PROPERTY, low, high).upper
        for low, high in zip(*micro_instances.enumeration.boxes(text, perturbation.clip, 0.3), strict=True)
    )
    assert float(best.lower.min()) <= exact + 1e-9


@each_body
@given(seed=seeds, text=st.sampled_from(SETS), decided=st.integers(1, 4))
@settings(max_examples=8)
def test_any_slopes_multipliers_and_phases(body: str, text: str, seed: int, decided: int) -> None:
    """Phases are those of a random clip, so that it satisfies them; the bound holds on all clips that do."""
    net, perturbation = case(body, text, seed)
    problem = Problem.of(net, perturbation)
    bounds = preactivations(problem, BoundingOptions())
    generator = torch.Generator().manual_seed(seed)
    points = members_of(perturbation, seed, 40)
    seen, margins = operands(problem, points), rows_on(net, points)[0]
    phases, known = {}, {}
    satisfying = torch.ones(40, dtype=torch.bool)
    for relu in net.relus:
        own = bounds[relu]
        undecided = ((own.lower < 0) & (own.upper > 0)).flatten().nonzero().flatten()
        chosen = undecided[torch.randperm(len(undecided), generator=generator)[:decided]]
        phase = torch.zeros_like(own.lower)
        phase.view(-1)[chosen] = torch.where(seen[relu][0, 0].flatten()[chosen] >= 0, 1.0, -1.0).double()
        phases[relu] = phase
        known[relu] = Interval(
            torch.where(phase > 0, own.lower.clamp(min=0), own.lower),
            torch.where(phase < 0, own.upper.clamp(max=0), own.upper),
        )
        satisfying &= (phase * seen[relu][0] >= 0).flatten(1).all(1)
    assert bool(satisfying[0])
    known = preactivations(problem, BoundingOptions(), known)
    assert escape(known, {relu: s[:, satisfying] for relu, s in seen.items()}) <= ROUNDING
    m = ROWS.shape[0]
    slopes = {
        r: torch.rand(1, m, *b.lower.shape[1:], generator=generator, dtype=torch.float64) for r, b in known.items()
    }
    multipliers = {
        r: 3 * torch.rand(1, m, *b.lower.shape[1:], generator=generator, dtype=torch.float64) for r, b in known.items()
    }
    for duals in (Duals(slopes), Duals(slopes, multipliers), Duals({}, multipliers)):
        found = bound_once(Bounded(problem, known, phases), Forms(ROWS, OFFSET), duals)
        assert bool((found.lower <= margins[satisfying] + ROUNDING).all())
    best = optimise(
        Bounded(problem, known, phases),
        Forms(ROWS, OFFSET),
        never,
        OptimiserOptions(steps=5),
        Duals(slopes, multipliers),
    )
    assert bool((best.lower <= margins[satisfying] + ROUNDING).all())


@each_set
@each_body
@given(seed=seeds, epsilon=st.sampled_from([0.1, 2.0]))
@settings(max_examples=3)
def test_support_is_never_weaker_than_the_whole_box(body: str, text: str, seed: int, epsilon: float) -> None:
    """With the same fixed slopes and bounds: the form on the input is the same, and the set lies in the box."""
    net, perturbation = case(body, text, seed, epsilon)
    problem = Problem.of(net, perturbation)
    bounds = preactivations(Problem.of(net, hull_box(perturbation)), BoundingOptions())
    generator = torch.Generator().manual_seed(seed)
    lines = {}
    for relu, b in bounds.items():
        alpha = torch.rand(b.lower.shape, generator=generator, dtype=torch.float64)
        slope = alpha.clamp(*slope_range(b)).unsqueeze(1)
        lines[relu] = replace(relax(b, problem.clean[net.nodes[relu].inputs[0]]), lower_slope=slope)
    back = input_form(replace(problem, rounding=None), lines, NodeForms(len(net.nodes) - 1, ROWS.unsqueeze(0)))
    with_support, with_box = back.lower(perturbation), back.lower(hull_box(perturbation))
    assert bool((with_support >= with_box - ROUNDING).all())
    seen = rows_on(net, members_of(perturbation, seed))
    assert bool((with_support.unsqueeze(1) <= seen + ROUNDING).all())
    if text in ("everywhere", "frames:0,2", "patch-at:1,0,1:2x1@2"):  # one member: the set is its hull
        torch.testing.assert_close(with_support, with_box, rtol=1e-12, atol=1e-12)


def test_support_gains_where_there_is_a_choice() -> None:
    """Otherwise the law above would hold of a support that ignores the choice."""
    net, perturbation = case("plain", "any-frames:1", 3, 0.3)
    problem, box = Problem.of(net, perturbation), Problem.of(net, hull_box(perturbation))
    bounds = preactivations(box, BoundingOptions())
    gain = (
        bound_once(Bounded(problem, bounds), Forms(ROWS, OFFSET)).lower
        - bound_once(Bounded(box, bounds), Forms(ROWS, OFFSET)).lower
    )
    assert float(gain.min()) > 0.005


@each_body
@given(seed=seeds)
@settings(max_examples=3)
def test_forms_of_their_own_for_each_item(body: str, seed: int) -> None:
    """Rows `(N, M, K)` bound every item's own forms."""
    net, perturbation = case(body, "any-frames:1", seed)
    parts = split(perturbation, 2, seed)
    problem = Problem.of(net, parts)
    bounds = preactivations(problem, BoundingOptions())
    together = bound_once(Bounded(problem, bounds), Forms(ROWS, OFFSET)).lower
    clause = torch.arange(parts.parts) % ROWS.shape[0]
    own = bound_once(Bounded(problem, bounds), Forms(ROWS[clause].unsqueeze(1), OFFSET[clause].unsqueeze(1))).lower
    torch.testing.assert_close(own[:, 0], together[torch.arange(parts.parts), clause], rtol=1e-12, atol=1e-12)


def test_the_search_for_slopes_stops_when_told() -> None:
    net, perturbation = case("two convolutions", "window:2", 1, 0.3)
    problem = Problem.of(net, perturbation)
    bounds = preactivations(problem, BoundingOptions())
    once = bound_once(Bounded(problem, bounds), Forms(ROWS, OFFSET)).lower
    late = optimise(
        Bounded(problem, bounds), Forms(ROWS, OFFSET), never, OptimiserOptions(steps=50), expired=lambda: True
    )
    settled = optimise(
        Bounded(problem, bounds),
        Forms(ROWS, OFFSET),
        lambda lower, items: ~never(lower, items),
        OptimiserOptions(steps=50),
    )
    assert torch.equal(late.lower, once)
    assert torch.equal(settled.lower, once)
    assert bool(
        (optimise(Bounded(problem, bounds), Forms(ROWS, OFFSET), never, OptimiserOptions(steps=50)).lower > once).any()
    )


def test_random_forms_differ() -> None:
    """The clips of these tests reach different corners."""
    _, perturbation = case("plain", "window:2", 0)
    assert isinstance(perturbation, PerturbationSet)
    forms = random_forms(perturbation, 2, 0)
    assert not torch.equal(forms[:, 0], forms[:, 1])
