"""Precise values against exact rational arithmetic: bounds always hold, and are of the size of a rounding error.

By hand first: f(x) = 1e20 (x + 2^-50) - 1e20 x is 1e20 2^-50 for every x; an ordinary float64 forward pass at x = 1
gets it wrong in the fourth digit, at x = 1000 it gets 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stbp_milp.bounds import precise
from stbp_milp.bounds.precise import precise_values
from stbp_milp.network.graph import Network, NetworkBuilder, Node
from stbp_milp.network.layers import Add, Convolution, Linear, Maximum, ReLU, Reshape, Scale, Select
from stbp_milp.network.operations import apply, matrix, reads
from stbp_milp.network.torch_reader import read_module

seeds = st.integers(0, 10**6)
KINDS = ["normal", "wide", "cancelling", "subnormal", "whole", "float32"]


# --- exact values -----------------------------------------------------------------------------------------


def exact_values(network: Network, x: Tensor) -> tuple[list[list[Fraction]], list[Fraction]]:
    """The exact value of every node, flat, and the largest sum of its terms' magnitudes; by the layers' matrices."""
    values = [[Fraction(v) for v in x.flatten().tolist()]]
    terms = [max(abs(v) for v in values[0])]
    for node in network.nodes[1:]:
        operands = [values[i] for i in node.inputs]
        if isinstance(node.layer, ReLU):
            values.append([max(v, Fraction(0)) for v in operands[0]])
            terms.append(terms[node.inputs[0]])
            continue
        shapes = [network.nodes[i].shape for i in node.inputs]
        constant = apply(node.layer, [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes])
        sums = [Fraction(v) for v in constant.flatten().tolist()]
        sizes = [abs(v) for v in sums]
        for k, operand in enumerate(operands):
            if reads(node.layer, k):
                entries = matrix(node.layer, k, shapes[k], node.shape).tocoo()
                for row, column, entry in zip(
                    *(a.tolist() for a in (entries.row, entries.col, entries.data)), strict=True
                ):
                    term = Fraction(entry) * operand[column]
                    sums[row] += term
                    sizes[row] += abs(term)
        values.append(sums)
        moves = isinstance(node.layer, Reshape | Select)  # no sum of its own
        terms.append(terms[node.inputs[0]] if moves else max(sizes))
    return values, terms


def assert_bounds_hold(exact: list[list[Fraction]], values: tuple[Tensor, ...], bounds: tuple[Tensor, ...]) -> None:
    for truth, value, bound in zip(exact, values, bounds, strict=True):
        assert value.shape == bound.shape
        for t, v, b in zip(truth, value.flatten().tolist(), bound.flatten().tolist(), strict=True):
            assert math.isfinite(b)
            assert abs(Fraction(v) - t) <= Fraction(b)


def assert_bounds_are_small(
    exact: list[list[Fraction]], terms: list[Fraction], bounds: tuple[Tensor, ...], factor: float = 2.0**-50
) -> None:
    for truth, size, bound in zip(exact, terms, bounds, strict=True):
        largest = max(abs(t) for t in truth)
        for t, b in zip(truth, bound.flatten().tolist(), strict=True):
            reference = max(abs(t), largest / 2**20, size / 2**60)
            assert Fraction(b) <= Fraction(factor) * reference + Fraction(2) ** -1067


# --- networks ---------------------------------------------------------------------------------------------


def numbers(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> Tensor:
    """Weights of the kind, float64."""
    normal = generator.standard_normal(shape)
    if kind == "wide":
        normal = normal * 10.0 ** generator.uniform(-30, 30, shape)
    elif kind == "cancelling":
        normal = np.where(generator.random(shape) < 0.5, 1e12, -1e12) + normal
    elif kind == "subnormal":
        normal = normal * 2.0 ** generator.integers(-1074, -1020, shape).astype(np.float64)
        normal = np.where(generator.random(shape) < 0.3, generator.standard_normal(shape), normal)
    elif kind == "whole":
        normal = generator.integers(-3, 4, shape).astype(np.float64)
    elif kind == "float32":
        normal = normal.astype(np.float32).astype(np.float64)
    return torch.from_numpy(np.asarray(normal))


def every_layer(kind: str, seed: int) -> tuple[Network, Tensor]:
    """conv - relu - scale - maximum with its mirror image - add - grouped conv, uneven padding - relu - linear."""
    g = np.random.default_rng(seed)
    b = NetworkBuilder((2, 2, 3, 3))
    first = Convolution(
        numbers(kind, (2, 2, 1, 2, 2), g), numbers(kind, (2,), g), (1, 2, 1), ((0, 0), (1, 1), (0, 0)), (1, 1, 2)
    )
    b.add("conv", first, "input")
    b.add("relu", ReLU(), "conv")
    b.add("scale", Scale(numbers(kind, (2, 1, 1, 1), g), numbers(kind, b.shape("relu"), g)), "relu")
    b.add("flip", Select(2, torch.tensor([1, 0])), "scale")
    b.maximum("max", "scale", "flip")
    b.add("add", Add((1.0, float(numbers(kind, (1,), g)))), "max", "relu")
    second = Convolution(
        numbers(kind, (2, 1, 2, 1, 1), g), numbers(kind, (2,), g), (1, 1, 1), ((0, 1), (0, 0), (0, 0)), (1, 1, 1), 2
    )
    b.add("grouped", second, "add")
    b.add("again", ReLU(), "grouped")
    flat = math.prod(b.shape("again"))
    b.add("flat", Reshape((flat,)), "again")
    net = b.build(b.add("out", Linear(numbers(kind, (3, flat), g), numbers(kind, (3,), g)), "flat"))
    clip = numbers("wide" if kind == "wide" else "normal", (1, 2, 2, 3, 3), g)
    return net, clip


def deep(depth: int, channels: int = 4) -> tuple[Network, Tensor]:
    """Conv3d - BatchNorm3d - ReLU, `depth` times, with the statistics of random clips; a mean and five scores."""
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    inputs = 1
    for _ in range(depth):
        layers += [nn.Conv3d(inputs, channels, 3, padding=1), nn.BatchNorm3d(channels, momentum=None), nn.ReLU()]
        inputs = channels
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, 5)).train()
    with torch.no_grad():
        model(torch.rand(8, 1, 2, 4, 4))
    clip = torch.rand(1, 1, 2, 4, 4, dtype=torch.float64)
    torch.random.set_rng_state(generator_state)
    return read_module(model.eval(), (1, 2, 4, 4)), clip


def dense(*layers: tuple[list[list[float]], list[float]]) -> Network:
    b = NetworkBuilder((len(layers[0][0][0]),))
    name = "input"
    for i, (weight, bias) in enumerate(layers):
        name = b.add(
            str(i), Linear(torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)), name
        )
    return b.build(name)


def coarse(network: Network, x: Tensor, bits: int, words: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One run of few short words."""
    arithmetic = precise._Arithmetic(bits, words, precise._Budget(math.inf))
    values, bounds, _ = precise._run(network, x, arithmetic)
    return tuple(values), tuple(bounds)


# --- laws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", [1.0, 1000.0, 0.1])
def test_by_hand(x: float) -> None:
    net = dense(([[1.0], [1.0]], [2.0**-50, 0.0]), ([[1e20, -1e20]], [0.0]))
    clip = torch.tensor([[x]], dtype=torch.float64)
    found = precise_values(net, clip)
    assert found is not None
    assert found[0][-1].tolist() == [[1e20 * 2.0**-50]]
    assert float(found[1][-1]) <= 1e-15 * 1e20 * 2.0**-50
    assert abs(float(net(clip)) / (1e20 * 2.0**-50) - 1) > 1e-4 or x == 1.0


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds)
@settings(max_examples=12)
def test_bounds_hold_and_are_small(kind: str, seed: int) -> None:
    net, clip = every_layer(kind, seed)
    exact, terms = exact_values(net, clip)
    found = precise_values(net, clip)
    assert found is not None
    assert_bounds_hold(exact, *found)
    assert_bounds_are_small(exact, terms, found[1])
    assert all(v.shape == (1, *node.shape) for v, node in zip(found[0], net.nodes, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=seeds, bits=st.integers(4, 18), words=st.integers(1, 4))
@settings(max_examples=12)
def test_bounds_hold_with_few_and_short_words(kind: str, seed: int, bits: int, words: int) -> None:
    """The values are then poor, signs unknown, weights cut off: the bounds must say so."""
    net, clip = every_layer(kind, seed)
    assert_bounds_hold(exact_values(net, clip)[0], *coarse(net, clip, bits, words))


@given(seed=seeds, offset=st.sampled_from([0.0, 1e6, -3e15]))
@settings(max_examples=10)
def test_batch_normalisation_that_takes_away_nearly_all(seed: int, offset: float) -> None:
    """conv, scale to a large number, scale back: what is left has lost nothing."""
    g = np.random.default_rng(seed)
    b = NetworkBuilder((1, 4))
    conv = Convolution(numbers("normal", (2, 1, 3), g), numbers("normal", (2,), g), (1,), ((1, 1),), (1,))
    b.add("conv", conv, "input")
    away = torch.tensor([[offset], [offset + 1.0]], dtype=torch.float64)
    b.add("up", Scale(numbers("normal", (2, 1), g), away), "conv")
    b.add("down", Scale(torch.full((2, 1), 3.0, dtype=torch.float64), -3.0 * away), "up")
    b.add("relu", ReLU(), "down")
    net = b.build(b.add("flat", Reshape((8,)), "relu"))
    clip = numbers("normal", (1, 1, 4), g)
    found = precise_values(net, clip)
    assert found is not None
    exact, terms = exact_values(net, clip)
    assert_bounds_hold(exact, *found)
    assert_bounds_are_small(exact, [Fraction(0) for _ in terms], found[1])


@pytest.mark.parametrize("weight", [1.0 - 2.0**-53, 2.0 / 3.0, 0.5 + 2.0**-30])
def test_long_sums_of_one_sign_are_exact(weight: float) -> None:
    """20 000 equal products fill the 53 bits as far as they are ever filled."""
    n = 20_000
    net = dense(([[weight] * n], [0.0]))
    clip = torch.full((1, n), 1.0 - 2.0**-53, dtype=torch.float64)
    found = precise_values(net, clip)
    assert found is not None
    truth = n * Fraction(weight) * Fraction(1.0 - 2.0**-53)
    assert abs(Fraction(float(found[0][-1])) - truth) <= Fraction(float(found[1][-1])) <= truth / 2**52


@pytest.mark.parametrize("depth", [18, 50])
def test_depth_does_not_matter(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rounding error at every depth; three times as many words confirm it."""
    net, clip = deep(depth)
    found = precise_values(net, clip)
    assert found is not None
    for value, bound in zip(*found, strict=True):
        assert bool((bound <= 1.01 * 2.0**-52 * value.abs().clamp(min=2.0**-20 * float(value.abs().max()))).all())
    monkeypatch.setattr(precise, "FIRST_WORDS", 45)
    again = precise_values(net, clip)
    assert again is not None
    for value, bound, other, other_bound in zip(*found, *again, strict=True):
        assert bool(((value - other).abs() <= (bound + other_bound) * (1 + 1e-9)).all())
    ordinary = net.values(clip)
    assert float((ordinary[-1] - found[0][-1]).abs().max()) < 1e-9


def test_what_is_exact_has_no_error() -> None:
    """Short numbers stay exact; a neuron that is surely off is exactly 0, however rough its operand."""
    third = torch.tensor([[1.0 / 3.0, -1.0 / 3.0]], dtype=torch.float64)
    b = NetworkBuilder((2,))
    b.add(
        "rough",
        Scale(torch.tensor([0.1, 0.1], dtype=torch.float64), torch.tensor([0.0, -0.7], dtype=torch.float64)),
        "input",
    )
    net = b.build(b.add("relu", ReLU(), "rough"))
    values, bounds = coarse(net, third, 10, 2)
    assert float(bounds[1][0, 1]) > 0
    assert (float(values[2][0, 1]), float(bounds[2][0, 1])) == (0.0, 0.0)
    assert float(bounds[2][0, 0]) > 0
    whole = dense(([[3.0, 0.5], [0.0, 0.0]], [1.0, 0.25]))
    found = precise_values(whole, torch.tensor([[0.5, -2.0]], dtype=torch.float64))
    assert found is not None
    assert found[0][1].tolist() == [[1.5, 0.25]]
    assert all(not bool(bound.any()) for bound in found[1])


def test_operands_that_cancel_everywhere_are_enough() -> None:
    """`0.1 x - 0.1 x`: no number of words makes the error small beside 0, but beside its terms."""
    b = NetworkBuilder((1,))
    b.add("first", Scale(torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)), "input")
    b.add("relu", ReLU(), "first")
    net = b.build(b.add("difference", Add((1.0, -1.0)), "first", "relu"))
    found = precise_values(net, torch.tensor([[0.3]], dtype=torch.float64))
    assert found is not None
    assert float(found[0][-1]) == 0.0
    assert float(found[1][-1]) <= 2.0**-111 * 0.03


@pytest.mark.parametrize("x", [1.0, 1.5, -(2.0**7) - 2.0**-30, 3 * 2.0**5, 2.0**60 + 2.0**20])
def test_values_that_float64_cannot_hold(x: float) -> None:
    """2^-1080 x and its ReLU: rounded to a multiple of 2^-1074, and the bound says so."""
    b = NetworkBuilder((1,))
    name = "input"
    for i in range(2):
        factor, offset = (torch.tensor(v, dtype=torch.float64) for v in (2.0**-540, 0.0))
        name = b.add(str(i), Scale(factor, offset), name)
    net = b.build(b.add("relu", ReLU(), name))
    clip = torch.tensor([[x]], dtype=torch.float64)
    exact, _ = exact_values(net, clip)
    for values, bounds in (precise_values(net, clip) or ((), ()), coarse(net, clip, 12, 9)):
        assert_bounds_hold(exact, values, bounds)
        assert float(bounds[2]) <= 2.0**-1070 + 2.0**-50 * float(values[2].abs())


def test_a_network_in_float32_is_taken_as_stored() -> None:
    net, clip = deep(3)
    single = net.to(torch.float32)
    found, stored = (
        precise_values(single, clip.float()),
        precise_values(single.to(torch.float64), clip.float().double()),
    )
    assert found is not None
    assert stored is not None
    assert all(torch.equal(a, b) and a.dtype == torch.float64 for a, b in zip(found[0], stored[0], strict=True))


# --- limits -----------------------------------------------------------------------------------------------


def test_too_much_work() -> None:
    net, clip = deep(3)
    assert precise_values(net, clip, most_work=1e5) is None
    assert precise_values(net, clip, most_work=1e9) is not None


@pytest.mark.parametrize("weights", [(1e200, 1e200), (1.7976931348623157e308, 1e-300)])
def test_numbers_without_words(weights: tuple[float, float]) -> None:
    net = dense(*(([[weight]], [0.0]) for weight in weights))
    assert precise_values(net, torch.ones(1, 1, dtype=torch.float64)) is None


def test_every_layer_has_a_rule_and_others_are_refused() -> None:
    for layer in (Convolution, Linear, Scale, Reshape, Select, Add, ReLU, Maximum):
        assert layer in precise._step.registry

    @dataclass(frozen=True)
    class Unknown:
        """A layer without rules."""

    net, clip = deep(1)
    strange = Network((*net.nodes, Node("strange", Unknown(), (len(net.nodes) - 1,), (5,))))  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="no rule for layer Unknown"):
        precise_values(strange, clip)
