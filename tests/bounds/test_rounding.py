"""No bound is broken by rounding: bounds against exact rational arithmetic, on networks made to cancel.

All comparisons are exact, without a tolerance. By hand: x -> 2^60 x - 2^60 x + x (in two layers) is x, but its float64
evaluation and every bound of it are off by up to some hundred; what a bound says must still be true.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.duals import Duals
from stbp_milp.bounds.fold import fold
from stbp_milp.bounds.footprint import Restrictor, grouped
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.interval_bound import interval_bound
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, empty, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.bounds.rounding import rounded
from stbp_milp.milp import InputRegion, cut_rounds, encode, tighten
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Add, Layer, Linear, ReLU, Reshape, Scale
from stbp_milp.network.normal_form import normal_form
from stbp_milp.network.torch_reader import read_module
from stbp_milp.sets import PerturbationSet, SetSpecification, VoxelBox
from stbp_milp.verify import verify_clip
from tests.bounds.exact import exact_form, exact_values, random_corners

seeds = st.integers(0, 10**6)
powers = st.sampled_from([0, 4, 8, 12])
TEXTS = ["everywhere", "frames:0,2", "any-frames:2", "pixels:2"]
SIZE = 4
METHODS = {
    "interval": BoundingOptions(deep="interval"),
    "backward": BoundingOptions(),
    "optimised": BoundingOptions(slope_steps=2),
}


def linear(weight: Tensor, bias: Tensor) -> Linear:
    return Linear(weight.double(), bias.double())


def cancelling(seed: int, power: int, depth: int = 2) -> Network:
    """A clip of four numbers; every block adds up products of about 10^power that cancel, up to numbers of about 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    b = NetworkBuilder((1, SIZE, 1, 1))
    value, size = b.add("flat", Reshape((SIZE,)), "input"), SIZE
    for k in range(depth):

        def add(name: str, layer: Layer, *inputs: str, k: int = k) -> str:
            return b.add(f"{name} {k}", layer, *inputs)

        large = 10.0**power * normal(1, size)
        first = add("large", linear(torch.cat([large + normal(3, size)] * 2), normal(6)), value)
        if seed % 2:  # the large numbers pass through ReLUs, all active
            positive = linear(torch.eye(6), torch.full((6,), 4.0**2 * 10.0**power * size))
            first = add("relu large", ReLU(), add("shifted", positive, first))
        difference = torch.tensor([[1.0, -1, 0, 0, 0, 0], [0, 1.0, -1, 0, 0, 0], [1.0, 0, 0, 0, 0, -1]])
        small = add("difference", linear(difference, 0.1 * normal(3)), first)
        small = add("scaled", Scale(1 + 0.3 * normal(3), 0.1 * normal(3)), small)
        hidden = add("relu", ReLU(), small)
        mixed = add("mixed", linear(normal(4, 3), normal(4)), hidden)
        beside = add("beside", linear(normal(4, size), normal(4)), value)
        value, size = add("relu sum", ReLU(), add("sum", Add((1.0, -1.0)), mixed, beside)), 4
    return b.build(b.add("scores", linear(normal(3, size), normal(3)), value))


def asked(seed: int, power: int, text: str) -> tuple[Network, PerturbationSet]:
    torch.manual_seed(seed)
    clip = torch.rand(1, SIZE, 1, 1, dtype=torch.float64)
    return cancelling(seed, power), SetSpecification(text, 0.2).build(clip)


def exact_points(network: Network, perturbation: PerturbationSet, seed: int) -> list[list[list[Fraction]]]:
    """Exact values of all nodes at some clips of the set."""
    generator = torch.Generator().manual_seed(seed)
    points = [perturbation.clip.flatten().tolist()]
    points += [p.flatten().tolist() for p in perturbation.sample(8, generator)]
    return [exact_values(network, point) for point in points]


def holds(bounds: dict[int, Interval], network: Network, values: list[list[Fraction]], item: int = 0) -> bool:
    """Are the exact values in the bounds?"""
    for relu, own in bounds.items():
        low, high = own.lower[item].flatten().tolist(), own.upper[item].flatten().tolist()
        for value, lower, upper in zip(values[network.operand(relu)], low, high, strict=True):
            if (
                not (Fraction(lower) if lower > -torch.inf else value)
                <= value
                <= (upper if upper < torch.inf else value)
            ):
                return False
    return True


@given(seed=seeds, power=powers)
@settings(max_examples=25)
def test_clean_values_are_off_by_no_more_than_their_errors(seed: int, power: int) -> None:
    network, perturbation = asked(seed, power, "everywhere")
    clean, rounding = rounded(network, perturbation.centre)
    exact = exact_values(network, perturbation.clip.flatten().tolist())
    for value, error, true in zip(clean, rounding.errors, exact, strict=True):
        for v, e, t in zip(value.flatten().tolist(), error.flatten().tolist(), true, strict=True):
            assert abs(Fraction(v) - t) <= Fraction(e)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", TEXTS)
@given(seed=seeds, power=powers)
@settings(max_examples=8)
def test_bounds_hold_of_the_network_over_the_real_numbers(method: str, text: str, seed: int, power: int) -> None:
    network, perturbation = asked(seed, power, text)
    problem = Problem.of(network, perturbation)
    bounds = preactivations(problem, METHODS[method])
    rows = torch.tensor([[1.0, -1.0, 0.0], [0.3, 0.3, -1e8]], dtype=torch.float64)
    offset = torch.tensor([0.0, 1e8], dtype=torch.float64)
    found = {
        "once": bound_once(Bounded(problem, bounds), Forms(rows, offset)).lower,
        "ascent": optimise(
            Bounded(problem, bounds),
            Forms(rows, offset),
            lambda lower, items: lower.new_zeros(len(items)) > 0,
            OptimiserOptions(steps=3),
        ).lower,
        "interval": interval_bound(problem, rows, offset),
    }
    for values in exact_points(network, perturbation, seed):
        assert holds(bounds, network, values)
        for name, lower in found.items():
            for row, constant, bound in zip(rows, offset.tolist(), lower[0].tolist(), strict=True):
                assert bound == -torch.inf or Fraction(bound) <= exact_form(row, values[-1]) + Fraction(constant), name


@given(seed=seeds, power=powers, steps=st.sampled_from([0, 3]), parts=st.booleans())
@settings(max_examples=20)
def test_planes_hold_too(seed: int, power: int, steps: int, parts: bool) -> None:
    """Of boxes, and in batches, where a neuron that one item leaves undecided is decided in another."""
    network, perturbation = asked(seed, power, "everywhere")
    lower, upper = perturbation.hull()
    clip = perturbation.centre
    if parts:
        half = torch.cat([clip + 0.1 * (lower - clip), lower]), torch.cat([clip + 0.1 * (upper - clip), upper])
        boxes = VoxelBox(clip.expand_as(half[0]), *half)
    else:
        boxes = VoxelBox(clip, lower, upper)
    plain = Problem.of(network, boxes)
    bounds = preactivations(plain, METHODS["backward"])
    problem = plain.idealised(bounds)
    rows, offset = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 0.5, 2.0]], dtype=torch.float64), torch.zeros(2).double()
    options = OptimiserOptions(steps=steps)
    found = optimise(
        Bounded(problem, bounds), Forms(rows, offset), lambda lower, items: lower.new_zeros(len(items)) > 0, options
    ).lower
    for item in range(boxes.parts):
        low, high = boxes.lower[item].flatten(), boxes.upper[item].flatten()
        for point in random_corners(low, high, 6, seed):
            values = exact_values(network, point)
            for row, bound in zip(rows, found[item].tolist(), strict=True):
                assert bound == -torch.inf or Fraction(bound) <= exact_form(row, values[-1])


@given(seed=seeds, power=powers, text=st.sampled_from(TEXTS), strength=st.sampled_from([0.0, 1.0, 1e6]))
@settings(max_examples=25)
def test_bounds_under_phases_hold_of_every_clip_that_has_them(
    seed: int, power: int, text: str, strength: float
) -> None:
    """And a part that holds such a clip is never empty: the kind of fault that lost a counterexample."""
    network, perturbation = asked(seed, power, text)
    problem = Problem.of(network, perturbation)
    root = preactivations(problem, METHODS["backward"])
    generator = torch.Generator().manual_seed(seed)
    points = exact_points(network, perturbation, seed)
    rows, offset = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for values in points:
        known, phases = dict(root), {}
        for relu, own in root.items():
            signs = torch.tensor([1.0 if v >= 0 else -1.0 for v in values[network.operand(relu)]], dtype=torch.float64)
            taken = own.undecided[0].flatten() & (torch.rand(signs.shape, generator=generator) < 0.7)
            phases[relu] = (signs * taken).view_as(own.lower)
            known[relu] = Interval(
                torch.where(phases[relu] > 0, own.lower.clamp(min=0), own.lower),
                torch.where(phases[relu] < 0, own.upper.clamp(max=0), own.upper),
            )
        bounds = preactivations(problem, METHODS["backward"], known)
        assert not bool(empty(bounds, 1)[0])
        assert holds(bounds, network, values)
        multipliers = {
            relu: strength * torch.rand(1, 1, *sign.shape[1:], generator=generator, dtype=torch.float64)
            for relu, sign in phases.items()
        }
        lower = bound_once(
            Bounded(problem, bounds, phases), Forms(rows, offset), Duals(multipliers=multipliers)
        ).lower.item()
        assert lower == -torch.inf or Fraction(lower) <= exact_form(rows[0], values[-1])


@given(seed=seeds, power=powers, text=st.sampled_from(TEXTS))
@settings(max_examples=15)
def test_networks_made_of_parts_of_the_whole_keep_its_bounds_true(seed: int, power: int, text: str) -> None:
    network, perturbation = asked(seed, power, text)
    maps = normal_form(network)
    members = perturbation.singletons()
    whole = Problem.of(network, members)
    restrict = Restrictor(maps, whole)
    rows, offset = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for group in grouped(maps, members, 10**6):
        problem = restrict(group)
        bounds = preactivations(problem, METHODS["backward"])
        folded = fold(problem, normal_form(problem.network), bounds, 10**6)
        assert folded is not None
        for own, known in ((problem, bounds), (folded.problem, folded.bounds(bounds))):
            lower = bound_once(Bounded(own, known), Forms(rows, offset)).lower[:, 0].tolist()
            for bound, member in zip(lower, group.members.tolist(), strict=True):
                alone = replace(perturbation, choice=members.choice.select(torch.tensor([member])))
                for values in exact_points(network, alone, seed)[:4]:
                    assert bound == -torch.inf or Fraction(bound) <= exact_form(rows[0], values[-1])


@given(seed=seeds, power=powers, text=st.sampled_from(TEXTS))
@settings(max_examples=10)
def test_linear_programs_hold_of_the_network_over_the_real_numbers(seed: int, power: int, text: str) -> None:
    """Their bounds are dual bounds, so rows that are wide enough for the real network make them true of it."""
    network, perturbation = asked(seed, power, text)
    maps, region = normal_form(network), InputRegion.of(perturbation)
    bounds = preactivations(Problem.of(network, perturbation), METHODS["interval"])
    boxes = {relu: (b.lower.flatten().numpy(), b.upper.flatten().numpy()) for relu, b in bounds.items()}
    row = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    tightened = tighten(maps, region, boxes, 20.0)
    assert not tightened.empty
    encoded = encode(maps, region, tightened.boxes, row.numpy(), 0.0)
    lowers = [lower for lower, _ in cut_rounds(encoded, 2, 10.0)]
    narrower = {
        relu: Interval(*(torch.from_numpy(side).unsqueeze(0) for side in box)) for relu, box in tightened.boxes.items()
    }
    for values in exact_points(network, perturbation, seed):
        assert holds(narrower, network, values)
        assert all(Fraction(lower) <= exact_form(row, values[-1]) for lower in lowers)


def test_solvers_are_not_trusted_with_numbers_whose_rounding_reaches_their_tolerances() -> None:
    for power, trusted in ((0, True), (12, False)):
        network, perturbation = asked(3, power, "everywhere")
        encoded = encode(normal_form(network), InputRegion.of(perturbation), {}, torch.ones(3).double().numpy(), 0.0)
        assert encoded.trusted is trusted


@given(seed=seeds, depth=st.integers(1, 8))
@settings(max_examples=10)
def test_what_does_not_move_is_bounded_as_well_as_its_clean_value(seed: int, depth: int) -> None:
    torch.manual_seed(seed)
    clip = torch.rand(1, SIZE, 1, 1, dtype=torch.float64)
    problem = Problem.of(cancelling(seed, 0, depth), SetSpecification("everywhere", 0.0).build(clip))
    bounds = preactivations(problem, METHODS["interval"])
    rows, offset = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    lower = bound_once(Bounded(problem, bounds), Forms(rows, offset)).lower.item()
    exact = exact_form(rows[0], exact_values(problem.network, clip.flatten().tolist())[-1])
    assert Fraction(lower) <= exact
    assert lower == pytest.approx(float(exact), rel=1e-9, abs=1e-9 * float(problem.clean[-1].abs().max()))


def deep(depth: int) -> nn.Module:
    """Convolutions with normalisation, as trained networks have them: every layer's values are of about 1."""
    torch.manual_seed(depth)
    layers: list[nn.Module] = []
    channels = 1
    for _ in range(depth):
        layers += [nn.Conv3d(channels, 4, 3, padding=1), nn.BatchNorm3d(4, momentum=None), nn.ReLU()]
        channels = 4
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)).train()
    with torch.no_grad():
        module(torch.rand(8, 1, 2, 4, 4))
    return module.eval()


@pytest.mark.parametrize("depth", [4, 12, 25, 50])
@pytest.mark.parametrize("text", ["frames:1", "everywhere"])
def test_deep_networks_are_proved_where_almost_nothing_moves(depth: int, text: str) -> None:
    """Norm by norm, the errors of 50 layers would be 10^30 times those of one."""
    torch.manual_seed(1)
    clip = torch.rand(1, 2, 4, 4)
    outcome = verify_clip(deep(depth), clip, text, 1e-9)
    assert outcome.word == "verified"
    assert outcome.lower == pytest.approx(outcome.upper, rel=0.5)


def test_by_hand() -> None:
    b = NetworkBuilder((1,))
    large = b.add("large", linear(torch.tensor([[2.0**60], [1.0]]), torch.zeros(2)), "input")
    network = b.build(b.add("difference", linear(torch.tensor([[1.0, 1.0 - 2.0**60]]), torch.zeros(1)), large))
    clean, rounding = rounded(network, torch.full((1, 1), 0.1, dtype=torch.float64))
    exact = exact_values(network, [0.1])[-1][0]
    assert abs(Fraction(clean[-1].item()) - exact) <= Fraction(rounding.errors[-1].item())


@pytest.mark.parametrize("module", [nn.Sequential(nn.Flatten(), nn.Linear(4, 3))])
def test_float32_bounds_hold_too(module: nn.Module) -> None:
    """The unit roundoff is the type's: a problem in float32 is as safe as one in float64."""
    torch.manual_seed(0)
    network = read_module(module, (1, SIZE, 1, 1)).to(torch.float32)
    perturbation = SetSpecification("everywhere", 0.2).build(torch.rand(1, SIZE, 1, 1).double()).to(torch.float32)
    problem = Problem.of(network, perturbation)
    rows, offset = torch.tensor([[1.0, -1.0, 0.0]]), torch.zeros(1)
    lower = bound_once(Bounded(problem, preactivations(problem, METHODS["backward"])), Forms(rows, offset)).lower.item()
    box = perturbation.hull()
    for point in random_corners(*box, 20, 0):
        assert Fraction(lower) <= exact_form(rows[0], exact_values(network, point)[-1])
