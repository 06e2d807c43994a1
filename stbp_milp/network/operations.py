"""What a layer computes: forward value, linear part, transpose and sparse matrix. One rule a layer and table.

Every layer but the `Nonlinear` ones is affine in its operands, `y = sum_i L_i x_i + b`. Four tables state it, and a
fifth what it costs:

- `apply(layer, operands)` is `y`;
- `linear(layer, operand, x, absolute=False)` is `L_i x`, or `|L_i| x` for interval arithmetic;
- `transpose(layer, operand, form, operand_shape)` is `L_i^T form` on forms `(N, M, *shape)`;
- `matrix(layer, operand, operand_shape, shape)` is `L_i` as a scipy CSR matrix, for programs and sub-networks;
- `products(layer, shape)` is how many products of a weight and a value `L x` takes.

A table raises NotImplementedError for a layer it does not know: a guess could be a bound that does not hold.

Laws (tests): `<form, L x> = <L^T form, x>`; `matrix @ x = L x`; `|L| x` is the matrix's absolute value on x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatch

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from stbp_milp.network.layers import (
    Add,
    Concatenate,
    Convolution,
    Input,
    Linear,
    Maximum,
    Permute,
    Product,
    ReLU,
    Reshape,
    Scale,
    Select,
    Smooth,
    halves,
)

PATCH_BYTES = 4 << 20  # bytes of patches that a convolution in float64 writes down at once
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


# --- forward ----------------------------------------------------------------------------------------------


@singledispatch
def apply(layer: object, operands: Sequence[Tensor]) -> Tensor:
    """The layer's value `(N, *shape)` for operands `(N, *operand_shape)`."""
    raise NotImplementedError(f"apply: no rule for layer {type(layer).__name__}")


@apply.register
def _(layer: ReLU, operands: Sequence[Tensor]) -> Tensor:
    return operands[0].clamp(min=0)


@apply.register
def _(layer: Smooth, operands: Sequence[Tensor]) -> Tensor:
    return layer.function.value(operands[0])


@apply.register
def _(layer: Product, operands: Sequence[Tensor]) -> Tensor:
    x, y = halves(operands[0], 1)
    return x * y


@apply.register
def _(layer: Convolution, operands: Sequence[Tensor]) -> Tensor:
    return _convolve(layer, operands[0], layer.weight, layer.bias)


@apply.register
def _(layer: Linear, operands: Sequence[Tensor]) -> Tensor:
    return F.linear(operands[0], layer.weight, layer.bias)


@apply.register
def _(layer: Scale, operands: Sequence[Tensor]) -> Tensor:
    return operands[0] * layer.factor + layer.offset


@apply.register(Reshape)
@apply.register(Permute)
@apply.register(Select)
def _(layer: Reshape | Permute | Select, operands: Sequence[Tensor]) -> Tensor:
    return linear(layer, 0, operands[0])


@apply.register
def _(layer: Concatenate, operands: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(operands), layer.axis + 1)


@apply.register(Add)
@apply.register(Maximum)
def _(layer: Add | Maximum, operands: Sequence[Tensor]) -> Tensor:
    terms = [linear(layer, i, x) for i, x in enumerate(operands) if reads(layer, i)]
    return torch.stack(terms).sum(0) if len(terms) > 2 else sum(terms[1:], terms[0])


def reads(layer: object, operand: int) -> bool:
    """Does the layer's affine value depend on this operand?"""
    return not (isinstance(layer, Maximum) and operand == 0)


# --- linear part ------------------------------------------------------------------------------------------


@singledispatch
def linear(layer: object, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
    """`L x`, or `|L| x`, for `x` of shape `(N, *operand_shape)`."""
    raise NotImplementedError(f"linear: no rule for layer {type(layer).__name__}")


@linear.register
def _(layer: Convolution, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
    return _convolve(layer, x, layer.weight.abs() if absolute else layer.weight, None)


@linear.register
def _(layer: Linear, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
    return F.linear(x, layer.weight.abs() if absolute else layer.weight)


@linear.register
def _(layer: Scale, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
    return x * (layer.factor.abs() if absolute else layer.factor)


@linear.register
def _(layer: Reshape, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
    return x.reshape(x.shape[0], *layer.shape)


@linear.register
def _(layer: Select, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
    if not layer.padded:
        return x.index_select(layer.axis + 1, layer.index)
    inside = (layer.index >= 0).view(-1, *[1] * (x.dim() - layer.axis - 2))
    return x.index_select(layer.axis + 1, layer.index.clamp(min=0)) * inside


@linear.register
def _(layer: Permute, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
    return x.permute(0, *(axis + 1 for axis in layer.order))


@linear.register
def _(layer: Concatenate, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
    start, stop = layer.place(operand)
    shape = list(x.shape)
    shape[layer.axis + 1] = sum(layer.lengths)
    value = x.new_zeros(shape)
    value.narrow(layer.axis + 1, start, stop - start).copy_(x)
    return value


@linear.register
def _(layer: Add, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
    coefficient = abs(layer.coefficients[operand]) if absolute else layer.coefficients[operand]
    return x if coefficient == 1.0 else coefficient * x


@linear.register
def _(layer: Maximum, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
    return x if operand else torch.zeros_like(x)


# --- transpose --------------------------------------------------------------------------------------------


@singledispatch
def transpose(layer: object, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
    """`L^T form`: forms `(N, M, *shape)` on the layer's value become forms `(N, M, *operand_shape)`."""
    raise NotImplementedError(f"transpose: no rule for layer {type(layer).__name__}")


@transpose.register
def _(layer: Convolution, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
    axes = len(layer.stride)
    even = _same_on_both_sides(layer)
    # torch's own padding is the same on both sides; otherwise go back to the padded operand and cut it.
    cut = [(0, 0) if even else pair for pair in layer.padding]
    padding = [before if even else 0 for before, _ in layer.padding]
    padded = [size + before + after for size, (before, after) in zip(operand_shape[1:], cut, strict=True)]
    # The last kernel position need not reach the end of the operand: what the stride leaves unread gets zeros.
    unread = [
        size - ((outputs - 1) * stride - 2 * margin + dilation * (kernel - 1) + 1)
        for size, outputs, stride, margin, dilation, kernel in zip(
            padded, form.shape[3:], layer.stride, padding, layer.dilation, layer.weight.shape[2:], strict=True
        )
    ]
    flat = form.reshape(form.shape[0] * form.shape[1], *form.shape[2:])
    back = _CONV_TRANSPOSE[axes](flat, layer.weight, None, layer.stride, padding, unread, layer.groups, layer.dilation)
    if not even:
        back = F.pad(back, [-side for pair in reversed(cut) for side in pair])
    return back.reshape(*form.shape[:2], *operand_shape)


@transpose.register
def _(layer: Linear, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
    return form @ layer.weight


@transpose.register
def _(layer: Scale, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
    return form * layer.factor


@transpose.register
def _(layer: Reshape, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
    return form.reshape(*form.shape[:2], *operand_shape)


@transpose.register
def _(layer: Select, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
    back = form.new_zeros(*form.shape[:2], *operand_shape)
    if layer.padded:
        inside = (layer.index >= 0).nonzero().flatten()
        return back.index_add(layer.axis + 2, layer.index[inside], form.index_select(layer.axis + 2, inside))
    return back.index_add(layer.axis + 2, layer.index, form)


@transpose.register
def _(layer: Permute, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
    return form.permute(0, 1, *(layer.order.index(axis) + 2 for axis in range(len(layer.order))))


@transpose.register
def _(layer: Concatenate, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
    start, stop = layer.place(operand)
    return form.narrow(layer.axis + 2, start, stop - start)


@transpose.register
def _(layer: Add, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
    return linear(layer, operand, form)


@transpose.register
def _(layer: Maximum, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
    return linear(layer, operand, form)


# --- matrix -----------------------------------------------------------------------------------------------


@singledispatch
def matrix(layer: object, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
    """`L` as a sparse matrix `(prod(shape), prod(operand_shape))` in float64."""
    raise NotImplementedError(f"matrix: no rule for layer {type(layer).__name__}")


@matrix.register
def _(layer: Convolution, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
    weight = layer.weight.detach().to("cpu", torch.float64).numpy()
    kernel, outputs, inputs = weight.shape[2:], shape[1:], operand_shape[1:]
    # Positions of the operand under every (output position, kernel tap), axis by axis.
    where = [
        np.arange(o)[:, None] * s - p[0] + np.arange(k)[None, :] * d
        for o, s, p, k, d in zip(outputs, layer.stride, layer.padding, kernel, layer.dilation, strict=True)
    ]
    axes = len(kernel)
    flat = np.zeros(outputs + kernel, dtype=np.int64)
    inside = np.ones(outputs + kernel, dtype=bool)
    for axis, index in enumerate(where):
        view = [1] * (2 * axes)
        view[axis], view[axes + axis] = index.shape
        index = index.reshape(view)
        flat = flat * inputs[axis] + index
        inside &= (index >= 0) & (index < inputs[axis])
    positions, taps, size = int(np.prod(outputs)), int(np.prod(kernel)), int(np.prod(inputs))
    flat, inside = flat.reshape(positions, taps), inside.reshape(positions, taps)
    at, tap = np.nonzero(inside)
    source = flat[at, tap]
    per_group_out, per_group_in = weight.shape[0] // layer.groups, weight.shape[1]
    blocks = []
    for channel in range(weight.shape[0]):
        first = channel // per_group_out * per_group_in
        rows = np.tile(at, per_group_in)
        columns = (source[None, :] + (first + np.arange(per_group_in))[:, None] * size).ravel()
        entries = weight[channel].reshape(per_group_in, taps)[:, tap].ravel()
        blocks.append(sp.csr_matrix((entries, (rows, columns)), shape=(positions, size * operand_shape[0])))
    return sp.vstack(blocks, format="csr")


@matrix.register
def _(layer: Linear, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
    return sp.csr_matrix(layer.weight.detach().to("cpu", torch.float64).numpy())


@matrix.register
def _(layer: Scale, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
    factor = layer.factor.detach().to("cpu", torch.float64).expand(shape).reshape(-1).numpy()
    return sp.diags(factor, format="csr")


@matrix.register
def _(layer: Reshape, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
    return sp.identity(int(np.prod(shape)), format="csr")


@matrix.register
def _(layer: Select, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
    size = int(np.prod(operand_shape))
    columns = np.arange(size).reshape(operand_shape)
    if layer.padded:  # -1 reads the last place, which a column of zeros is put to
        columns = np.insert(columns, operand_shape[layer.axis], -1, axis=layer.axis)
    return _moves(np.take(columns, layer.index.cpu().numpy(), axis=layer.axis), size)


@matrix.register
def _(layer: Permute, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
    size = int(np.prod(shape))
    return _moves(np.arange(size).reshape(operand_shape).transpose(layer.order), size)


@matrix.register
def _(layer: Concatenate, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
    columns = np.full(shape, -1)
    size = int(np.prod(operand_shape))
    place = (slice(None),) * layer.axis + (slice(*layer.place(operand)),)
    columns[place] = np.arange(size).reshape(operand_shape)
    return _moves(columns, size)


def _moves(columns: np.ndarray, size: int) -> sp.csr_matrix:
    """The matrix of a value whose element i is the operand's element `columns[i]` of `size`, or zero where it is -1."""
    flat = columns.ravel()
    (rows,) = np.nonzero(flat >= 0)
    return sp.csr_matrix((np.ones(rows.size), (rows, flat[rows])), shape=(flat.size, size))


@matrix.register
def _(layer: Add, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
    return layer.coefficients[operand] * sp.identity(int(np.prod(shape)), format="csr")


@matrix.register
def _(layer: Maximum, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
    size = int(np.prod(shape))
    return sp.identity(size, format="csr") if operand else sp.csr_matrix((size, size))


# --- shared -----------------------------------------------------------------------------------------------


def _convolve(layer: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    axes = len(layer.stride)
    padding: tuple[int, ...] | int = tuple(before for before, _ in layer.padding)
    if not _same_on_both_sides(layer):
        x = F.pad(x, [side for pair in reversed(layer.padding) for side in pair])
        padding = 0

    def convolved(x: Tensor) -> Tensor:
        return _CONV[axes](x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)

    if not layer.patches:
        return convolved(x)
    # Parts whose patches fit into the processor's cache take a fraction of the time, and of the memory.
    count, _, *voxels = x.shape
    at_once = max(1, PATCH_BYTES // max(1, layer.patches * math.prod(voxels)))
    return convolved(x) if count <= at_once else torch.cat([convolved(part) for part in torch.split(x, at_once)])


def _same_on_both_sides(layer: Convolution) -> bool:
    """Is the padding one that torch's convolutions take themselves?"""
    return all(before == after >= 0 for before, after in layer.padding)


# --- cost -------------------------------------------------------------------------------------------------


@singledispatch
def products(layer: object, shape: tuple[int, ...]) -> int:
    """Multiplications by weights that the layer's value of `shape` takes; elementwise ones do not count."""
    raise NotImplementedError(f"products: no rule for layer {type(layer).__name__}")


@products.register
def _(layer: Convolution, shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:]) * layer.weight.numel()


@products.register
def _(layer: Linear, shape: tuple[int, ...]) -> int:
    return layer.weight.numel()


@products.register(Input)
@products.register(ReLU)
@products.register(Smooth)
@products.register(Product)
@products.register(Scale)
@products.register(Reshape)
@products.register(Permute)
@products.register(Select)
@products.register(Concatenate)
@products.register(Add)
@products.register(Maximum)
def _(layer: object, shape: tuple[int, ...]) -> int:
    return 0
