"""What each torch operator means: a table by function or tensor method, and one by the class of a leaf module.

The module rules fetch weights and settings and call the function rules, whose signatures are torch's own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stbp_milp.errors import UnsupportedLayerError
from stbp_milp.network import assembly, pooling
from stbp_milp.network.assembly import Site, Value
from stbp_milp.network.pooling import WindowAxis

SUPPORTED = (
    "Conv1d/2d/3d, Linear, ReLU, BatchNorm1d/2d/3d, AvgPool, MaxPool, AdaptiveAvgPool and AdaptiveMaxPool (output 1 "
    "or a divisor of the size), Flatten, view/reshape/flatten/squeeze/unsqueeze, mean over the axes after the "
    "channels, sums and differences of two nodes, arithmetic with constants, maximum of two nodes, Dropout, Identity, "
    "Sequential and nested modules"
)

_BATCH = 1  # the length of the batch axis while sizes are read from the module


def no_rule(site: Site) -> UnsupportedLayerError:
    return site.unsupported(f"no bounding rule exists for this operator. Supported are: {SUPPORTED}")


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(torch.float64)


def _operand(number: Value | Tensor | float) -> Value | Tensor:
    return torch.tensor(number, dtype=torch.float64) if isinstance(number, (int, float)) else number


def _each(setting: int | Sequence[int], axes: int) -> list[int]:
    return [setting] * axes if isinstance(setting, int) else [int(s) for s in setting] * (axes // len(setting))


# --- functions: signatures as in torch.nn.functional ------------------------------------------------------


def _relu(site: Site, input: Value, inplace: bool = False) -> Value:
    return assembly.relu(site, input)


def _same(site: Site, input: Value, *ignored: Any, **settings: Any) -> Value:
    return input


def _dropout(site: Site, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> Value:
    if training:
        raise site.unsupported("dropout that is active in eval mode makes the network random; pass self.training")
    return input


def _convolution(
    axes: int,
    site: Site,
    input: Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Value:
    dilations = _each(dilation, axes)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in _each(0 if isinstance(padding, str) else padding, axes)]
    double = weight.detach().to(torch.float64)
    return assembly.convolution(site, input, double, _double(bias), _each(stride, axes), sides, dilations, groups)


def _linear(site: Site, input: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
    return assembly.linear(site, input, weight.detach().to(torch.float64), _double(bias))


def _batch_norm(
    site: Site,
    input: Value,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:
    mean, variance = _double(running_mean), _double(running_var)
    if training or mean is None or variance is None:
        raise site.unsupported(
            "normalises by the statistics of the batch, which mixes clips; keep running statistics and use eval mode"
        )
    return assembly.batch_norm(site, input, mean, variance, _double(weight), _double(bias), eps)


def _windows(
    axes: int,
    site: Site,
    input: Value,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None,
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    ceil_mode: bool,
) -> list[WindowAxis]:
    if len(input.shape) != axes + 1:
        raise site.unsupported(f"pools over {axes} axes, but its operand has shape {input.shape} (no batch axis)")
    kernel = _each(kernel_size, axes)
    strides = kernel if stride is None or stride in ((), []) else _each(stride, axes)
    return [
        WindowAxis(size, k, s, (p, p), d, ceil_mode)
        for size, k, s, p, d in zip(
            input.shape[1:], kernel, strides, _each(padding, axes), _each(dilation, axes), strict=True
        )
    ]


def _average_pool(
    axes: int,
    site: Site,
    input: Value,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    windows = _windows(axes, site, input, kernel_size, stride, padding, 1, ceil_mode)
    return pooling.average_pool(site, input, windows, count_include_pad, divisor_override)


def _max_pool(
    axes: int,
    site: Site,
    input: Value,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    if return_indices:
        raise site.unsupported("returns indices besides values; expected return_indices=False")
    return pooling.max_pool(site, input, _windows(axes, site, input, kernel_size, stride, padding, dilation, ceil_mode))


def _adaptive_windows(axes: int, site: Site, input: Value, output_size: Any) -> list[WindowAxis]:
    if len(input.shape) != axes + 1:
        raise site.unsupported(f"pools over {axes} axes, but its operand has shape {input.shape} (no batch axis)")
    wanted = [output_size] * axes if output_size is None or isinstance(output_size, int) else list(output_size)
    outputs = [size if want is None else want for size, want in zip(input.shape[1:], wanted, strict=True)]
    if any(size % want for size, want in zip(input.shape[1:], outputs, strict=True)):
        raise site.unsupported(
            f"windows of different lengths: {input.shape[1:]} into {tuple(outputs)}; expected 1 or a divisor"
        )
    return [
        WindowAxis(size, size // want, size // want, (0, 0))
        for size, want in zip(input.shape[1:], outputs, strict=True)
    ]


def _adaptive_average_pool(axes: int, site: Site, input: Value, output_size: Any) -> Value:
    return pooling.average_pool(site, input, _adaptive_windows(axes, site, input, output_size), count_padding=True)


def _adaptive_max_pool(axes: int, site: Site, input: Value, output_size: Any, return_indices: bool = False) -> Value:
    if return_indices:
        raise site.unsupported("returns indices besides values; expected return_indices=False")
    return pooling.max_pool(site, input, _adaptive_windows(axes, site, input, output_size))


def _flatten(site: Site, input: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    return assembly.flattened(site, input, start_dim, end_dim, _BATCH)


def _reshape(site: Site, input: Value, *shape: Any) -> Value:
    target = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    if not all(isinstance(length, int) for length in target):
        raise site.unsupported(f"reshapes by {shape}; expected numbers")
    return assembly.reshaped_batch(site, input, list(target), _BATCH)


def _squeeze(site: Site, input: Value, dim: int | Sequence[int] | None = None) -> Value:
    if dim is None:
        raise site.unsupported("without an axis it may drop the batch axis too; name the axes, as in x.squeeze(2)")
    return assembly.squeezed(site, input, [dim] if isinstance(dim, int) else dim)


def _unsqueeze(site: Site, input: Value, dim: int) -> Value:
    return assembly.unsqueezed(site, input, [dim])


def _mean(site: Site, input: Value, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Value:
    if dim is None:
        raise site.unsupported("a mean over the batch axis too; name the axes, as in x.mean((2, 3, 4))")
    axes = assembly.node_axes(site, input, [dim] if isinstance(dim, int) else dim)
    return assembly.mean(site, input, axes, keepdim)


def _size(site: Site, input: Value, dim: int | None = None) -> Any:
    whole = torch.Size((_BATCH, *input.shape))
    return whole if dim is None else whole[dim]


def _rank(site: Site, input: Value) -> int:
    return 1 + len(input.shape)


def _getattr(site: Site, input: Value, attribute: str) -> Any:
    if attribute == "shape":
        return _size(site, input)
    if attribute == "ndim":
        return _rank(site, input)
    raise site.unsupported(f"reads the attribute {attribute!r} of a value; expected 'shape' or 'ndim'")


def _add(site: Site, input: Any, other: Any, alpha: float = 1.0) -> Value:
    return assembly.added(site, _operand(input), _operand(other), alpha)


def _subtract(site: Site, input: Any, other: Any, alpha: float = 1.0) -> Value:
    return assembly.added(site, _operand(input), _operand(other), -alpha)


def _multiply(site: Site, input: Any, other: Any) -> Value:
    return assembly.multiplied(site, _operand(input), _operand(other))


def _divide(site: Site, input: Any, other: Any) -> Value:
    return assembly.divided(site, _operand(input), _operand(other))


def _negative(site: Site, input: Value) -> Value:
    return _multiply(site, input, -1.0)


def _maximum(site: Site, input: Any, other: Any) -> Value:
    if not (isinstance(input, Value) and isinstance(other, Value)):
        raise site.unsupported("a maximum with a constant; expected two nodes")
    return assembly.maximum(site, [input, other])


FUNCTION_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"), _relu),
    F.dropout: _dropout,
    F.dropout1d: _dropout,
    F.dropout2d: _dropout,
    F.dropout3d: _dropout,
    **dict.fromkeys(("contiguous", "clone", "detach", "float", "double"), _same),
    F.conv1d: partial(_convolution, 1),
    F.conv2d: partial(_convolution, 2),
    F.conv3d: partial(_convolution, 3),
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.avg_pool1d: partial(_average_pool, 1),
    F.avg_pool2d: partial(_average_pool, 2),
    F.avg_pool3d: partial(_average_pool, 3),
    F.max_pool1d: partial(_max_pool, 1),
    F.max_pool2d: partial(_max_pool, 2),
    F.max_pool3d: partial(_max_pool, 3),
    torch.max_pool1d: partial(_max_pool, 1),
    torch.max_pool2d: partial(_max_pool, 2),
    torch.max_pool3d: partial(_max_pool, 3),
    F.adaptive_avg_pool1d: partial(_adaptive_average_pool, 1),
    F.adaptive_avg_pool2d: partial(_adaptive_average_pool, 2),
    F.adaptive_avg_pool3d: partial(_adaptive_average_pool, 3),
    F.adaptive_max_pool1d: partial(_adaptive_max_pool, 1),
    F.adaptive_max_pool2d: partial(_adaptive_max_pool, 2),
    F.adaptive_max_pool3d: partial(_adaptive_max_pool, 3),
    **dict.fromkeys((torch.flatten, "flatten"), _flatten),
    **dict.fromkeys((torch.reshape, "reshape", "view"), _reshape),
    **dict.fromkeys((torch.squeeze, "squeeze"), _squeeze),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), _unsqueeze),
    **dict.fromkeys((torch.mean, "mean"), _mean),
    "size": _size,
    "dim": _rank,
    getattr: _getattr,
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_"), _subtract),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_"), _multiply),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, torch.divide, "div", "div_"), _divide),
    **dict.fromkeys((operator.neg, torch.neg, torch.negative, "neg"), _negative),
    **dict.fromkeys((torch.maximum, "maximum"), _maximum),
}


# --- modules ----------------------------------------------------------------------------------------------


@singledispatch
def module_rule(module: nn.Module, site: Site, x: Value) -> Value:
    """The value of a leaf module for its one operand."""
    raise no_rule(site)


@module_rule.register(nn.Identity)
@module_rule.register(nn.Dropout)
@module_rule.register(nn.Dropout1d)
@module_rule.register(nn.Dropout2d)
@module_rule.register(nn.Dropout3d)
@module_rule.register(nn.AlphaDropout)
@module_rule.register(nn.FeatureAlphaDropout)
def _(module: nn.Module, site: Site, x: Value) -> Value:
    return x


@module_rule.register
def _(module: nn.ReLU, site: Site, x: Value) -> Value:
    return assembly.relu(site, x)


@module_rule.register(nn.Conv1d)
@module_rule.register(nn.Conv2d)
@module_rule.register(nn.Conv3d)
def _(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, site: Site, x: Value) -> Value:
    if module.padding_mode != "zeros":
        raise site.unsupported(f"padding_mode={module.padding_mode!r}; expected 'zeros'")
    return _convolution(
        len(module.kernel_size),
        site,
        x,
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
    )


@module_rule.register
def _(module: nn.Linear, site: Site, x: Value) -> Value:
    return _linear(site, x, module.weight, module.bias)


@module_rule.register(nn.BatchNorm1d)
@module_rule.register(nn.BatchNorm2d)
@module_rule.register(nn.BatchNorm3d)
@module_rule.register(nn.SyncBatchNorm)
def _(module: nn.BatchNorm1d, site: Site, x: Value) -> Value:
    return _batch_norm(
        site, x, module.running_mean, module.running_var, module.weight, module.bias, module.training, eps=module.eps
    )


def _average_pool_module(axes: int, module: Any, site: Site, x: Value) -> Value:
    divisor = getattr(module, "divisor_override", None)  # AvgPool1d has none
    settings = (module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad, divisor)
    return _average_pool(axes, site, x, *settings)


def _max_pool_module(axes: int, module: Any, site: Site, x: Value) -> Value:
    settings = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
    return _max_pool(axes, site, x, *settings, module.return_indices)


def _adaptive_average_pool_module(axes: int, module: Any, site: Site, x: Value) -> Value:
    return _adaptive_average_pool(axes, site, x, module.output_size)


def _adaptive_max_pool_module(axes: int, module: Any, site: Site, x: Value) -> Value:
    return _adaptive_max_pool(axes, site, x, module.output_size, module.return_indices)


for _rule, _kinds in (
    (_average_pool_module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)),
    (_max_pool_module, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)),
    (_adaptive_average_pool_module, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)),
    (_adaptive_max_pool_module, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)),
):
    for _number, _kind in enumerate(_kinds, start=1):
        module_rule.register(_kind, partial(_rule, _number))


@module_rule.register
def _(module: nn.Flatten, site: Site, x: Value) -> Value:
    return _flatten(site, x, module.start_dim, module.end_dim)
