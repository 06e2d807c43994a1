"""Every table knows every layer; the laws of the tables in `operations`, on random small layers of every class.

By hand: the convolution of (1, 2, 3) with the kernel (1, 10), padded by one zero before, is (10, 21, 32).
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import stbp_milp
from stbp_milp.bounds import crops, lines, precise
from stbp_milp.bounds.interval import Clean, Interval, interval
from stbp_milp.bounds.rounding import constant_size, terms
from stbp_milp.network import operations
from stbp_milp.network.graph import Network, Node
from stbp_milp.network.layers import (
    Add,
    Affine,
    Concatenate,
    Convolution,
    Input,
    Layer,
    Linear,
    Maximum,
    Nonlinear,
    Permute,
    Product,
    ReLU,
    Reshape,
    Scale,
    Select,
    Smooth,
)
from stbp_milp.network.operations import apply, linear, matrix, products, reads, transpose

# Every table of rules by layer, with the layers that it must not know: the input computes nothing, nonlinear layers
# have no linear part, only they are relaxed, and only ReLUs have words of their own. A new table belongs here, a new
# layer into every table.
NONLINEAR = get_args(Nonlinear)
STRAIGHT = (Input, *get_args(Affine))
TABLES: dict[str, tuple[Any, tuple[type, ...]]] = {
    "apply": (apply, (Input,)),
    "linear": (linear, (Input, *NONLINEAR)),
    "transpose": (transpose, (Input, *NONLINEAR)),
    "matrix": (matrix, (Input, *NONLINEAR)),
    "products": (products, ()),
    "terms": (terms, ()),
    "precise: length": (precise._length, (Input, Smooth, Product)),
    "precise: step": (precise._step, (Input, Smooth, Product)),
    "lines: undecided": (lines.undecided, STRAIGHT),
    "lines: parameters": (lines.parameters, STRAIGHT),
    "lines: ranges": (lines.ranges, STRAIGHT),
    "lines: lines": (lines.lines, (*STRAIGHT, ReLU)),
    "lines: steepness": (lines.steepness, (*STRAIGHT, ReLU)),
    "lines: looseness": (lines.looseness, (*STRAIGHT, ReLU)),
    "crops: reached": (crops._reached, (Input,)),
    "crops: wanted": (crops._wanted, (Input,)),
    "crops: restricted": (crops._restricted, ()),
}


@dataclass(frozen=True, eq=False)
class Foreign:
    """A layer that no table has heard of."""


@dataclass(frozen=True)
class Sample:
    layer: Layer
    operand_shapes: tuple[tuple[int, ...], ...]
    seed: int

    def tensor(self, *shape: int, salt: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + salt)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def operands(self, clips: int = 2) -> list[Tensor]:
        return [self.tensor(clips, *shape, salt=i + 1) for i, shape in enumerate(self.operand_shapes)]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(apply(self.layer, self.operands())[0].shape)


seeds = st.integers(0, 2**31)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def convolutions(draw: st.DrawFn) -> Sample:
    axes = draw(st.integers(1, 3))
    small, padding = st.integers(1, 3), st.integers(0, 3)
    each = st.tuples(*[small] * axes)
    kernel, stride, dilation = draw(each), draw(each), draw(each)
    sides = draw(st.tuples(*[st.one_of(padding.map(lambda p: (p, p)), st.tuples(padding, padding))] * axes))
    groups, inner, outer, seed = draw(small), draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(seeds)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    spatial = tuple(
        max(draw(st.integers(1, 5)), r - before - after) for r, (before, after) in zip(reach, sides, strict=True)
    )
    weight, bias = _random(seed, groups * outer, inner, *kernel), _random(seed + 1, groups * outer)
    return Sample(Convolution(weight, bias, stride, sides, dilation, groups), ((groups * inner, *spatial),), seed)


@st.composite
def linears(draw: st.DrawFn) -> Sample:
    outputs, inputs, seed = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(seeds)
    return Sample(Linear(_random(seed, outputs, inputs), _random(seed, outputs)), ((inputs,),), seed)


@st.composite
def scales(draw: st.DrawFn) -> Sample:
    shape, seed = draw(shapes), draw(seeds)
    flat = st.tuples(*[st.booleans()] * len(shape))
    factor, offset = ([1 if one else n for one, n in zip(draw(flat), shape, strict=True)] for _ in range(2))
    dropped = draw(st.integers(0, len(shape)))  # leading axes left out altogether
    return Sample(Scale(_random(seed, *factor[dropped:]), _random(seed, *offset)), (shape,), seed)


@st.composite
def reshapes(draw: st.DrawFn) -> Sample:
    shape, seed = draw(shapes), draw(seeds)
    return Sample(Reshape(draw(st.permutations(shape).map(tuple))), (shape,), seed)


@st.composite
def selects(draw: st.DrawFn) -> Sample:
    shape, seed = draw(shapes), draw(seeds)
    axis = draw(st.integers(0, len(shape) - 1))
    padded = draw(st.booleans())
    index = draw(st.lists(st.integers(-1 if padded else 0, shape[axis] - 1), min_size=1, max_size=5))
    return Sample(Select(axis, torch.tensor(index), padded), (shape,), seed)


@st.composite
def permutations(draw: st.DrawFn) -> Sample:
    shape, seed = draw(shapes), draw(seeds)
    return Sample(Permute(tuple(draw(st.permutations(range(len(shape)))))), (shape,), seed)


@st.composite
def concatenations(draw: st.DrawFn) -> Sample:
    shape, seed = draw(shapes), draw(seeds)
    axis = draw(st.integers(0, len(shape) - 1))
    lengths = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    operands = tuple((*shape[:axis], length, *shape[axis + 1 :]) for length in lengths)
    return Sample(Concatenate(axis, lengths), operands, seed)


@st.composite
def additions(draw: st.DrawFn) -> Sample:
    shape, seed = draw(shapes), draw(seeds)
    coefficients = draw(st.lists(st.sampled_from([1.0, -1.0, 0.0, 2.5]), min_size=1, max_size=4))
    return Sample(Add(tuple(coefficients)), (shape,) * len(coefficients), seed)


@st.composite
def maxima(draw: st.DrawFn) -> Sample:
    return Sample(Maximum(), (draw(shapes),) * 3, draw(seeds))


@st.composite
def relus(draw: st.DrawFn) -> Sample:
    return Sample(ReLU(), (draw(shapes),), draw(seeds))


AFFINE: dict[type, Callable[[], st.SearchStrategy[Sample]]] = {
    Convolution: convolutions,
    Linear: linears,
    Scale: scales,
    Reshape: reshapes,
    Permute: permutations,
    Select: selects,
    Concatenate: concatenations,
    Add: additions,
    Maximum: maxima,
}
on_every_affine_layer = pytest.mark.parametrize("kind", AFFINE, ids=lambda kind: kind.__name__)


def test_every_layer_class_has_a_sample() -> None:
    assert {*AFFINE, *NONLINEAR, Input} == set(get_args(Layer))
    assert set(AFFINE) == set(get_args(Affine))


@pytest.mark.parametrize("kind", get_args(Layer), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_a_rule_for_every_layer(table: str, kind: type) -> None:
    rules, unknown = TABLES[table]
    has_a_rule = rules.dispatch(kind) is not rules.dispatch(object)
    assert has_a_rule == (kind not in unknown), f"{table} and {kind.__name__}"


def test_every_table_of_the_package_is_in_the_list() -> None:
    """Tables by layer are found by the type of their first rule; `interval` has a test of its own below."""
    found = set()
    for module in pkgutil.walk_packages(stbp_milp.__path__, "stbp_milp."):
        if module.name.split(".")[1] in ("network", "bounds", "milp", "branching"):
            for value in vars(import_module(module.name)).values():
                if not set(getattr(value, "registry", ())).isdisjoint(get_args(Layer)):
                    found.add(value)
    assert found - {interval} == {rules for rules, _ in TABLES.values()}


@pytest.mark.parametrize("table", TABLES)
def test_every_table_refuses_what_it_does_not_know(table: str) -> None:
    rules, _ = TABLES[table]
    arguments = len(inspect.signature(rules.dispatch(object)).parameters) - 1
    with pytest.raises(NotImplementedError, match="Foreign"):
        rules(Foreign(), *[None] * arguments)


def test_intervals_and_rounding_refuse_what_they_do_not_know() -> None:
    """They may work with the linear part of any layer, but only where it has one, and never guess."""
    x = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="Foreign"):
        interval(Foreign(), [Interval(x, x + 1)], [Clean(x, x)], 0.0)
    network = Network((Node("input", Input(), (), (2,)), Node("foreign", Foreign(), (0,), (2,))))  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="Foreign"):
        constant_size(network, 1, x)


@pytest.mark.parametrize("kind", get_args(Affine), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_intervals_hold_every_affine_layer(kind: type, data: st.DataObject) -> None:
    """So every layer has a rule there, generic or its own."""
    sample = data.draw(AFFINE[kind]())
    clean = sample.operands(clips=1)
    if kind is Maximum:  # its third operand is the ReLU of the difference of the others
        clean[2] = torch.relu(clean[0] - clean[1])
    boxes = [Interval(torch.full_like(x, -0.5), torch.full_like(x, 0.5)) for x in clean]
    found = interval(sample.layer, boxes, [Clean(x, 1e-15 * x.abs()) for x in clean], 1e-14)
    inside = [x + sample.tensor(*x.shape, salt=99).clamp(-0.5, 0.5) for x in clean]
    if kind is Maximum:
        inside[2] = torch.relu(inside[0] - inside[1])
    value = apply(sample.layer, inside) - apply(sample.layer, clean)
    assert bool((value >= found.lower - 1e-12).all())
    assert bool((value <= found.upper + 1e-12).all())


def test_convolution_by_hand() -> None:
    layer = Convolution(torch.tensor([[[1.0, 10.0]]]), torch.zeros(1), (1,), ((1, 0),), (1,))
    assert apply(layer, [torch.tensor([[[1.0, 2.0, 3.0]]])]).tolist() == [[[10.0, 21.0, 32.0]]]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_batch_in_parts_is_the_batch(monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, clips = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2, 3, 3), (7, 2, 9, 9))
    )
    layer = Convolution(weight, weight[:, 0, 0, 0], (stride, stride), ((1, 1), (0, 2)), (1, 1))
    whole = apply(layer, [clips])
    monkeypatch.setattr(operations, "PATCH_BYTES", 2 * 8 * 18 * 81)
    torch.testing.assert_close(apply(layer, [clips]), whole)
    assert apply(layer, [clips[:0]]).shape == (0, *whole.shape[1:])


@on_every_affine_layer
@given(data=st.data())
def test_value_is_the_sum_of_linear_parts_and_a_constant(kind: type, data: st.DataObject) -> None:
    sample = data.draw(AFFINE[kind]())
    operands = sample.operands()
    constant = apply(sample.layer, [torch.zeros_like(x) for x in operands])
    parts = sum(linear(sample.layer, i, x) for i, x in enumerate(operands))
    torch.testing.assert_close(apply(sample.layer, operands), parts + constant)


@on_every_affine_layer
@given(data=st.data())
def test_transpose_is_the_adjoint(kind: type, data: st.DataObject) -> None:
    sample = data.draw(AFFINE[kind]())
    form = sample.tensor(2, 3, *sample.shape)
    for i, x in enumerate(sample.operands()):
        back = transpose(sample.layer, i, form, sample.operand_shapes[i])
        assert back.shape == (2, 3, *sample.operand_shapes[i])
        here = (form * linear(sample.layer, i, x).unsqueeze(1)).flatten(2).sum(-1)
        there = (back * x.unsqueeze(1)).flatten(2).sum(-1)
        torch.testing.assert_close(here, there)


@on_every_affine_layer
@given(data=st.data())
def test_matrix_is_the_linear_part(kind: type, data: st.DataObject) -> None:
    sample = data.draw(AFFINE[kind]())
    for i, x in enumerate(sample.operands(clips=1)):
        weights = matrix(sample.layer, i, sample.operand_shapes[i], sample.shape)
        column = x.reshape(-1).numpy()
        np.testing.assert_allclose(weights @ column, linear(sample.layer, i, x).reshape(-1).numpy(), atol=1e-12)
        absolute = linear(sample.layer, i, x, absolute=True).reshape(-1).numpy()
        np.testing.assert_allclose(abs(weights) @ column, absolute, atol=1e-12)
        assert reads(sample.layer, i) or weights.nnz == 0


@given(sample=maxima())
def test_maximum_is_the_larger_operand(sample: Sample) -> None:
    first, second, _ = sample.operands()
    value = apply(sample.layer, [first, second, apply(ReLU(), [first - second])])
    torch.testing.assert_close(value, torch.maximum(first, second))


@given(sample=relus())
def test_relu_is_the_positive_part(sample: Sample) -> None:
    (x,) = sample.operands()
    assert torch.equal(apply(sample.layer, [x]), torch.relu(x))
