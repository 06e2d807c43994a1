"""What PERFORMANCE.md reports; skipped unless asked for: `pytest tests/benchmarks --benchmark-only`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.first_layer import first_layer
from stbp_milp.bounds.footprint import Restrictor, grouped
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.graph import NetworkBuilder
from stbp_milp.network.layers import Convolution, ReLU, Reshape
from stbp_milp.network.model import load_model
from stbp_milp.network.normal_form import normal_form
from stbp_milp.properties import same_class
from stbp_milp.sets import Patch, PerturbationSet, SetSpecification
from stbp_milp.st_bench import SHIPPED

LARGE_SETS = ("everywhere", "any-frames:2", "window:2", "patch:8x8@2", "moving-patch:8x8@2", "pixels:5")


@pytest.mark.parametrize("text", LARGE_SETS)
def test_first_layer_of_a_large_clip(benchmark: BenchmarkFixture, text: str) -> None:
    """64 filters 3x3x3 on a clip of 3x16x112x112, float32: 12.8 million neurons."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(64, 3, 3, 3, 3, generator=generator), torch.randn(64, generator=generator)
    builder = NetworkBuilder((3, 16, 112, 112))
    builder.add("convolution", Convolution(weight, bias, (1, 1, 1), ((1, 1),) * 3, (1, 1, 1)), "input")
    builder.add("relu", ReLU(), "convolution")
    builder.add("flat", Reshape((64 * 16 * 112 * 112,)), "relu")
    network = builder.build("flat")
    clip = torch.rand(3, 16, 112, 112, generator=generator)
    double = SetSpecification(text, 8 / 255).build(clip)
    perturbation = PerturbationSet(double.clip.float(), double.lower.float(), double.upper.float(), double.choice)
    clean = torch.zeros(1, 64, 16, 112, 112)
    found = benchmark.pedantic(first_layer, (network, clean, perturbation, 1), rounds=1)
    assert found is not None
    assert bool((found.lower <= found.upper).all())


def _members() -> tuple[Problem, PerturbationSet]:
    model = load_model(SHIPPED / "onnx" / "activity-S-pgd.onnx")
    clip = torch.from_numpy(np.load(SHIPPED / "clips" / "activity-S.npz")["clips"][0]).double()
    union = SetSpecification("patch:3x3@2", 1.0).build(clip)
    assert isinstance(union.choice, Patch)
    members = union.singletons()
    return Problem.of(model.network, members), members


def test_all_members_restricted(benchmark: BenchmarkFixture) -> None:
    """The 1,372 positions of a 3x3 patch in 2 frames, eps 1, each on its own small network."""
    problem, members = _members()
    rows, offset = same_class(0, 4).forms()

    def bound() -> torch.Tensor:
        maps = normal_form(problem.network)
        lower = torch.empty(members.parts, 3, dtype=torch.float64)
        restrict = Restrictor(maps, problem)
        for group in grouped(maps, members, 1 << 24):
            small = restrict(group)
            lower[group.members] = bound_once(
                Bounded(small, preactivations(small, BoundingOptions())), Forms(rows, offset)
            ).lower
        return lower

    assert bool(torch.isfinite(benchmark.pedantic(bound, rounds=3, warmup_rounds=1)).all())


def test_forty_members_naively(benchmark: BenchmarkFixture) -> None:
    """40 of the same positions one by one on the whole network: times 34.3 for all of them."""
    problem, members = _members()
    rows, offset = same_class(0, 4).forms()
    sample = torch.arange(0, members.parts, members.parts // 40)[:40]

    def bound() -> torch.Tensor:
        lower = []
        for item in sample.tolist():
            one = problem.with_inputs(members.select(torch.tensor([item])))
            lower.append(bound_once(Bounded(one, preactivations(one, BoundingOptions())), Forms(rows, offset)).lower)
        return torch.cat(lower)

    assert bool(torch.isfinite(benchmark.pedantic(bound, rounds=1)).all())
