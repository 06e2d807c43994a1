"""Attacks: candidates lie in the set, and on networks that can be solved by hand they are the worst of the set.

The example solved by hand: the network is x -> 2 a - 3 b + 1 on two frames (a, b) of one pixel, clean at a = b = 0.5,
radius 0.1, one frame of the attacker's choice. The margin is 0.5 and falls by 0.2 through a, by 0.3 through b: the
worst clip is (0.5, 0.6) with margin 0.2.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stbp_milp.attack import (
    AttackConfiguration,
    attack,
    representable,
)
from stbp_milp.attack.objective import single_members
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Convolution, Linear, ReLU, Reshape
from stbp_milp.properties import Property, same_class, top_k, within_tolerance
from stbp_milp.sets import PerturbationSet, SetSpecification, parse_set, support

VOXELS = (3, 4, 5)
SETS = (
    "everywhere",
    "frames:0,2",
    "any-frames:2",
    "window:2",
    "patch:2x3@2",
    "moving-patch:2x2@2",
    "patch-at:1,1,2:2x3@2",
    "pixels:3",
    "pixels-per-frame:2",
)
SMALL = AttackConfiguration(restarts=3, explore_steps=3, refine_steps=6)


def linear_network(weight: Tensor, bias: Tensor, shape: tuple[int, ...]) -> Network:
    builder = NetworkBuilder(shape)
    flat = builder.add("flat", Reshape((weight.shape[1],)), "input")
    return builder.build(builder.add("scores", Linear(weight, bias), flat))


def convolution_network(generator: torch.Generator, channels: int, classes: int) -> Network:
    """Convolution 3x3x3 - ReLU - linear scores on a clip of VOXELS."""
    builder = NetworkBuilder((channels, *VOXELS))
    weight = torch.randn(2, channels, 3, 3, 3, generator=generator)
    bias = torch.randn(2, generator=generator)
    layer = Convolution(weight, bias, (1, 1, 1), ((1, 1),) * 3, (1, 1, 1))
    hidden = builder.add("relu", ReLU(), builder.add("convolution", layer, "input"))
    size = 2 * VOXELS[0] * VOXELS[1] * VOXELS[2]
    flat = builder.add("flat", Reshape((size,)), hidden)
    last = Linear(torch.randn(classes, size, generator=generator), torch.randn(classes, generator=generator))
    return builder.build(builder.add("scores", last, flat))


def random_clip(generator: torch.Generator, channels: int) -> Tensor:
    """Float32 values, some of them saturated."""
    return (torch.rand(channels, *VOXELS, generator=generator) * 1.4 - 0.2).clamp(0, 1).double()


def random_set(text: str, seed: int, epsilon: float = 0.1) -> PerturbationSet:
    generator = torch.Generator().manual_seed(seed)
    return SetSpecification(text, epsilon).build(random_clip(generator, 2))


def test_worst_clip_of_the_example() -> None:
    clip = torch.full((1, 2, 1, 1), 0.5, dtype=torch.float64)
    perturbation = SetSpecification("any-frames:1", 0.1).build(clip)
    network = linear_network(torch.tensor([[2.0, -3.0]]), torch.tensor([1.0]), (1, 2, 1, 1))
    above_zero = Property(torch.ones(1, 1).double(), torch.zeros(1).double(), ((0,),), "output is positive")
    result = attack(network, perturbation, above_zero, torch.Generator().manual_seed(0))
    assert result.clip.flatten().tolist() == pytest.approx([0.5, 0.6])
    assert result.margin == pytest.approx(0.2)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
@pytest.mark.parametrize("text", SETS)
def test_candidates_are_float32_clips_of_the_set(text: str, seed: int) -> None:
    perturbation = random_set(text, seed)
    generator = torch.Generator().manual_seed(seed)
    network = convolution_network(generator, 2, 3)
    label = int(network(perturbation.centre.float()).argmax())
    result = attack(network, perturbation, same_class(label, 3), generator, configuration=SMALL)
    assert result.clip.dtype == torch.float32
    assert bool(perturbation.contains(result.clip.unsqueeze(0).double()).all())
    exact = same_class(label, 3).margin(network.to(torch.float64)(result.clip.unsqueeze(0).double()))
    assert result.margin == pytest.approx(float(exact), abs=1e-12)
    assert result.margin <= float(same_class(label, 3).margin(network.to(torch.float64)(perturbation.centre))) + 1e-12


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000))
@pytest.mark.parametrize("text", SETS)
def test_points_become_candidates(text: str, seed: int) -> None:
    """Points of the set move by rounding only; points from elsewhere end up in the set too."""
    perturbation = random_set(text, seed, epsilon=1 / 255)
    generator = torch.Generator().manual_seed(seed)
    inside = perturbation.sample(6, generator)
    rounded = representable(perturbation, inside)
    assert bool(perturbation.contains(rounded.double()).all())
    assert torch.equal(rounded, rounded.double().float())
    assert float((rounded.double() - inside).abs().max()) <= 2**-23
    unchanged = inside == perturbation.clip
    assert torch.equal(rounded.double()[unchanged], perturbation.clip.expand_as(inside)[unchanged])
    noise = 0.3 * torch.randn(inside.shape, generator=generator, dtype=torch.float64)
    assert bool(perturbation.contains(representable(perturbation, perturbation.nearest(inside + noise)).double()).all())
    form = torch.randn((1, 6, *perturbation.clip.shape), generator=generator, dtype=torch.float64)
    best = perturbation.maximiser(form)[0]
    assert float((representable(perturbation, perturbation.nearest(best)).double() - best).abs().max()) <= 2**-23


@pytest.mark.parametrize("text", SETS)
def test_attack_on_a_linear_network_is_the_closed_form(text: str) -> None:
    """`min <w, x> = -support(-w)`, up to the rounding of the clip to float32."""
    for seed in range(3):
        perturbation = random_set(text, seed)
        generator = torch.Generator().manual_seed(seed)
        size = perturbation.clip.numel()
        weight = torch.randn(1, size, generator=generator)
        network = linear_network(weight, torch.tensor([500.0]), tuple(perturbation.clip.shape))
        above_zero = Property(torch.ones(1, 1).double(), torch.zeros(1).double(), ((0,),), "output is positive")
        result = attack(network, perturbation, above_zero, generator, configuration=SMALL)
        form = -weight.double().view(1, 1, *perturbation.clip.shape)
        least = 500.0 - float(support(perturbation, form))
        assert result.margin == pytest.approx(least, abs=size * 2**-23)


def test_attack_reaches_both_sides_of_a_tolerance() -> None:
    """Output 3 a - b: with a, b = 0.5 +- 0.1 it leaves 1 +- 0.35 on both sides; clipping `a` leaves one side only."""
    for a, side in ((0.98, -1.0), (0.02, 1.0)):
        clip = torch.tensor([a, 0.5], dtype=torch.float32).double().view(1, 2, 1, 1)
        network = linear_network(torch.tensor([[3.0, -1.0]]), torch.zeros(1), (1, 2, 1, 1))
        reference = network.to(torch.float64)(clip.unsqueeze(0))[0]
        perturbation = SetSpecification("everywhere", 0.1).build(clip)
        result = attack(network, perturbation, within_tolerance(reference, 0.35), torch.Generator().manual_seed(0))
        assert result.margin <= 0
        moved = float(network(result.clip.unsqueeze(0))[0, 0] - reference[0])
        assert moved * side >= 0.35 - 1e-6


@pytest.mark.parametrize("k", [1, 2])
def test_micro_network_against_all_corners(k: int) -> None:
    """2x2 pixels in 2 frames, any 2 frames' pixels, 6 ReLUs: the least margin over corners, found in most seeds."""
    hits = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        builder = NetworkBuilder((1, 2, 2, 2))
        flat = builder.add("flat", Reshape((8,)), "input")
        first = Linear(torch.randn(6, 8, generator=generator), torch.randn(6, generator=generator))
        hidden = builder.add("relu", ReLU(), builder.add("hidden", first, flat))
        last = Linear(torch.randn(3, 6, generator=generator), torch.randn(3, generator=generator))
        network = builder.build(builder.add("scores", last, hidden))
        clip = torch.rand(1, 2, 2, 2, generator=generator).double()
        label = int(network(clip.unsqueeze(0).float()).argmax())
        property = top_k(label, k, 3)
        perturbation = SetSpecification("window:1", 0.4).build(clip)
        corners = torch.cartesian_prod(*[torch.arange(2)] * 4).double().view(16, 1, 1, 2, 2)
        least = torch.inf
        for frame in range(2):
            clips = clip.repeat(16, 1, 1, 1, 1)
            low, high = perturbation.lower[:, frame : frame + 1], perturbation.upper[:, frame : frame + 1]
            clips[:, :, frame : frame + 1] = low + corners * (high - low)
            least = min(least, float(property.margin(network.to(torch.float64)(clips)).amin()))
        result = attack(
            network,
            perturbation,
            property,
            generator,
            configuration=replace(SMALL, stop_below=-torch.inf, restarts=6, refine_steps=24),
        )
        hits += result.margin <= least + 1e-5
    assert hits >= 18


def test_stops_at_the_deadline_and_at_a_broken_property() -> None:
    perturbation = random_set("patch:2x3@2", 0, epsilon=1.0)
    network = convolution_network(torch.Generator().manual_seed(1), 2, 3)
    label = int(network(perturbation.centre.float()).argmax())
    property = same_class(label, 3)
    generator = torch.Generator().manual_seed(0)
    late = attack(network, perturbation, property, generator, expired=lambda: True)
    assert late.trials == 1
    assert torch.equal(late.clip.double(), perturbation.clip)
    calls: list[None] = []

    def after_three() -> bool:
        calls.append(None)
        return len(calls) > 3

    never_satisfied = replace(SMALL, stop_below=-torch.inf)
    cut = attack(network, perturbation, property, generator, after_three, never_satisfied)
    assert len(calls) == 4
    whole = attack(network, perturbation, property, generator, configuration=never_satisfied)
    assert whole.trials > cut.trials
    broken = attack(network, perturbation, property, generator, configuration=replace(SMALL, stop_below=cut.margin))
    assert broken.margin <= cut.margin
    assert broken.trials < whole.trials


def test_one_seed_one_result() -> None:
    perturbation = random_set("moving-patch:2x2@2", 3)
    network = convolution_network(torch.Generator().manual_seed(1), 2, 3)
    label = int(network(perturbation.centre.float()).argmax())
    first, second = (
        attack(network, perturbation, same_class(label, 3), torch.Generator().manual_seed(7), configuration=SMALL)
        for _ in range(2)
    )
    assert torch.equal(first.clip, second.clip)
    assert (first.margin, first.trials) == (second.margin, second.trials)


@pytest.mark.parametrize(("text", "members"), [("patch:2x3@2", 2 * 3 * 3), ("any-frames:2", 3), ("pixels:1", 60)])
def test_single_members_are_all_members(text: str, members: int) -> None:
    perturbation = random_set(text, 5)
    batches = single_members(perturbation.choice, 100)
    assert sum(batch.parts for batch in batches) == members
    covers = torch.cat([batch.union() for batch in batches])
    assert covers.flatten(1).unique(dim=0).shape[0] == members


def test_too_many_members_are_not_listed() -> None:
    assert single_members(parse_set("pixels:3", VOXELS), 1000) == ()
    assert sum(b.parts for b in single_members(parse_set("everywhere", VOXELS), 1000)) == 1
