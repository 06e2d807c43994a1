"""Small networks made of plain numbers, that run in torch and in exact rational arithmetic.

A *program* is a list of *operators*, each with the positions of the values it reads (0 is the network's input). In
torch it is a module like any other. Exactly, it runs on numpy arrays of `Fraction`, which share memory where torch's
tensors do: an in-place operator changes all the views of its operand in both. Weights count as the rational numbers
that their floating-point values are; nothing here comes from the package.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Exact = np.ndarray  # of Fractions, (1, ...)

_ROOT_BITS = 400  # of a square root that is irrational

exactly = np.frompyfunc(Fraction, 1, 1)
_larger = np.frompyfunc(max, 2, 1)


class Operator(Protocol):
    def leaf(self) -> nn.Module:
        """What the operator keeps in the module; `nn.Identity` if it needs nothing."""

    def run(self, leaf: Any, *operands: Tensor) -> Tensor:
        """In torch."""

    def exact(self, *operands: Exact) -> Exact:
        """In rational arithmetic."""

    def absolute(self) -> Operator:
        """The operator whose value at magnitudes of the operands bounds all its intermediate sums."""

    @property
    def terms(self) -> int:
        """Rounded operations on the way to one of its numbers."""


def _tensor(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.tensor(np.asarray(array, dtype=np.float64)), requires_grad=False)


def _inner(weights: np.ndarray, values: Exact) -> Fraction:
    return sum((Fraction(w) * v for w, v in zip(weights, values, strict=True) if w and v), Fraction(0))


@dataclass(frozen=True, eq=False)
class Dense:
    """`weight @ x + bias` of flat operands."""

    weight: np.ndarray
    bias: np.ndarray

    def leaf(self) -> nn.Module:
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0]).double()
        layer.weight, layer.bias = _tensor(self.weight), _tensor(self.bias)
        return layer

    def run(self, leaf: Any, *operands: Tensor) -> Tensor:
        return leaf(operands[0])

    def exact(self, *operands: Exact) -> Exact:
        values = [
            _inner(row, operands[0][0]) + Fraction(b)
            for row, b in zip(self.weight.tolist(), self.bias.tolist(), strict=True)
        ]
        return np.array([values], dtype=object)

    def absolute(self) -> Dense:
        return Dense(abs(self.weight), abs(self.bias))

    @property
    def terms(self) -> int:
        return self.weight.shape[1] + 2


@dataclass(frozen=True, eq=False)
class Conv:
    """A 3D convolution of `(1, C, T, H, W)`, without padding."""

    weight: np.ndarray  # (D, C, t, h, w)
    bias: np.ndarray
    stride: tuple[int, int, int] = (1, 1, 1)

    def leaf(self) -> nn.Module:
        d, c, *kernel = self.weight.shape
        layer = nn.Conv3d(c, d, tuple(kernel), stride=self.stride).double()
        layer.weight, layer.bias = _tensor(self.weight), _tensor(self.bias)
        return layer

    def run(self, leaf: Any, *operands: Tensor) -> Tensor:
        return leaf(operands[0])

    def exact(self, *operands: Exact) -> Exact:
        crops, sizes = _windows(operands[0], self.weight.shape[2:], self.stride)
        rows = [row.ravel().tolist() for row in self.weight]
        values = [
            _inner(row, crop) + Fraction(float(b)) for row, b in zip(rows, self.bias, strict=True) for crop in crops
        ]
        return np.array(values, dtype=object).reshape(1, len(rows), *sizes)

    def absolute(self) -> Conv:
        return replace(self, weight=abs(self.weight), bias=abs(self.bias))

    @property
    def terms(self) -> int:
        return self.weight[0].size + 2


def _windows(x: Exact, kernel: Sequence[int], stride: Sequence[int]) -> tuple[list[Exact], list[int]]:
    """The operand's windows, channels together, and how many there are along every axis."""
    sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    crops = [
        x[(0, slice(None), *(slice(i * s, i * s + k) for i, k, s in zip(at, kernel, stride, strict=True)))].ravel()
        for at in itertools.product(*map(range, sizes))
    ]
    return crops, sizes


def inverse_root(value: Fraction) -> Fraction:
    """`1 / sqrt(value)`: exact where that is rational, else to some hundred digits."""
    up, down = math.isqrt(value.denominator), math.isqrt(value.numerator)
    if up * up == value.denominator and down * down == value.numerator:
        return Fraction(up, down)
    return Fraction(math.isqrt((value.denominator << 2 * _ROOT_BITS) // value.numerator), 1 << _ROOT_BITS)


@dataclass(frozen=True, eq=False)
class Norm:
    """Batch normalisation by running statistics, of a flat operand or of `(1, C, T, H, W)`."""

    mean: np.ndarray
    variance: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    epsilon: float = 1e-5
    flat: bool = False

    def leaf(self) -> nn.Module:
        layer = (nn.BatchNorm1d if self.flat else nn.BatchNorm3d)(self.mean.size, eps=self.epsilon).double()
        layer.weight, layer.bias = _tensor(self.weight), _tensor(self.bias)
        layer.running_mean, layer.running_var = torch.tensor(self.mean), torch.tensor(self.variance)
        return layer

    def run(self, leaf: Any, *operands: Tensor) -> Tensor:
        return leaf(operands[0])

    def exact(self, *operands: Exact) -> Exact:
        (x,) = operands
        columns = []
        for c in range(self.mean.size):
            m, v, w, b = (Fraction(float(a[c])) for a in (self.mean, self.variance, self.weight, self.bias))
            columns.append((x[:, c] - m) * (w * inverse_root(v + Fraction(self.epsilon))) + b)
        return np.stack(columns, 1)

    def absolute(self) -> Norm:
        return replace(self, mean=-abs(self.mean), weight=abs(self.weight), bias=abs(self.bias))

    @property
    def terms(self) -> int:
        return 12


RELUS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "module": lambda leaf, x: leaf(x),
    "module in place": lambda leaf, x: leaf(x),
    "F": lambda leaf, x: F.relu(x),
    "F in place": lambda leaf, x: F.relu(x, inplace=True),
    "F.relu_": lambda leaf, x: F.relu_(x),
    "torch": lambda leaf, x: torch.relu(x),
    "torch.relu_": lambda leaf, x: torch.relu_(x),
    "method": lambda leaf, x: x.relu(),
    "method in place": lambda leaf, x: x.relu_(),
}


@dataclass(frozen=True)
class Relu:
    how: str = "module"

    @property
    def in_place(self) -> bool:
        return "in place" in self.how or self.how.endswith("_")

    def leaf(self) -> nn.Module:
        return nn.ReLU(inplace=self.in_place)

    def run(self, leaf: Any, *operands: Tensor) -> Tensor:
        return RELUS[self.how](leaf, operands[0])

    def exact(self, *operands: Exact) -> Exact:
        result = _larger(operands[0], Fraction(0))
        if not self.in_place:
            return result
        operands[0][...] = result
        return operands[0]

    def absolute(self) -> Relu:
        return self

    terms = 0


SAMES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "identity": lambda leaf, x: leaf(x),
    "dropout": lambda leaf, x: leaf(x),
    "F.dropout": lambda leaf, x: F.dropout(x, 0.5, training=False),
    "contiguous": lambda leaf, x: x.contiguous(),
    "detach": lambda leaf, x: x.detach(),
    "flatten": lambda leaf, x: x.flatten(1),
    "view": lambda leaf, x: x.view(x.size(0), -1),
    "reshape": lambda leaf, x: x.reshape(x.shape[0], -1),
    "torch.flatten": lambda leaf, x: torch.flatten(x, 1),
    "unsqueeze": lambda leaf, x: x.unsqueeze(1).squeeze(1),
    "double": lambda leaf, x: x.double(),  # the tensor itself in a float64 module
    "clone": lambda leaf, x: x.clone(),  # the only one that is no alias
}
FLAT = ("flatten", "view", "reshape", "torch.flatten")


@dataclass(frozen=True)
class Same:
    """The operand's numbers, as an alias of it (`clone`: as a copy)."""

    how: str = "flatten"

    def leaf(self) -> nn.Module:
        return nn.Dropout() if self.how == "dropout" else nn.Identity()

    def run(self, leaf: Any, *operands: Tensor) -> Tensor:
        return SAMES[self.how](leaf, operands[0])

    def exact(self, *operands: Exact) -> Exact:
        if self.how == "clone":
            return operands[0].copy()
        return operands[0].reshape(1, -1) if self.how in FLAT else operands[0]

    def absolute(self) -> Same:
        return self

    terms = 0


def _in_place_add(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "torch.add": torch.add,
    "sub": lambda a, b: a - b,
    "maximum": torch.maximum,
    "iadd": _in_place_add,
    "add_": lambda a, b: a.add_(b),
    "sub_": lambda a, b: a.sub_(b),
}


@dataclass(frozen=True)
class Pair:
    """Two operands of one shape; `iadd`, `add_` and `sub_` change the first."""

    how: str = "add"

    def leaf(self) -> nn.Module:
        return nn.Identity()

    def run(self, leaf: Any, *operands: Tensor) -> Tensor:
        return PAIRS[self.how](*operands)

    def exact(self, *operands: Exact) -> Exact:
        first, second = operands
        if self.how == "maximum":
            return _larger(first, second)
        result = first - second if self.how.startswith("sub") else first + second
        if self.how in ("add", "torch.add", "sub"):
            return result
        first[...] = result
        return first

    def absolute(self) -> Pair:
        return Pair(self.how.replace("sub_", "add_").replace("sub", "add"))

    terms = 2


CONSTANTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "mul": lambda x, c: x * c,
    "div": lambda x, c: x / c,
    "add": lambda x, c: x + c,
    "rsub": lambda x, c: c - x,
    "mul_": lambda x, c: x.mul_(c),
    "add_": lambda x, c: x.add_(c),
    "div_": lambda x, c: x.div_(c),
}


@dataclass(frozen=True)
class Constant:
    """Arithmetic with one number."""

    how: str
    number: float

    def leaf(self) -> nn.Module:
        return nn.Identity()

    def run(self, leaf: Any, *operands: Tensor) -> Tensor:
        return CONSTANTS[self.how](operands[0], self.number)

    def exact(self, *operands: Exact) -> Exact:
        (x,), c = operands, Fraction(self.number)
        kind = self.how.rstrip("_")
        result: Exact = {"mul": x * c, "div": x / c if c else x, "add": x + c, "rsub": c - x}[kind]
        if kind == self.how:
            return result
        x[...] = result
        return x

    def absolute(self) -> Constant:
        return Constant(self.how.replace("rsub", "add"), abs(self.number))

    terms = 2


@dataclass(frozen=True)
class Pool:
    """Means or maxima over windows of `(1, C, T, H, W)`."""

    how: str  # "average", "max"; "mean": over all of every channel, flat; "adaptive": the same by a module
    kernel: tuple[int, int, int] = (1, 1, 1)

    def leaf(self) -> nn.Module:
        leaves = {"average": nn.AvgPool3d, "max": nn.MaxPool3d}
        if self.how == "adaptive":
            return nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
        return leaves[self.how](self.kernel) if self.how in leaves else nn.Identity()

    def run(self, leaf: Any, *operands: Tensor) -> Tensor:
        return operands[0].mean((2, 3, 4)) if self.how == "mean" else leaf(operands[0])

    def exact(self, *operands: Exact) -> Exact:
        (x,) = operands
        whole = self.how in ("mean", "adaptive")
        kernel = x.shape[2:] if whole else self.kernel
        parts = []
        for c in range(x.shape[1]):
            crops, sizes = _windows(x[:, c : c + 1], kernel, kernel)
            values = [max(crop) if self.how == "max" else sum(crop, Fraction(0)) / len(crop) for crop in crops]
            parts.append(np.array(values, dtype=object).reshape(sizes))
        result = np.stack(parts)[None]
        return result.reshape(1, -1) if whole else result

    def absolute(self) -> Pool:
        return self

    @property
    def terms(self) -> int:
        return math.prod(self.kernel) + 100 * (self.how in ("mean", "adaptive"))


@dataclass(frozen=True)
class Step:
    operator: Operator
    reads: tuple[int, ...]


class Module(nn.Module):
    """A program in torch."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.leaves = nn.ModuleList(step.operator.leaf() for step in steps)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for leaf, step in zip(self.leaves, self.steps, strict=True):
            values.append(step.operator.run(leaf, *(values[i] for i in step.reads)))
        return values[-1]


class Program:
    """A list of steps under construction; `at` says where a value is, `shapes` what it looks like."""

    def __init__(self, shape: Sequence[int], double: bool) -> None:
        self.double = double
        self.steps: list[Step] = []
        self.values: list[Exact] = [exactly(np.zeros((1, *shape)))]  # at a black clip: for the shapes

    def shape(self, at: int) -> tuple[int, ...]:
        """Without the batch axis."""
        return self.values[at].shape[1:]

    def add(self, operator: Operator, *reads: int) -> int:
        self.steps.append(Step(operator, reads))
        self.values.append(operator.exact(*(self.values[i] for i in reads)))
        return len(self.steps)

    def fit(self, numbers: Any) -> np.ndarray:
        """The numbers, as the module can hold them."""
        array = np.asarray(numbers, dtype=np.float64)
        return array if self.double else array.astype(np.float32).astype(np.float64)

    def dense(self, at: int, weight: Any, bias: Any) -> int:
        return self.add(Dense(self.fit(weight), self.fit(bias)), at)

    def conv(self, at: int, weight: Any, bias: Any, stride: tuple[int, int, int] = (1, 1, 1)) -> int:
        return self.add(Conv(self.fit(weight), self.fit(bias), stride), at)

    def norm(self, at: int, mean: Any, variance: Any, weight: Any, bias: Any, epsilon: float = 1e-5) -> int:
        numbers = [self.fit(a) for a in (mean, variance, weight, bias)]
        return self.add(Norm(*numbers, epsilon, flat=len(self.shape(at)) == 1), at)

    def module(self) -> nn.Module:
        module = Module(self.steps).eval()
        return module if self.double else module.float()

    def outputs(self, clip: Exact) -> list[Fraction]:
        """Exact scores of a clip (C, T, H, W) of Fractions."""
        return list(_last(self.steps, clip)[0])

    def execution_error(self, clip: Exact) -> Fraction:
        """How far scores that the module computes, in its own floating-point type, can be from the exact ones."""
        absolute = [Step(step.operator.absolute(), step.reads) for step in self.steps]
        size = max(_last(absolute, abs(clip))[0])
        terms = sum(step.operator.terms for step in self.steps) + 4
        return 2 * terms * Fraction(1, 1 << (53 if self.double else 24)) * size + Fraction(1, 10**30)


def _last(steps: Sequence[Step], clip: Exact) -> Exact:
    values = [clip.copy()[None]]
    for step in steps:
        values.append(step.operator.exact(*(values[i] for i in step.reads)))
    return values[-1]
