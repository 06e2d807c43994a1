"""A member on its crop is the member on the whole network: values, bounds, batches.

By hand first: nine voxels in a row, z = x convolved with (1, 1, 1) and one zero on either side, y = relu(z) pooled by
maxima of two, f = sum y. Voxel 4 reaches z3..z5; windows [2, 3] and [4, 5] read them, so z2 joins the crop. From there
on, with zeros around, z2..z5 come from the voxel alone: one zero more before it than the kernel needs after it.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.cells import Cell, cell_problem, cells, voxel_indices, voxel_ranges
from stbp_milp.bounds.crops import Region, cropped, footprint
from stbp_milp.bounds.duals import Duals
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.lines import ranges
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem, select_preactivations
from stbp_milp.branching.views import CroppedView
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Convolution, Linear, ReLU, Reshape, Select
from stbp_milp.properties import same_class
from stbp_milp.sets import PerturbationSet, VoxelBox
from tests.bounds.bound_cases import BODIES, case, escape, members_of, single_members
from tests.bounds.crop_cases import NAMES, room
from tests.enumeration import SETS

seeds = st.integers(0, 10**6)
ROWS, OFFSET = same_class(0, 3).forms()
METHODS = {"interval": BoundingOptions("interval"), "backward": BoundingOptions()}
each_body = pytest.mark.parametrize("name", NAMES)


def drawn(perturbation: PerturbationSet, seed: int, count: int = 4) -> PerturbationSet:
    members = perturbation.singletons()
    order = torch.randperm(members.parts, generator=torch.Generator().manual_seed(seed))
    return members.select(order[:count])


def box_of(members: PerturbationSet) -> VoxelBox:
    lower, upper = members.hull()
    return VoxelBox(members.centre.expand_as(lower), lower, upper)


def one_cell(network: Network, members: PerturbationSet) -> Region:
    """The box of voxels that all the members lie in, grown until its footprint needs no others."""
    ranges = voxel_ranges(members)
    ends = zip(ranges[..., 0].amin(0).tolist(), ranges[..., 1].amax(0).tolist(), strict=True)
    box = Region(network.input_shape, ((0, network.input_shape[0]), *ends))
    while (grown := footprint(network, box)[0]) != box:
        box = grown
    return box


def on_crop(network: Network, members: PerturbationSet) -> tuple[Problem, tuple[Region, ...], CroppedView]:
    voxels = one_cell(network, members)
    problem = cell_problem(Problem.of(network, members), members, voxels)
    return (
        problem,
        footprint(network, voxels),
        CroppedView(members.clip, voxel_indices(voxels, members.clip.device), {}),
    )


# --- by hand -----------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    b = NetworkBuilder((1, 9))
    ones, nothing = torch.ones(1, 1, 3).double(), torch.zeros(1).double()
    b.add("y", ReLU(), b.add("z", Convolution(ones, nothing, (1,), ((1, 1),), (1,)), "input"))
    even, odd = (b.add(f"taps {i}", Select(1, torch.arange(i, i + 7, 2)), "y") for i in (0, 1))
    b.add("flat", Reshape((4,)), b.maximum("pooled", even, odd))
    network = b.build(b.add("f", Linear(torch.ones(1, 4).double(), nothing), "flat"))
    regions = footprint(network, Region((1, 9), ((0, 1), (4, 5))))
    found = {node.name: region.ranges[-1] for node, region in zip(network.nodes, regions, strict=True)}
    assert (found["z"], found["y"], found["taps 0"], found["pooled"], found["flat"]) == (
        (2, 6),
        (2, 6),
        (1, 3),
        (1, 3),
        (1, 3),
    )
    small = {node.name: node for node in cropped(network, regions).nodes}
    layers = [small[name].layer for name in ("z", "taps 0", "f")]
    assert isinstance(layers[0], Convolution)
    assert layers[0].padding == ((3, 2),)
    assert isinstance(layers[1], Select)
    assert layers[1].index.tolist() == [0, 2]
    assert isinstance(layers[2], Linear)
    assert layers[2].weight.shape == (1, 2)


def test_a_layer_that_nothing_reaches_keeps_one_position() -> None:
    """A stride of 2 steps over voxel 3: its deviation is zero, and so is all that comes of it."""
    b = NetworkBuilder((1, 5))
    b.add("z", Convolution(torch.ones(1, 1, 1).double(), torch.zeros(1).double(), (2,), ((0, 0),), (1,)), "input")
    network = b.build(b.add("flat", Reshape((3,)), "z"))
    regions = footprint(network, Region((1, 5), ((0, 1), (3, 4))))
    small = cropped(network, regions)
    assert small.nodes[1].shape == (1, 1)
    problem = Problem(small, VoxelBox(*torch.zeros(3, 1, 1, 1)), tuple(torch.zeros(1, *n.shape) for n in small.nodes))
    assert problem.values(torch.ones(1, 1, 1).double())[1].tolist() == [[[0.0]]]


# --- laws --------------------------------------------------------------------------------------------------------


@each_body
@given(seed=seeds)
@settings(max_examples=4)
def test_values_on_the_crop_are_those_of_the_whole(name: str, seed: int) -> None:
    """And nothing outside the footprint changes."""
    network, perturbation = room(name, seed)
    for i in range(2):
        member = drawn(perturbation, seed + i, 1)
        problem, regions, view = on_crop(network, member)
        assert [node.shape for node in problem.network.nodes] == [tuple(c.shape[1:]) for c in problem.clean]
        points = members_of(problem.inputs, seed, 4)[0]
        clips = view.clips(points)
        assert bool(member.contains(clips).all())
        clean, whole = network.values(member.centre), network.values(clips)
        for region, before, after, value in zip(regions, clean, whole, problem.values(points), strict=True):
            torch.testing.assert_close(value, region.of(after), rtol=1e-10, atol=1e-10)
            outside = ~inside(region, before.shape[1:])
            torch.testing.assert_close(after[:, outside], before[:, outside].expand(4, -1), rtol=1e-12, atol=1e-12)


def inside(region: Region, shape: torch.Size) -> Tensor:
    """Which of a node's elements lie in the region, `(*shape)` bool."""
    mask = torch.zeros(region.view, dtype=torch.bool)
    mask[tuple(slice(*ends) for ends in region.ranges)] = True
    return mask.view(shape)


@each_body
@pytest.mark.parametrize("method", METHODS)
@given(seed=seeds, epsilon=st.sampled_from([0.1, 0.6]))
@settings(max_examples=4)
def test_bounds_on_the_crop_are_those_of_the_member_alone_on_the_whole(
    name: str, method: str, seed: int, epsilon: float
) -> None:
    network, perturbation = room(name, seed, epsilon=epsilon)
    member = drawn(perturbation, seed, 1)
    problem, regions, _ = on_crop(network, member)
    alone = Problem.of(network, box_of(member))
    bounds, expected = preactivations(problem, METHODS[method]), preactivations(alone, METHODS[method])
    for relu in network.relus:
        operand = network.nodes[relu].inputs[0]
        region, clean = regions[operand], alone.clean[operand]
        near = tolerance(network)
        close(bounds[relu], Interval(region.of(expected[relu].lower), region.of(expected[relu].upper)), near)
        outside = ~inside(region, clean.shape[1:])
        for end in (expected[relu].lower, expected[relu].upper):
            torch.testing.assert_close(end[:, outside], clean[:, outside], rtol=1e-9, atol=1e-9)
    half = [halves(network, b, 2) for b in (bounds, expected)]
    found = bound_once(Bounded(problem, bounds), Forms(ROWS, OFFSET), half[0]).lower
    torch.testing.assert_close(
        found,
        bound_once(Bounded(alone, expected), Forms(ROWS, OFFSET), half[1]).lower,
        rtol=tolerance(network),
        atol=tolerance(network),
    )
    points = members_of(problem.inputs, seed, 8)[0]
    values = problem.values(points)
    operands = {r: values[network.operand(r)].unsqueeze(0) for r in network.nonlinear}
    assert escape(bounds, operands) <= 1e-12
    assert bool((found <= values[-1] @ ROWS.T + OFFSET + 1e-9).all())


def halves(network: Network, bounds: dict[int, Interval], rows: int) -> Duals:
    """Slopes of 1/2, or in the middle of their ranges, which do not tip over as adaptive ones may."""
    slopes = {}
    for position, own in bounds.items():
        least, most = ranges(network.nodes[position].layer, own)
        middle = torch.full_like(least, 0.5) if position in network.relus else (least + most) / 2
        sides = middle if position in network.relus else middle.expand(-1, -1, 2, *middle.shape[3:])
        slopes[position] = sides.expand(-1, rows, *sides.shape[2:])
    return Duals(slopes)


def tolerance(network: Network) -> float:
    """Slopes of smooth functions are found by bisection, which may end one step further."""
    return 1e-9 if network.is_piecewise_linear else 1e-3


def close(found: Interval, expected: Interval, near: float = 1e-9) -> None:
    torch.testing.assert_close(found.lower, expected.lower, rtol=near, atol=near)
    torch.testing.assert_close(found.upper, expected.upper, rtol=near, atol=near)


@each_body
@given(seed=seeds)
@settings(max_examples=4)
def test_members_together_are_bounded_as_one_by_one(name: str, seed: int) -> None:
    """On the crop that holds them all, larger than each one's own."""
    network, perturbation = room(name, seed, "patch:1x1@1")
    members = drawn(perturbation, seed)
    problem, regions, _ = on_crop(network, members)
    clean = network.values(members.centre)
    together = preactivations(problem, METHODS["interval"])
    deep = preactivations(problem, METHODS["backward"])
    lower = bound_once(Bounded(problem, together), Forms(ROWS, OFFSET), halves(network, together, 2)).lower
    for i in range(members.parts):
        item = torch.tensor([i])
        one, own, _ = on_crop(network, members.select(item))
        alone = preactivations(one, METHODS["interval"])
        for relu in network.relus:
            operand = network.nodes[relu].inputs[0]
            batched = select_preactivations(together, item)[relu]
            close(spread(batched, regions[operand], clean[operand]), spread(alone[relu], own[operand], clean[operand]))
        found = bound_once(Bounded(one, alone), Forms(ROWS, OFFSET), halves(network, alone, 2)).lower
        torch.testing.assert_close(lower[item], found, rtol=1e-9, atol=1e-9)
        values = problem.select(item).values(members_of(problem.inputs, seed, 6)[i])
        seen = {r: values[network.operand(r)].unsqueeze(0) for r in network.nonlinear}
        assert escape(select_preactivations(deep, item), seen) <= 1e-12


def spread(bounds: Interval, region: Region, clean: Tensor) -> Interval:
    """Bounds on a region as bounds of the whole node: outside they are the clean value."""
    low, high = clean.clone(), clean.clone()
    mask = inside(region, clean.shape[1:])
    low[:, mask], high[:, mask] = bounds.lower.flatten(1), bounds.upper.flatten(1)
    return Interval(low, high)


@pytest.mark.parametrize("text", SETS)
@pytest.mark.parametrize("body", BODIES)
@given(seed=seeds)
@settings(max_examples=1)
def test_every_set_and_layer(body: str, text: str, seed: int) -> None:
    """The small cases of all other laws: every member in one cell, its bounds those of the whole network."""
    network, perturbation = case(body, text, seed)
    members = single_members(perturbation)
    whole, found = Problem.of(network, members), cells(network, members)
    assert sorted(torch.cat([cell.members for cell in found]).tolist()) == list(range(members.parts))
    for cell in found[:2]:
        own = members.select(cell.members)
        problem = cell_problem(whole, own, cell.voxels)
        assert (problem.inputs.hull()[0] != problem.inputs.centre).sum() == (box_of(own).lower != own.centre).sum()
        alone = Problem.of(network, box_of(own))
        bounds, expected = (preactivations(p, METHODS["interval"]) for p in (problem, alone))
        regions = footprint(network, cell.voxels)
        for relu in network.relus:
            region = regions[network.nodes[relu].inputs[0]]
            near = tolerance(network)
        close(bounds[relu], Interval(region.of(expected[relu].lower), region.of(expected[relu].upper)), near)


def test_cells_are_chosen_by_cost() -> None:
    """Wide cells where weights and calls cost most, and no cell mixes members of different sizes."""
    network, perturbation = room("strided", 0, "patch:1x1@1")
    members = perturbation.singletons()
    found = cells(network, members)
    assert 1 <= len(found) < members.parts
    for cell in found:
        ranges = voxel_ranges(members.select(cell.members))
        low, high = (torch.tensor(ends) for ends in zip(*cell.voxels.ranges[1:], strict=True))
        assert torch.equal(ranges[..., 0].amin(0), low)
        assert torch.equal(ranges[..., 1].amax(0), high)
    assert isinstance(found[0], Cell)
