"""The layers a network is made of: data only, one small vocabulary.

Readers translate every operator of a model into these; the rules that compute with them live in one table a
method (`operations`, `bounds.interval`, `bounds.backward`). A *node shape* never includes the batch axis.

Average pooling becomes a grouped `Convolution` (and a `Scale` where a padded window counts fewer voxels), batch
normalisation a `Scale`. Max pooling becomes pairwise maxima, `max(a, b) = b + relu(a - b)`, so that every method,
ReLU splits included, is complete on it without a rule of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stbp_milp.network.functions import Function


@dataclass(frozen=True, eq=False)
class Input:
    """The clip. Always node 0, the only node without inputs."""


@dataclass(frozen=True, eq=False)
class Convolution:
    """Cross-correlation over 1, 2 or 3 axes, zero padding, as `torch.nn.ConvNd`."""

    weight: Tensor  # (C_out, C_in / groups, *kernel)
    bias: Tensor  # (C_out,)
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # (before, after) per axis
    dilation: tuple[int, ...]
    groups: int = 1

    @cached_property
    def patches(self) -> int:
        """Bytes of patches for each voxel of a clip: in float64 on the CPU, torch writes them down before it
        multiplies, for a whole batch at once. 0 elsewhere."""
        if self.weight.dtype != torch.float64 or self.weight.device.type != "cpu":
            return 0
        return max(1, 8 * self.weight[0].numel() // math.prod(self.stride))


@dataclass(frozen=True, eq=False)
class Linear:
    """`W x + b` on a flat node.

    `magnitude`: of a matrix that was composed of others, what its entries' terms add up to without their signs,
    `(out, in)`; None where nothing can have cancelled. Its rounding is relative to that.
    """

    weight: Tensor  # (out, in)
    bias: Tensor  # (out,)
    magnitude: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Scale:
    """`factor * x + offset`, elementwise; both broadcast to the node shape (no batch axis)."""

    factor: Tensor
    offset: Tensor


@dataclass(frozen=True, eq=False)
class Reshape:
    """The same numbers in row-major order under another node shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Permute:
    """The axes of the node shape in another order: axis `i` of the value is axis `order[i]` of the operand."""

    order: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Select:
    """`x[..., index, ...]` along one axis of the node shape; an index may repeat or be missing.

    Where `padded`, the index -1 stands for a zero: zero padding, and the gaps of a transposed convolution.
    """

    axis: int
    index: Tensor  # (n,) int64
    padded: bool = False


@dataclass(frozen=True, eq=False)
class Concatenate:
    """Operands one after the other along one axis of the node shape, of these lengths."""

    axis: int
    lengths: tuple[int, ...]

    def place(self, operand: int) -> tuple[int, int]:
        """Where the operand lies along the axis: `[start, stop)`."""
        start = sum(self.lengths[:operand])
        return start, start + self.lengths[operand]


@dataclass(frozen=True, eq=False)
class Add:
    """`sum_i coefficients[i] * x_i` of inputs of one shape."""

    coefficients: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ReLU:
    """`max(x, 0)`, elementwise."""


@dataclass(frozen=True, eq=False)
class Smooth:
    """`f(x)`, elementwise."""

    function: Function


@dataclass(frozen=True, eq=False)
class Product:
    """`x * y`, elementwise; the only operand holds x and y one after the other along its first axis."""


@dataclass(frozen=True, eq=False)
class Maximum:
    """`max(a, b)` with inputs `(a, b, relu(a - b))`; its value is `b + relu(a - b)`.

    As a linear map it ignores `a`; interval rules use `a`, because `[max(l_a, l_b), max(u_a, u_b)]` is exact
    for independent operands where `b + relu(a - b)` is not.
    """


Affine = Convolution | Linear | Scale | Reshape | Permute | Select | Concatenate | Add | Maximum
"""The layers with a linear part: affine functions of their operands."""

Nonlinear = ReLU | Smooth | Product
"""The other layers; each has one operand."""

Layer = Input | Affine | Nonlinear


def halves(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Cuts the operand of a product along its first axis, which is this axis of x."""
    first, second = x.chunk(2, axis)
    return first, second
