"""Bounds for certified training: those of the verifier, of a whole batch, and differentiable.

clip 1x4x6x6 -> Conv3d(1, 2, 3, stride 2) -> BatchNorm -> ReLU -> Flatten -> Linear(36, 3)
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stbp_milp.bounds.first_layer import first_layer
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.interval_bound import interval_bound
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.torch_reader import read_module
from stbp_milp.sets import SetSpecification, parse_set
from stbp_milp.st_bench.certified import Attacked, Box, bounds, worst_outputs
from stbp_milp.st_bench.families import FAMILIES, Family

CASES = [(family, text, radius) for family in FAMILIES.values() for text, radius in family.sets]
NAMES = [f"{family.name} {text}" for family, text, _ in CASES]


def _double(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double().eval()


def _network(family: Family) -> nn.Module:
    """Random weights, and statistics of batch normalisation that are not those of the start."""
    torch.manual_seed(4)
    network = family.size("S").network().train()
    with torch.no_grad():
        network(family.draw(16, 1)[0])
    return network.eval()


@pytest.mark.parametrize("text", sorted({text for _, text, _ in CASES}))
def test_first_layer_is_the_closed_form_of_every_clip(text: str) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(2, 3, 3, stride=2, padding=1).double()
    clips = torch.rand(3, 2, 4, 6, 5, dtype=torch.float64)
    choice = parse_set(text, (4, 6, 5))
    box = Box((clips - 0.2).clamp(min=0), (clips + 0.2).clamp(max=1))
    made = bounds(layer, Attacked(clips, box, choice))
    network = read_module(nn.Sequential(layer, nn.Flatten()), clips.shape[1:])
    for i, clip in enumerate(clips):
        problem = Problem.of(network, SetSpecification(text, 0.2).build(clip))
        moves = first_layer(network, problem.inputs, 1, 0.0)
        assert isinstance(moves, Interval)
        truth = Interval(problem.clean[1] + moves.lower, problem.clean[1] + moves.upper)
        torch.testing.assert_close(made.lower[i : i + 1], truth.lower, atol=1e-12, rtol=0)
        torch.testing.assert_close(made.upper[i : i + 1], truth.upper, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("family", "text", "radius"), CASES, ids=NAMES)
def test_worst_margins_are_the_verifiers_and_hold_on_members(family: Family, text: str, radius: float) -> None:
    network = _network(family)
    clips, targets = family.draw(3, 9)
    choice = parse_set(text, (clips.shape[2], clips.shape[3], clips.shape[4]))
    with torch.no_grad():
        outputs = network(clips)
        goals = targets if family.property_kind == "class" else outputs
        worst = worst_outputs(network, clips, goals, choice, radius / 2)
    read = read_module(network, family.shape("S"))
    for i in range(len(clips)):
        property = family.property(outputs[i], targets[i])
        margin = _margin(family, worst[i], goals[i])
        perturbation = SetSpecification(text, radius / 2).build(clips[i])
        bound = float(interval_bound(Problem.of(read, perturbation), *property.forms()).min())
        assert margin == pytest.approx(bound, abs=1e-4, rel=1e-4)
        members = perturbation.sample(20, torch.Generator().manual_seed(i))
        assert float(property.margin(read(members)).min()) >= bound - 1e-9


def _margin(family: Family, worst: Tensor, goal: Tensor) -> float:
    if family.property_kind == "tolerance":
        return family.tolerance - float((worst - goal).max())
    others = [c for c in range(len(worst)) if c != int(goal)]
    return -float(worst[others].max())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_without_radius_the_worst_case_is_the_clean_one(family: Family) -> None:
    network = _network(family)
    clips, targets = family.draw(4, 2)
    choice = parse_set("everywhere", (clips.shape[2], clips.shape[3], clips.shape[4]))
    with torch.no_grad():
        worst, outputs = worst_outputs(network, clips, targets, choice, 0.0), network(clips)
    if family.property_kind == "class":
        expected = outputs - outputs.gather(1, targets[:, None])
    else:
        expected = targets + (outputs - targets).abs()
    torch.testing.assert_close(worst, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", ["window:2", "patch:3x3@2", "pixels:2", "moving-patch:2x2@2"])
def test_slopes_are_those_of_small_differences(text: str) -> None:
    torch.manual_seed(1)
    network = _double(nn.Sequential(nn.Conv3d(1, 2, 3, 2, 1), nn.BatchNorm3d(2), nn.ReLU(), nn.Flatten(), _head()))
    clips = torch.rand(2, 1, 4, 6, 6, dtype=torch.float64)
    labels = torch.tensor([0, 2])
    choice = parse_set(text, (4, 6, 6))
    weight = network.get_parameter("0.weight")

    def total() -> Tensor:
        return worst_outputs(network, clips, labels, choice, 0.1).sum()

    (slope,) = torch.autograd.grad(total(), weight)
    assert float(slope.abs().max()) > 0
    assert _difference(total, weight, (1, 0, 1, 2, 0)) == pytest.approx(float(slope[1, 0, 1, 2, 0]), abs=1e-5)


def _head() -> nn.Module:
    return nn.Linear(36, 3)


def _difference(function: Callable[[], Tensor], weight: Tensor, at: tuple[int, ...], step: float = 1e-6) -> float:
    with torch.no_grad():
        values = []
        for sign in (1.0, -1.0):
            weight[at] += sign * step
            values.append(float(function()))
            weight[at] -= sign * step
    return (values[0] - values[1]) / (2 * step)


def test_layers_without_a_rule_are_refused() -> None:
    clips = torch.rand(1, 1, 4, 6, 6)
    network = nn.Sequential(nn.Conv3d(1, 2, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), _head())
    with pytest.raises(NotImplementedError, match="Sigmoid"):
        worst_outputs(network, clips, torch.tensor([0]), parse_set("everywhere", (4, 6, 6)), 0.1)
