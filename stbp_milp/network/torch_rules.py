"""What each torch operator means: a table by the operator's name in ATen, torch's operator library.

A *call* is a node of an exported program with its arguments looked up by the names that the operator's schema gives
them: values of the network, constant tensors, numbers and lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stbp_milp.network import assembly, curved, pooling, resizing, shaping
from stbp_milp.network.assembly import Kernel
from stbp_milp.network.pooling import WindowAxis
from stbp_milp.network.resizing import Ways
from stbp_milp.network.shaping import Site, Value

Result = Value | list[Value | None]
"""What a rule returns: one value, or several, None for those without a rule (the indices of a maximum)."""


@dataclass(frozen=True, eq=False)
class Call:
    site: Site
    arguments: Mapping[str, Any]

    def value(self, name: str = "input") -> Value:
        """An operand that depends on the network's input; ATen calls most first operands `self` or `input`."""
        given = self.arguments.get(name, self.arguments.get("self"))
        if not isinstance(given, Value):
            raise self.site.unsupported(f"its operand {name!r} is a constant; expected one that depends on the input")
        return given

    def constant(self, name: str) -> Tensor:
        tensor = self.optional_constant(name)
        if tensor is None:
            raise self.site.invalid(f"operand {name!r} is missing")
        return tensor

    def optional_constant(self, name: str) -> Tensor | None:
        given = self.arguments.get(name)
        if isinstance(given, Value):
            raise self.site.unsupported(f"its operand {name!r} depends on the input; expected a constant")
        return None if given is None else torch.as_tensor(given).detach().to(torch.float64)

    def either(self, name: str) -> Value | Tensor:
        given = self.arguments[name]
        return given if isinstance(given, Value) else self.constant(name)

    def each(self, name: str, axes: int, otherwise: int = 0) -> list[int]:
        """A setting for each of so many axes; one number stands for all."""
        given = self.arguments.get(name)
        if given is None or (isinstance(given, (list, tuple)) and not given):
            return [otherwise] * axes
        numbers = [given] if isinstance(given, int) else [int(number) for number in given]
        return numbers * axes if len(numbers) == 1 else numbers

    def axes(self, name: str = "dim") -> list[int]:
        """The axes that are named, or all but the batch axis."""
        given = self.arguments.get(name)
        if given is None or (isinstance(given, (list, tuple)) and not given):
            x = self.value()
            if x.batch is not None:
                raise self.site.unsupported("works on the batch axis too; name the axes, as in x.mean((2, 3, 4))")
            return list(range(len(x.whole)))
        return [given] if isinstance(given, int) else list(given)

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)


# --- convolutions and matrices ----------------------------------------------------------------------------


def _kernel(call: Call) -> Kernel:
    weight = call.constant("weight")
    axes = weight.dim() - 2
    dilation, padding = call.each("dilation", axes, 1), call["padding"]
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in ([0] * axes if isinstance(padding, str) else call.each("padding", axes))]
    return Kernel(weight, call.optional_constant("bias"), call.each("stride", axes, 1), sides, dilation, call["groups"])


def _convolution(call: Call) -> Value:
    if call["transposed"]:
        return _transposed_convolution(call)
    return assembly.convolution(call.site, call.value(), _kernel(call))


def _transposed_convolution(call: Call) -> Value:
    kernel = _kernel(call)
    more = call.each("output_padding", kernel.axes)
    return assembly.transposed_convolution(call.site, call.value(), kernel, more)


def _linear(call: Call) -> Value:
    return assembly.linear(call.site, call.value(), call.constant("weight"), call.optional_constant("bias"))


def _product(call: Call) -> Value:
    second = call.either("other" if "other" in call.arguments else "mat2")
    return curved.matrix_product(call.site, call.either("self"), second)


def _batch_norm(call: Call) -> Value:
    mean, variance = call.optional_constant("running_mean"), call.optional_constant("running_var")
    if call["training"] or mean is None or variance is None:
        raise call.site.unsupported(
            "normalises by the statistics of the batch, which mixes clips; keep running statistics and use eval mode"
        )
    weight, bias = call.optional_constant("weight"), call.optional_constant("bias")
    return assembly.batch_norm(call.site, call.value(), mean, variance, weight, bias, call["eps"])


def _first_of_three(rule: Callable[[Call], Value], call: Call) -> Result:
    return [rule(call), None, None]


# --- windows ----------------------------------------------------------------------------------------------


def _windows(axes: int, call: Call) -> list[WindowAxis]:
    sizes = call.value().shape[-axes:]
    if len(call.value().shape) <= axes:
        raise call.site.unsupported(f"pools over {axes} axes, but its operand has shape {call.value().whole}")
    kernel = call.each("kernel_size", axes)
    stride = call.each("stride", axes) if call["stride"] else kernel
    settings = zip(sizes, kernel, stride, call.each("padding", axes), call.each("dilation", axes, 1), strict=True)
    return [WindowAxis(size, k, s, (p, p), d, bool(call["ceil_mode"])) for size, k, s, p, d in settings]


def _average_pool(axes: int, call: Call) -> Value:
    windows = _windows(axes, call)
    return pooling.average_pool(
        call.site, call.value(), windows, bool(call["count_include_pad"]), call["divisor_override"]
    )


def _max_pool(axes: int, call: Call) -> Value:
    return pooling.max_pool(call.site, call.value(), _windows(axes, call))


def _max_pool_with_indices(axes: int, call: Call) -> Result:
    return [_max_pool(axes, call), None]


def _outputs(axes: int, call: Call) -> list[int]:
    sizes, wanted = call.value().shape[-axes:], call.arguments["output_size"]
    wanted = [wanted] * axes if isinstance(wanted, int) else list(wanted) * (axes // len(wanted))
    return [size if want is None else want for size, want in zip(sizes, wanted, strict=True)]


def _adaptive_average_pool(axes: int, call: Call) -> Value:
    return pooling.adaptive_average_pool(call.site, call.value(), _outputs(axes, call))


def _adaptive_max_pool(axes: int, call: Call) -> Result:
    return [pooling.adaptive_max_pool(call.site, call.value(), _outputs(axes, call)), None]


def _largest(call: Call) -> Value:
    return pooling.maximum_over(call.site, call.value(), call.axes(), bool(call["keepdim"]))


def _largest_and_place(call: Call) -> Result:
    return [_largest(call), None]


# --- shapes and parts -------------------------------------------------------------------------------------


def _same(call: Call) -> Value:
    return call.value()


def _dropout(call: Call) -> Value:
    if call["train"]:
        raise call.site.unsupported("dropout that is active in eval mode makes the network random; pass self.training")
    return call.value()


def _cast(call: Call) -> Value:
    kind = call["dtype"]
    if kind not in (None, torch.float32, torch.float64):
        raise call.site.unsupported(f"casts to {kind}, which rounds; give a model in float32")
    return call.value()


def _flatten(call: Call) -> Value:
    return shaping.flattened(call.site, call.value(), call["start_dim"], call["end_dim"])


def _reshape(call: Call) -> Value:
    return shaping.reshaped_whole(call.site, call.value(), call["size"] or call["shape"])


def _unflatten(call: Call) -> Value:
    x, whole = call.value(), list(call.value().whole)
    axis = shaping.positive(call.site, call["dim"], len(whole))
    return shaping.reshaped_whole(call.site, x, [*whole[:axis], *call["sizes"], *whole[axis + 1 :]])


def _squeeze(call: Call) -> Value:
    if call["dim"] is None:
        raise call.site.unsupported("without an axis it may drop the batch axis too; name the axes, as in x.squeeze(2)")
    return shaping.squeezed(call.site, call.value(), call.axes())


def _unsqueeze(call: Call) -> Value:
    return shaping.unsqueezed(call.site, call.value(), [call["dim"]])


def _permute(call: Call) -> Value:
    return shaping.permuted(call.site, call.value(), call["dims"])


def _transpose(call: Call) -> Value:
    rank = len(call.value().whole)
    order = list(range(rank))
    first, second = (order[call[name]] for name in ("dim0", "dim1"))
    order[first], order[second] = second, first
    return shaping.permuted(call.site, call.value(), order)


def _matrix_transpose(call: Call) -> Value:
    return shaping.permuted(call.site, call.value(), range(len(call.value().whole) - 1, -1, -1))


def _operands(call: Call) -> list[Value | Tensor]:
    return [own if isinstance(own, Value) else own.detach().to(torch.float64) for own in call["tensors"]]


def _concatenate(call: Call) -> Value:
    return assembly.joined(call.site, _operands(call), call["dim"])


def _stack(call: Call) -> Value:
    operands = _operands(call)
    first = next(own for own in operands if isinstance(own, Value))
    axis = shaping.positive(call.site, call["dim"], len(first.whole) + 1)
    return assembly.joined(call.site, [shaping.layered(call.site, own, axis) for own in operands], axis)


def _length(call: Call) -> int:
    return shaping.length(call.site, call.value(), call["dim"] or 0)


def _taken(call: Call, places: Sequence[int] | int) -> Value:
    return shaping.taken(call.site, call.value(), call["dim"] or 0, places)


def _slice(call: Call) -> Value:
    return _taken(call, range(_length(call))[call["start"] : call["end"] : call["step"]])


def _narrow(call: Call) -> Value:
    start = call["start"] % _length(call)
    return _taken(call, range(start, start + call["length"]))


def _select(call: Call) -> Value:
    return _taken(call, int(call["index"]))


def _index_select(call: Call) -> Value:
    return _taken(call, call.constant("index").long().tolist())


def _parts(call: Call, lengths: Sequence[int]) -> Result:
    return [*shaping.parts(call.site, call.value(), call["dim"] or 0, lengths)]


def _split(call: Call) -> Result:
    given, size = call["split_size"] or call["split_sizes"], _length(call)
    if isinstance(given, int):
        given = [min(given, size - start) for start in range(0, size, given)]
    return _parts(call, given)


def _chunk(call: Call) -> Result:
    size = _length(call)
    each = -(-size // call["chunks"])
    return _parts(call, [min(each, size - start) for start in range(0, size, each)])


def _unbind(call: Call) -> Result:
    return [_taken(call, place) for place in range(_length(call))]


def _copy(call: Call) -> Value:
    """What an operator in place writes over a whole tensor."""
    source = call.either("src")
    if isinstance(source, Tensor):
        raise call.site.unsupported("writes a constant over a tensor")
    return assembly.expanded(call.site, source, shaping.whole_of(call.either("self")))


def _scattered(call: Call, source: Value | Tensor, places: range) -> Value:
    """The operand, with another tensor at some places of an axis."""
    whole = call.either("self")
    count = shaping.whole_of(whole)[call["dim"]]
    if list(places) != list(range(places[0], places[-1] + 1)):
        raise call.site.unsupported("writes to places with gaps between them; expected a step of 1")
    outside = ((0, places[0]), (places[-1] + 1, count))
    before, after = (_between(call, whole, start, stop) for start, stop in outside)
    return assembly.joined(call.site, [*before, source, *after], call["dim"])


def _between(call: Call, whole: Value | Tensor, start: int, stop: int) -> list[Value | Tensor]:
    if start == stop:
        return []
    if isinstance(whole, Tensor):
        return [whole.narrow(call["dim"], start, stop - start)]
    return [shaping.taken(call.site, whole, call["dim"], range(start, stop))]


def _slice_scatter(call: Call) -> Value:
    count = shaping.whole_of(call.either("self"))[call["dim"]]
    return _scattered(call, call.either("src"), range(count)[call["start"] : call["end"] : call["step"]])


def _select_scatter(call: Call) -> Value:
    axis = call["dim"]
    place = call["index"] % shaping.whole_of(call.either("self"))[axis]
    return _scattered(call, shaping.layered(call.site, call.either("src"), axis), range(place, place + 1))


def _flip(call: Call) -> Value:
    x = call.value()
    for axis in call["dims"]:
        x = shaping.taken(call.site, x, axis, range(x.whole[axis] - 1, -1, -1))
    return x


def _roll(call: Call) -> Value:
    x = call.value()
    if not call["dims"]:
        raise call.site.unsupported("rolls over all axes at once; name the axes")
    for shift, axis in zip(call["shifts"], call["dims"], strict=True):
        size = x.whole[axis]
        x = shaping.taken(call.site, x, axis, [(place - shift) % size for place in range(size)])
    return x


def _expand(call: Call) -> Value:
    x, size = call.value(), call["size"]
    front = len(size) - len(x.whole)
    whole = [x.whole[i - front] if n == -1 else n for i, n in enumerate(size)]
    return assembly.expanded(call.site, x, whole)


def _repeat(call: Call) -> Value:
    x, repeats = call.value(), call["repeats"]
    x = shaping.reshaped_whole(call.site, x, [1] * (len(repeats) - len(x.whole)) + list(x.whole))
    for axis, count in enumerate(repeats):
        if count != 1:
            x = shaping.taken(call.site, x, axis, list(range(x.whole[axis])) * count)
    return x


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _pad(call: Call, mode: str | None = None) -> Value:
    x, pad = call.value(), call["pad"] or call["padding"]
    mode = mode or call["mode"]
    rank = len(x.whole)
    sides = {rank - 1 - i: (pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)}
    return assembly.padded_whole(call.site, x, sides, _PAD_MODES[mode], float(call["value"] or 0.0))


def _shuffle(call: Call) -> Value:
    x, groups = call.value(), call["groups"]
    order = torch.arange(x.whole[1]).reshape(groups, -1).T.flatten()
    return shaping.taken(call.site, x, 1, order.tolist())


def _upsample(axes: int, mode: str, call: Call) -> Value:
    x, factors, lengths = call.value(), call["scale_factors"], call["output_size"]
    if factors is None:
        named = [call[name] for name in ("scales_d", "scales_h", "scales_w", "scales") if call[name] is not None]
        factors = named if len(named) == axes else None
    if lengths is None:
        lengths = [int(n * factor) for n, factor in zip(x.whole[-axes:], factors, strict=True)]
    front = list(x.whole[:-axes])
    coordinates = "align_corners" if call["align_corners"] else "half_pixel" if mode == "linear" else "asymmetric"
    every = None if factors is None else [*[1.0] * len(front), *factors]
    return resizing.resized(call.site, x, [*front, *lengths], every, Ways(mode, coordinates))


# --- arithmetic and what is piecewise linear --------------------------------------------------------------


def _mean(call: Call) -> Value:
    return assembly.summed(call.site, call.value(), call.axes(), bool(call["keepdim"]), mean=True)


def _sum(call: Call) -> Value:
    return assembly.summed(call.site, call.value(), call.axes(), bool(call["keepdim"]))


def _cumulative(call: Call) -> Value:
    (axis,) = shaping.node_axes(call.site, call.value(), [call["dim"]])
    return assembly.cumulative(call.site, call.value(), axis)


def _add(call: Call) -> Value:
    return assembly.added(call.site, call.either("self"), call.either("other"), float(_alpha(call)))


def _subtract(call: Call) -> Value:
    return assembly.added(call.site, call.either("self"), call.either("other"), -float(_alpha(call)))


def _reverse_subtract(call: Call) -> Value:
    negative = assembly.affine(call.site, call.value(), -float(_alpha(call)), 0.0)
    return assembly.added(call.site, call.either("other"), negative, 1.0)


def _alpha(call: Call) -> float:
    return 1.0 if call["alpha"] is None else float(call["alpha"])


def _addmm(call: Call) -> Value:
    first, second = ("batch1", "batch2") if "batch1" in call.arguments else ("mat1", "mat2")
    total = curved.matrix_product(call.site, call.either(first), call.either(second))
    total = assembly.affine(call.site, total, float(call["alpha"]), 0.0)
    return assembly.added(call.site, total, call.either("self"), float(call["beta"]))


def _multiply(call: Call) -> Value:
    return curved.times(call.site, call.either("self"), call.either("other"))


def _divide(call: Call) -> Value:
    if call["rounding_mode"] is not None:
        raise call.site.unsupported("rounds its quotient, which is not continuous")
    return curved.quotient(call.site, call.either("self"), call.either("other"))


def _negative(call: Call) -> Value:
    return assembly.affine(call.site, call.value(), -1.0, 0.0)


def _relu(call: Call) -> Value:
    return assembly.relu(call.site, call.value())


def _leaky_relu(call: Call) -> Value:
    return assembly.leaky_relu(call.site, call.value(), torch.tensor(call["negative_slope"], dtype=torch.float64))


def _prelu(call: Call) -> Value:
    x, slope = call.value(), call.constant("weight")
    if slope.dim() == 1 and len(slope) > 1:
        slope = slope.reshape(-1, *[1] * (len(x.whole) - 2))
    own, fitted = shaping.broadcast(call.site, [x, slope])
    assert isinstance(own, Value)
    assert isinstance(fitted, Tensor)
    return assembly.leaky_relu(call.site, own, fitted)


def _clamp(call: Call) -> Value:
    least = call["min"] if call["min"] is not None else call["min_val"]
    most = call["max"] if call["max"] is not None else call["max_val"]
    if any(isinstance(bound, Tensor | Value) for bound in (least, most)):
        raise call.site.unsupported("clamps to tensors; expected numbers")
    return assembly.clamped(call.site, call.value(), least, most)


def _relu6(call: Call) -> Value:
    return assembly.clamped(call.site, call.value(), 0.0, 6.0)


def _hard_sigmoid(call: Call) -> Value:
    inner = assembly.clamped(call.site, assembly.affine(call.site, call.value(), 1.0, 3.0), 0.0, 6.0)
    return assembly.affine(call.site, inner, 1.0 / 6.0, 0.0)


def _absolute(call: Call) -> Value:
    return assembly.magnitude(call.site, call.value())


def _extremum(sign: float, call: Call) -> Value:
    return assembly.maximum(call.site, [call.either("self"), call.either("other")], sign)


# --- smooth functions and what is composed of them --------------------------------------------------------


def _smooth(function: str, call: Call) -> Value:
    return curved.smooth(call.site, call.value(), function)


def _gelu(call: Call) -> Value:
    return curved.smooth(call.site, call.value(), "gelu_tanh" if call["approximate"] == "tanh" else "gelu")


def _elu(call: Call) -> Value:
    scales = (1.0 if call[name] is None else float(call[name]) for name in ("scale", "input_scale"))
    return curved.elu(call.site, call.value(), float(call["alpha"]), *scales)


def _celu(call: Call) -> Value:
    return curved.celu(call.site, call.value(), float(call["alpha"]))


def _log_sigmoid(call: Call) -> Value:
    return assembly.affine(call.site, curved.softplus(call.site, _negative(call), 1.0), -1.0, 0.0)


def _selu(call: Call) -> Value:
    return curved.elu(call.site, call.value(), 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def _softplus(call: Call) -> Value:
    return curved.softplus(call.site, call.value(), float(call["beta"]))


def _power(call: Call) -> Value:
    exponent = call["exponent"]
    if not isinstance(exponent, int | float):
        raise call.site.unsupported("the exponent is a tensor; expected a number")
    return curved.power(call.site, call.value(), float(exponent))


def _softmax(composed: Callable[[Site, Value, int], Value], call: Call) -> Value:
    (axis,) = shaping.node_axes(call.site, call.value(), [call["dim"]])
    return composed(call.site, call.value(), axis)


def _attention(call: Call) -> Value:
    query, key, value = (call.value(name) for name in ("query", "key", "value"))
    if call["is_causal"] or call["enable_gqa"]:
        raise call.site.unsupported("is causal or groups its heads; give the weights by softmax and matmul")
    given = call["attn_mask"]
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        raise call.site.unsupported("has a mask of booleans; give one that is added to the scores, or none")
    scale = query.whole[-1] ** -0.5 if call["scale"] is None else float(call["scale"])
    return curved.attention(call.site, query, key, value, scale, call.optional_constant("attn_mask"))


def _layer_norm(call: Call) -> Value:
    x = call.value()
    rank = len(x.shape)
    own = curved.normalised(call.site, x, range(rank - len(call["normalized_shape"]), rank), call["eps"])
    return curved.scaled(call.site, own, call.optional_constant("weight"), call.optional_constant("bias"))


def _group_norm(call: Call) -> Value:
    groups = call["num_groups"] or call["group"]
    own = curved.group_normalised(call.site, call.value(), groups, call["eps"])
    return curved.scaled(call.site, own, call.optional_constant("weight"), call.optional_constant("bias"), 0)


def _instance_norm(call: Call) -> Value:
    if not call["use_input_stats"]:
        mean, variance = call.constant("running_mean"), call.constant("running_var")
        weight, bias = call.optional_constant("weight"), call.optional_constant("bias")
        return assembly.batch_norm(call.site, call.value(), mean, variance, weight, bias, call["eps"])
    own = curved.group_normalised(call.site, call.value(), call.value().shape[0], call["eps"])
    return curved.scaled(call.site, own, call.optional_constant("weight"), call.optional_constant("bias"), 0)


def _by_axes(pattern: str, rule: Callable[[int, Call], Result]) -> dict[str, Callable[[Call], Result]]:
    """The rule for 1, 2 and 3 axes."""
    return {pattern.format(axes): partial(rule, axes) for axes in (1, 2, 3)}


# What ATen calls as `network.functions` does.
_FUNCTIONS = (
    *("sigmoid", "tanh", "erf", "exp", "log", "sqrt", "rsqrt", "reciprocal", "square"),
    *("silu", "mish", "hardswish"),
)

RULES: dict[str, Callable[[Call], Result]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), _product),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": partial(_first_of_three, _batch_norm),
    **_by_axes("avg_pool{}d", _average_pool),
    **_by_axes("max_pool{}d", _max_pool),
    **_by_axes("max_pool{}d_with_indices", _max_pool_with_indices),
    **_by_axes("adaptive_avg_pool{}d", _adaptive_average_pool),
    **_by_axes("_adaptive_avg_pool{}d", _adaptive_average_pool),
    **_by_axes("adaptive_max_pool{}d", _adaptive_max_pool),
    **dict.fromkeys(("clone", "contiguous", "alias", "detach", "detach_", "lift_fresh_copy"), _same),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(("_to_copy", "to"), _cast),
    "flatten": _flatten,
    "unflatten": _unflatten,
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "view_copy"), _reshape),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "permute": _permute,
    "transpose": _transpose,
    "t": _matrix_transpose,
    "cat": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "narrow": _narrow,
    "select": _select,
    "index_select": _index_select,
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    "chunk": _chunk,
    "unbind": _unbind,
    "copy": _copy,
    "slice_scatter": _slice_scatter,
    "select_scatter": _select_scatter,
    "flip": _flip,
    "roll": _roll,
    "expand": _expand,
    "repeat": _repeat,
    "pad": _pad,
    "constant_pad_nd": partial(_pad, mode="constant"),
    **{f"reflection_pad{axes}d": partial(_pad, mode="reflect") for axes in (1, 2, 3)},
    **{f"replication_pad{axes}d": partial(_pad, mode="replicate") for axes in (1, 2, 3)},
    "channel_shuffle": _shuffle,
    **{f"upsample_nearest{axes}d": partial(_upsample, axes, "nearest") for axes in (1, 2, 3)},
    "upsample_linear1d": partial(_upsample, 1, "linear"),
    "upsample_bilinear2d": partial(_upsample, 2, "linear"),
    "upsample_trilinear3d": partial(_upsample, 3, "linear"),
    "mean": _mean,
    "sum": _sum,
    "cumsum": _cumulative,
    "amax": _largest,
    "max": _largest_and_place,
    **dict.fromkeys(("add", "add_"), _add),
    **dict.fromkeys(("sub", "subtract"), _subtract),
    "rsub": _reverse_subtract,
    **dict.fromkeys(("mul", "multiply"), _multiply),
    **dict.fromkeys(("div", "divide"), _divide),
    "neg": _negative,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    **dict.fromkeys(("prelu", "_prelu_kernel"), _prelu),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "hardtanh"), _clamp),
    "relu6": _relu6,
    "hardsigmoid": _hard_sigmoid,
    "abs": _absolute,
    **{function: partial(_smooth, function) for function in _FUNCTIONS},
    "gelu": _gelu,
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "log_sigmoid": _log_sigmoid,
    "log_sigmoid_forward": lambda call: [_log_sigmoid(call), None],
    **dict.fromkeys(("log_softmax", "_log_softmax"), partial(_softmax, curved.log_softmax)),
    "softplus": _softplus,
    "pow": _power,
    **dict.fromkeys(("softmax", "_softmax", "_safe_softmax"), partial(_softmax, curved.softmax)),
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "native_layer_norm": partial(_first_of_three, _layer_norm),
    "group_norm": _group_norm,
    "native_group_norm": partial(_first_of_three, _group_norm),
    "instance_norm": _instance_norm,
    "maximum": partial(_extremum, 1.0),
    "minimum": partial(_extremum, -1.0),
}

SUPPORTED = (
    "convolutions and transposed convolutions, Linear and products with a constant matrix, BatchNorm, average, maximum "
    "and adaptive pooling, ReLU, LeakyReLU, PReLU, ReLU6, Hardtanh, Hardsigmoid, clamp, abs, maximum and minimum, "
    "concatenation, slices, padding, upsampling, reshapes and permutations, sums, means, arithmetic, matrix "
    "products, Sigmoid, Tanh, SiLU, GELU, ELU, SELU, Mish, Softplus, Hardswish, exp, log, erf, square roots, powers, "
    "Softmax, scaled dot-product attention, LSTM, GRU, RNN, LayerNorm, GroupNorm and InstanceNorm"
)
