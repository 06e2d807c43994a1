"""A member's restricted network is the whole one on the member's box.

By hand first: three voxels, z = (x0 + x1, x1 + x2), f = relu(z0) - relu(z1). A member that moves x0 alone reaches z0
alone: its network has one input, one hidden neuron, and f's bias takes in -relu(z1).
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stbp_milp.bounds import footprint
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.footprint import Restrictor, grouped
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.branching.views import RestrictedView
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Linear, ReLU
from stbp_milp.network.normal_form import normal_form
from stbp_milp.properties import same_class
from stbp_milp.sets import PerturbationSet, VoxelBox
from tests.bounds.bound_cases import BODIES, case, escape, members_of, operands, single_members
from tests.enumeration import SETS

seeds = st.integers(0, 10**6)
each_set = pytest.mark.parametrize("text", SETS)
ROWS, OFFSET = same_class(0, 3).forms()
BUDGET = 1 << 30


def test_by_hand() -> None:
    b = NetworkBuilder((3,))
    b.add("z", Linear(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]).double(), torch.zeros(2).double()), "input")
    b.add("y", ReLU(), "z")
    net = b.build(b.add("f", Linear(torch.tensor([[1.0, -1.0]]).double(), torch.zeros(1).double()), "y"))
    centre = torch.tensor([[0.5, 0.25, 0.5]]).double()
    box = VoxelBox(centre, centre - torch.tensor([0.25, 0, 0]), centre + torch.tensor([0.25, 0, 0]))
    (group,) = grouped(normal_form(net), box, BUDGET)
    assert group.members.tolist() == [0]
    assert group.neurons[0].tolist() == [0]
    assert group.neurons[net.relus[0]].tolist() == [0]
    problem = Restrictor(normal_form(net), Problem.of(net, box))(group)
    assert [node.shape for node in problem.network.nodes] == [(1,), (1,), (1,), (1,)]
    assert problem.network(torch.tensor([[0.75]]).double()).item() == pytest.approx(1.0 - 0.75)


def restricted(
    net: Network, members: PerturbationSet, budget: int = BUDGET
) -> list[tuple[Tensor, Problem, RestrictedView]]:
    maps = normal_form(net)
    restrict = Restrictor(maps, Problem.of(net, members))
    result = []
    for group in grouped(maps, members, budget):
        problem = restrict(group)
        view = RestrictedView(members.clip, group.neurons[0], {})
        result.append((group.members, problem, view))
    return result


@each_set
@pytest.mark.parametrize("body", BODIES)
@given(seed=seeds, epsilon=st.sampled_from([0.2, 2.0]), dense=st.booleans())
@settings(max_examples=3)
def test_the_restricted_network_is_the_whole_one_on_the_members(
    body: str, text: str, seed: int, epsilon: float, dense: bool
) -> None:
    """Values, clips in place, bounds: equal where no adaptive slope can tip over, sound everywhere."""
    net, perturbation = case(body, text, seed, epsilon)
    members = single_members(perturbation)
    with pytest.MonkeyPatch.context() as patch:
        if not dense:
            patch.setattr(footprint, "DENSE_ENTRIES", 0)
        batches = restricted(net, members, BUDGET if seed % 2 else 1)
    assert sorted(torch.cat([items for items, _, _ in batches]).tolist()) == list(range(members.parts))
    for items, problem, view in batches:
        check(net, members.select(items), problem, view, seed)


def check(net: Network, members: PerturbationSet, problem: Problem, view: RestrictedView, seed: int) -> None:
    points = members_of(problem.inputs, seed, 6)
    values = []
    for i, own in enumerate(points):
        clips = view.clips(own)
        assert bool(members.select(torch.tensor([i])).contains(clips).all())
        outputs = torch.cat([problem.network(point.unsqueeze(0)) for point in own])
        torch.testing.assert_close(outputs, net(clips), rtol=1e-9, atol=1e-9)
        values.append(outputs)
    margins = torch.stack(values) @ ROWS.T + OFFSET
    whole = Problem.of(net, members)
    for options in (BoundingOptions("interval"), BoundingOptions()):
        bounds = preactivations(problem, options)
        assert escape(bounds, operands(problem, points)) <= 1e-9
        found = bound_once(Bounded(problem, bounds), Forms(ROWS, OFFSET)).lower
        assert bool((found.unsqueeze(1) <= margins + 1e-9).all())
        # Intervals of sums over padding and of composed matrices differ; backward bounds of two layers do not.
        if len(net.relus) == 1:
            same = bound_once(Bounded(whole, preactivations(whole, options)), Forms(ROWS, OFFSET)).lower
            torch.testing.assert_close(found, same, rtol=1e-8, atol=1e-8)


def test_groups_of_far_members_are_kept_apart() -> None:
    """No network of several members is larger than asked for."""
    net, perturbation = case("two convolutions", "patch:1x1@1", 0, 0.2)
    members = single_members(perturbation)
    alone = [group.entries for group in grouped(normal_form(net), members, 1)]
    together = grouped(normal_form(net), members, max(alone))
    assert len(alone) == members.parts
    assert max(group.entries for group in together) <= max(alone)


def test_a_member_that_cannot_move_gives_the_clean_clip() -> None:
    """Radius 0: no voxel is in any footprint, and the clip that comes back is the clean one."""
    net, perturbation = case("plain", "patch:2x2@1", 0, 0.0)
    members = single_members(perturbation)
    for _items, problem, view in restricted(net, members):
        centre = problem.inputs.centre
        clips = view.clips(centre)
        assert torch.equal(clips, perturbation.clip.expand_as(clips))
        torch.testing.assert_close(problem.network(centre), net(clips), rtol=1e-9, atol=1e-9)
