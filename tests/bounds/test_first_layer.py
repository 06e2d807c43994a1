"""The closed form of the first layer equals the support of explicit rows, enumeration, and the MILP.

By hand first: a difference of neighbouring frames, z = x1 - x0, on two frames of one pixel, both 0.5, radius 0.1, one
frame of the attacker's choice: z lies in [-0.1, 0.1]; with both frames in [-0.2, 0.2].
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from solvers import SolveLimits
from stbp_milp.bounds.first_layer import first_layer
from stbp_milp.milp import InputRegion, encode, minimum
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Convolution, Linear, Reshape, Scale
from stbp_milp.network.normal_form import normal_form
from stbp_milp.sets import PerturbationSet, SetSpecification, support
from tests import enumeration
from tests.bounds.bound_cases import split
from tests.enumeration import SETS

seeds = st.integers(0, 10**6)
each_set = pytest.mark.parametrize("text", SETS)


@pytest.mark.parametrize(("text", "reach"), [("any-frames:1", 0.1), ("window:2", 0.2), ("patch-at:0,0,0:1x1@1", 0.1)])
def test_difference_of_frames_by_hand(text: str, reach: float) -> None:
    b = NetworkBuilder((1, 2, 1, 1))
    weight = torch.tensor([-1.0, 1.0], dtype=torch.float64).view(1, 1, 2, 1, 1)
    b.add("z", Convolution(weight, torch.zeros(1).double(), (1,) * 3, ((0, 0),) * 3, (1,) * 3), "input")
    net = b.build(b.add("out", Reshape((1,)), "z"))
    perturbation = SetSpecification(text, 0.1).build(torch.full((1, 2, 1, 1), 0.5, dtype=torch.float64))
    found = first_layer(net, perturbation, 1, 0.0)
    assert found is not None
    assert found.lower.item() == pytest.approx(-reach)
    assert found.upper.item() == pytest.approx(reach)


def convolution(
    seed: int, voxels: tuple[int, int, int], before: bool = False, after: bool = False
) -> tuple[Network, int] | None:
    """A random convolution on 2 channels, possibly between scalings, and its node; None where no output remains.

    Kernels go from 1 to more than the clip, which padding then makes room for; the two sides are padded apart.
    """
    random = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    kernel = [int(k) for k in random.integers(1, 5, size=3)]
    stride, dilation = ([int(n) for n in random.integers(1, 3, size=3)] for _ in range(2))
    padding = [(int(p), int(q)) for p, q in random.integers(0, 3, size=(3, 2))]
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(n + sum(p) < span for n, p, span in zip(voxels, padding, spans, strict=True)):
        return None
    b = NetworkBuilder((2, *voxels))
    last = "input"
    if before:
        last = b.add("before", Scale(normal(2, 1, 1, 1), normal(*voxels)), last)
    layer = Convolution(normal(2, 2, *kernel), normal(2), tuple(stride), tuple(padding), tuple(dilation))
    last = b.add("convolution", layer, last)
    if after:
        last = b.add("after", Scale(normal(2, 1, 1, 1), normal(2, 1, 1, 1)), last)
    size = int(np.prod(b.shape(last)))
    net = b.build(b.add("flat", Reshape((size,)), last))
    return net, len(net.nodes) - 2


def rows_of(net: Network) -> Tensor:
    """The affine network's rows `(outputs, *input_shape)`, by unit vectors."""
    size = int(np.prod(net.input_shape))
    zero = torch.zeros(1, *net.input_shape, dtype=torch.float64)
    units = torch.eye(size, dtype=torch.float64).view(size, *net.input_shape)
    return (net(units) - net(zero)).T.reshape(-1, *net.input_shape)


def closed_form(net: Network, node: int, perturbation: PerturbationSet, **options: int) -> tuple[Tensor, Tensor]:
    found = first_layer(net, perturbation, node, 0.0, **options)
    assert found is not None
    assert found.lower.shape == (perturbation.parts, *net.nodes[node].shape)
    clean = net.values(perturbation.centre)[node]
    return (clean + found.lower).flatten(1), (clean + found.upper).flatten(1)


@each_set
@given(
    seed=seeds,
    voxels=st.tuples(st.integers(3, 4), st.integers(2, 4), st.integers(2, 4)),
    epsilon=st.sampled_from([0.0, 0.2, 2.0]),
    splits=st.integers(0, 3),
    scalings=st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=40)
def test_closed_form_equals_the_support_of_the_rows(
    text: str, seed: int, voxels: tuple[int, int, int], epsilon: float, splits: int, scalings: tuple[bool, bool]
) -> None:
    drawn = convolution(seed, voxels, *scalings)
    if drawn is None:
        return
    net, node = drawn
    perturbation = split(SetSpecification(text, epsilon).build(enumeration.random_clip(seed, 2, voxels)), splits, seed)
    lower, upper = closed_form(net, node, perturbation)
    rows = rows_of(net).unsqueeze(0).expand(perturbation.parts, -1, -1, -1, -1, -1)
    constant = net(perturbation.centre) - (rows_of(net) * perturbation.clip).flatten(1).sum(1)
    torch.testing.assert_close(upper, support(perturbation, rows) + constant, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(lower, -support(perturbation, -rows) + constant, rtol=1e-11, atol=1e-11)
    few = closed_form(net, node, perturbation, chunk_bytes=1)  # one filter at a time
    torch.testing.assert_close((lower, upper), few, rtol=1e-13, atol=1e-13)


@each_set
@given(seed=seeds, epsilon=st.sampled_from([0.2, 2.0]))
@settings(max_examples=15)
def test_closed_form_equals_enumeration(text: str, seed: int, epsilon: float) -> None:
    voxels = (3, 2, 3)
    drawn = convolution(seed, voxels)
    if drawn is None:
        return
    net, node = drawn
    perturbation = SetSpecification(text, epsilon).build(enumeration.random_clip(seed, 2, voxels))
    boxes = enumeration.boxes(text, perturbation.clip, epsilon)
    constant = net(torch.zeros_like(perturbation.centre))[0]
    lower, upper = closed_form(net, node, perturbation)
    for i, row in enumerate(rows_of(net)):
        assert float(upper[0, i]) == pytest.approx(float(enumeration.largest(row, *boxes) + constant[i]), abs=1e-11)
        assert float(lower[0, i]) == pytest.approx(float(-enumeration.largest(-row, *boxes) + constant[i]), abs=1e-11)


@pytest.mark.parametrize("solver", ["scip", "highs"])
@each_set
def test_closed_form_equals_the_milp_optimum(text: str, solver: str) -> None:
    voxels, done = (3, 3, 2), 0
    for seed in range(100):
        drawn = convolution(seed, voxels, before=seed % 2 == 0)
        if drawn is None:
            continue
        net, node = drawn
        perturbation = SetSpecification(text, 0.3).build(enumeration.random_clip(seed, 2, voxels))
        lower, upper = closed_form(net, node, perturbation)
        neuron = int(np.random.default_rng(seed).integers(lower.shape[1]))
        unit = np.eye(lower.shape[1])[neuron]
        for form, expected in ((unit, lower[0, neuron]), (-unit, -upper[0, neuron])):
            encoded = encode(normal_form(net), InputRegion.of(perturbation), {}, form, 0.0)
            found = minimum(encoded, solver, SolveLimits(20.0)).dual_bound  # type: ignore[arg-type]
            assert found == pytest.approx(float(expected), abs=1e-5)
        done += 1
        if done == 4:
            return
    raise AssertionError("too few convolutions")


def test_other_layers_have_no_closed_form() -> None:
    perturbation = SetSpecification("window:1", 0.1).build(torch.full((2, 2, 2, 2), 0.5, dtype=torch.float64))
    b = NetworkBuilder((2, 2, 2, 2))
    b.add("flat", Reshape((16,)), "input")
    dense = b.build(b.add("dense", Linear(torch.ones(3, 16).double(), torch.zeros(3).double()), "flat"))
    assert first_layer(dense, perturbation, 2, 0.0) is None
    b = NetworkBuilder((2, 2, 2, 2))
    weight = torch.ones(2, 1, 1, 1, 1, dtype=torch.float64)
    b.add("grouped", Convolution(weight, torch.zeros(2).double(), (1,) * 3, ((0, 0),) * 3, (1,) * 3, groups=2), "input")
    grouped = b.build(b.add("out", Reshape((16,)), "grouped"))
    assert first_layer(grouped, perturbation, 1, 0.0) is None
