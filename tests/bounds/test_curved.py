"""Smooth functions and products: ranges, slopes and lines hold, and so do all bounds of networks that have them.

By hand: on [-1, 3] the square has the chord 2 z + 3, the tangent 2 z - 1 in the middle, the range [0, 9] and the
slopes [-2, 6]. On x in [0, 1] and y in [2, 4], McCormick's planes for t = 0 are 2 x below and 4 x above x y.
"""

from __future__ import annotations

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stbp_milp.bounds import smooth
from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.interval import Clean, Interval, interval
from stbp_milp.bounds.lines import lines, looseness, parameters, ranges
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.functions import FUNCTIONS, Function
from stbp_milp.network.layers import Nonlinear, Product, Smooth, halves
from stbp_milp.network.operations import apply
from tests.bounds.bound_cases import CURVED, case, escape, hull_box, members_of, operands, split

ROWS = Forms(
    torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
)
seeds = st.integers(0, 10**6)
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def intervals(function: Function, seed: int, count: int = 200) -> tuple[Tensor, Tensor]:
    """Intervals of all widths, of points and around breaks too, inside the domain."""
    generator = torch.Generator().manual_seed(seed)
    centre, width, way = torch.rand(3, count, generator=generator, dtype=torch.float64)
    places = torch.tensor([0.0, *function.breaks, *(least[0] for least in function.minima)], dtype=torch.float64)
    centre = torch.where(way < 0.3, places[(way * 1000).long() % len(places)], 16 * centre - 8)
    reach = 10 ** (8 * width - 7)
    start = max(function.domain[0], -1e3)
    lower, upper = (centre - reach).clamp(min=start + 1e-3), (centre + reach).clamp(min=start + 1e-3)
    return lower, torch.where(way > 0.95, lower, upper)


def inside(lower: Tensor, upper: Tensor) -> Tensor:
    """Points of the intervals, `(points, n)`, their ends among them."""
    shares = torch.linspace(0, 1, 501, dtype=torch.float64).unsqueeze(1)
    return (lower + shares * (upper - lower)).clamp(lower, upper)


@each_function
@given(seed=seeds)
@settings(max_examples=20)
def test_ranges_and_lines_hold(function: Function, seed: int) -> None:
    lower, upper = intervals(function, seed)
    points = inside(lower, upper)
    values = function.value(points)
    least, most = smooth.value_range(function, lower, upper)
    assert bool(((values >= least) & (values <= most)).all())
    shallow, steep = smooth.slope_range(function, lower, upper)
    slopes = function.derivative(points)
    assert bool(((slopes >= shallow) & (slopes <= steep)).all())
    noise = torch.randn(len(lower), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for sign in (1, -1):
        best = smooth.best_slope(function, lower, upper, sign)
        for slope in (best, best + noise, shallow, steep):
            ends = smooth.intercept(function, slope.unsqueeze(1), lower.unsqueeze(1), upper.unsqueeze(1), sign).squeeze(
                1
            )
            assert bool((sign * (values - slope * points - ends) >= 0).all())


@each_function
def test_the_derivative_is_one_and_is_monotone_between_breaks(function: Function) -> None:
    ends = (max(function.domain[0] + 0.01, -9.0), *function.breaks, 9.0)
    for curvature, (start, stop) in zip(function.curvature, pairwise(ends), strict=True):
        x = torch.linspace(start, stop, 20001, dtype=torch.float64)[1:-1].requires_grad_()
        (slope,) = torch.autograd.grad(function.value(x).sum(), x)
        torch.testing.assert_close(function.derivative(x), slope, rtol=1e-11, atol=1e-11)
        assert float((curvature * slope.diff()).min()) >= -1e-13


@each_function
def test_minima_are_not_above_the_true_ones(function: Function) -> None:
    for start, stop, value in function.minima:
        x = torch.linspace(start - 0.1, stop + 0.1, 100001, dtype=torch.float64)
        least, place = function.value(x).min(0)
        assert value <= float(least) <= value + 1e-9
        assert start - 1e-5 <= float(x[place]) <= stop + 1e-5


@each_function
def test_lines_are_as_close_as_the_convex_hull_in_the_middle(function: Function) -> None:
    """On a wide interval: the highest line below reaches the lower hull of the sampled function at the middle."""
    lower, upper = torch.tensor([0.5 if function.domain[0] == 0 else -4.0]), torch.tensor([5.0])
    lower, upper = lower.double(), upper.double()
    points = inside(lower, upper).squeeze(1)
    values, middle = function.value(points), float(lower + upper) / 2
    for sign in (1, -1):
        slope = smooth.best_slope(function, lower, upper, sign)
        end = smooth.intercept(function, slope.view(1, 1), lower.view(1, 1), upper.view(1, 1), sign)
        hull = math.inf
        left, right = points <= middle, points > middle
        for x, y in zip(points[left].tolist()[::10], (sign * values)[left].tolist()[::10], strict=True):
            share = (middle - x) / (points[right] - x)
            hull = min(hull, float(((1 - share) * y + share * (sign * values)[right]).min()))
        spread = float(values.max() - values.min())
        assert sign * float(slope * middle + end) >= hull - 0.01 * spread


def test_by_hand() -> None:
    square = FUNCTIONS["square"]
    lower, upper = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
    assert torch.cat(smooth.value_range(square, lower, upper)).tolist() == pytest.approx([0, 9], abs=1e-9)
    assert torch.cat(smooth.slope_range(square, lower, upper)).tolist() == pytest.approx([-2, 6], abs=1e-9)
    for sign, slope, end in ((1, 2.0, -1.0), (-1, 2.0, 3.0)):
        assert float(smooth.best_slope(square, lower, upper, sign)) == pytest.approx(slope)
        own = torch.full((1, 1), slope, dtype=torch.float64)
        found = smooth.intercept(square, own, lower.view(1, 1), upper.view(1, 1), sign)
        assert float(found) == pytest.approx(end, abs=1e-6)
    box = Interval(torch.tensor([[0.0, 2.0]]).double(), torch.tensor([[1.0, 4.0]]).double())
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    own = lines(Product(), box, nothing, nothing[:, :1], torch.zeros(1, 1, 2, 1, dtype=torch.float64))
    assert own.below.flatten().tolist() == [2, 0]
    assert own.above.flatten().tolist() == [4, 0]
    assert own.below_gap.item() == own.above_gap.item() == 0
    assert looseness(Product(), box).sum().item() == pytest.approx(1.0)  # half of the product of both widths


def test_outside_of_the_domain_nothing_is_known_and_beyond_all_numbers_lines_are_flat() -> None:
    zero, one, far = (torch.tensor([x], dtype=torch.float64) for x in (0.0, 1.0, torch.inf))
    for name in ("reciprocal", "log", "sqrt", "rsqrt"):
        assert torch.cat(smooth.value_range(FUNCTIONS[name], zero, one)).tolist() == [-torch.inf, torch.inf]
    least, most = smooth.value_range(FUNCTIONS["reciprocal"], one, far)
    assert 0 >= float(least) > -1e-9
    assert 1 <= float(most) < 1 + 1e-9
    flat = torch.zeros(1, 1, dtype=torch.float64)
    assert float(smooth.intercept(FUNCTIONS["tanh"], flat, -far.view(1, 1), far.view(1, 1), 1)) == pytest.approx(-1)
    assert float(smooth.intercept(FUNCTIONS["tanh"], flat + 1, -far.view(1, 1), far.view(1, 1), 1)) == -torch.inf


@each_function
def test_functions_are_copied_by_name(function: Function) -> None:
    assert copy.deepcopy(function) is function
    assert pickle.loads(pickle.dumps(function)) is function  # noqa: S301


def layers() -> st.SearchStrategy[Nonlinear]:
    return st.one_of(st.sampled_from(list(FUNCTIONS.values())).map(Smooth), st.just(Product()))


@given(layer=layers(), seed=seeds)
@settings(max_examples=60)
def test_intervals_of_deviations_and_lines_of_any_parameters_hold(layer: Nonlinear, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    function = layer.function if isinstance(layer, Smooth) else FUNCTIONS["square"]
    lower, upper = (side.view(10, 20) for side in intervals(function, seed))
    points = inside(lower.flatten(), upper.flatten()).view(-1, 10, 20)
    points = torch.where(torch.rand(points.shape, generator=generator) < 0.5, points, points.flip(0))
    clean = points[int(torch.randint(len(points), (1,), generator=generator))]
    moved = interval(layer, [Interval(lower - clean, upper - clean)], [Clean(clean, 1e-15 * (1 + clean.abs()))], 1e-14)
    start, values = apply(layer, [clean]), torch.stack([apply(layer, [own]) for own in points])
    slack = 1e-13 * (1 + values.abs().amax(0) + start.abs())
    assert bool(((values - start >= moved.lower - slack) & (values - start <= moved.upper + slack)).all())
    box = Interval(lower, upper)
    least, most = ranges(layer, box)
    own = parameters(layer, box)
    for chosen in (own, least + (most - least) * torch.rand(own.shape, generator=generator, dtype=torch.float64)):
        relaxed = lines(layer, box, clean, start, chosen)
        for slopes, gap, sign in ((relaxed.below, relaxed.below_gap, 1), (relaxed.above, relaxed.above_gap, -1)):
            line = slopes[:, 0] * (points - clean)
            if relaxed.pairs:
                line = sum(halves(line, 2))
            size = 1e-12 * (1 + line.abs() + values.abs())
            assert bool((sign * (values - start - line - gap[:, 0]) >= -size).all())


@pytest.mark.parametrize("body", CURVED)
@given(seed=seeds, epsilon=st.sampled_from([0.01, 0.1, 0.4]))
@settings(max_examples=2)
def test_bounds_hold_on_members(body: str, seed: int, epsilon: float) -> None:
    network, perturbation = case(body, "any-frames:2", seed, epsilon)
    for inputs in (perturbation, split(perturbation, 2, seed), hull_box(perturbation)):
        problem = Problem.of(network, inputs)
        points = members_of(inputs, seed)
        seen = operands(problem, points)
        truth = network(points.flatten(0, 1)).view(*points.shape[:2], -1) @ ROWS.rows.T
        slopes = BoundingOptions(slope_steps=2 if inputs is perturbation and body != "recurrent" else 0)
        for options in (BoundingOptions("interval"), slopes):
            bounds = preactivations(problem, options)
            assert escape(bounds, seen) <= 0
            bounded = Bounded(problem, bounds)
            assert bool((bound_once(bounded, ROWS).lower <= truth.amin(1)).all())
        never = OptimiserOptions(steps=4)
        best = optimise(bounded, ROWS, lambda lower, items: torch.zeros(len(items), dtype=torch.bool), never)
        assert bool((best.lower <= truth.amin(1)).all())


@given(layer=layers(), seed=seeds)
@settings(max_examples=40)
def test_multipliers_drop_only_what_the_bounds_of_the_operand_make_positive(layer: Nonlinear, seed: int) -> None:
    """`m z >= held + m c` on the bounds, also where one of them is infinite."""
    generator = torch.Generator().manual_seed(seed)
    lower, upper = (torch.randn(1, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
    points = inside(lower.flatten(), upper.flatten())
    lower[0, 0], upper[0, 1] = -torch.inf, torch.inf
    clean = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    output = apply(layer, [clean])
    box = Interval(lower, upper)
    own = lines(layer, box, clean, output, parameters(layer, box))
    for forbidden in (0, 1):
        multiplier = torch.randn(1, 4, 6, generator=generator, dtype=torch.float64)
        multiplier[..., 2] = 0.0
        multiplier[0, :, forbidden] = multiplier[0, :, forbidden].abs() * (-1 if forbidden == 0 else 1)
        multiplier[0, 0, 1 - forbidden] = 0.0
        held = own.held(multiplier)
        truth = ((points.unsqueeze(1) - clean) * multiplier[0]).sum(2)
        assert bool((truth >= held[0] - 1e-12).all())
    assert float(own.held(torch.ones(1, 1, 6, dtype=torch.float64))) == -torch.inf


@pytest.mark.parametrize("body", CURVED)
@given(seed=seeds)
@settings(max_examples=3)
def test_bounds_shrink_to_the_value_with_the_set(body: str, seed: int) -> None:
    """Relaxations are tight to first order: the gap falls about a hundredfold when the radius falls tenfold."""
    gaps = []
    for epsilon in (1e-3, 1e-4):
        network, perturbation = case(body, "frames:1", seed, epsilon)
        box = hull_box(perturbation)
        problem = Problem.of(network, box)
        own = bound_once(Bounded(problem, preactivations(problem, BoundingOptions())), ROWS)
        truth = network(box.maximiser(-own.form).flatten(0, 1)).view(*own.lower.shape, -1) @ ROWS.rows.T
        gaps.append(float((truth.diagonal(dim1=1, dim2=2) - own.lower).max()))
    assert 0 <= gaps[1] <= max(0.2 * gaps[0], 1e-9)
