"""Pooling in the layer vocabulary: averages are convolutions, maxima are pairwise maxima along one axis at a time.

A *window axis* says where the windows lie along one axis of a node; a *tap* is one position of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stbp_milp.network.assembly import Kernel, along, convolution, maximum
from stbp_milp.network.layers import Scale
from stbp_milp.network.shaping import Site, Value, node_axes, selected, squeezed


@dataclass(frozen=True)
class WindowAxis:
    size: int  # of the operand
    kernel: int
    stride: int
    padding: tuple[int, int]  # (before, after)
    dilation: int = 1
    round_up: bool = False  # torch and ONNX: ceil_mode

    @property
    def reach(self) -> int:
        """From the first to the last voxel under a window, both included."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def outputs(self) -> int:
        padded = self.size + sum(self.padding)
        free = padded - self.reach
        if not self.round_up:
            return free // self.stride + 1
        count = -(-free // self.stride) + 1
        # A last window that would begin in the padding after the operand is dropped, as torch documents.
        return count - 1 if (count - 1) * self.stride >= self.size + self.padding[0] else count

    @property
    def overhang(self) -> int:
        """Padding after the operand that the last window needs (more than declared when rounding up)."""
        return (self.outputs - 1) * self.stride + self.reach - self.size - self.padding[0]

    def positions(self) -> np.ndarray:  # (outputs, kernel)
        """The operand's index under every tap; outside 0 .. size - 1 lies padding."""
        starts = np.arange(self.outputs) * self.stride - self.padding[0]
        return starts[:, None] + np.arange(self.kernel)[None, :] * self.dilation


def average_pool(
    site: Site, x: Value, axes: Sequence[WindowAxis], count_padding: bool, divisor: int | None = None
) -> Value:
    """Window means. Declared padding counts as voxels if `count_padding`; what rounding up adds never counts."""
    _check(site, x, axes)
    after = [max(axis.overhang, 0) for axis in axes]
    volume, channels = math.prod(axis.kernel for axis in axes), x.shape[-len(axes) - 1]
    kernel = Kernel(
        torch.full((channels, 1, *(axis.kernel for axis in axes)), 1.0 / volume, dtype=torch.float64),
        None,
        [axis.stride for axis in axes],
        [(axis.padding[0], end) for axis, end in zip(axes, after, strict=True)],
        [axis.dilation for axis in axes],
        channels,
    )
    average = convolution(site, x, kernel)
    counts = torch.ones((), dtype=torch.float64)
    for axis in axes:
        counts = counts.unsqueeze(-1) * torch.from_numpy(_counts(site, axis, count_padding))
    if divisor is not None:
        counts = torch.full_like(counts, divisor)
    if bool((counts == volume).all()):
        return average
    return site.emit(Scale((volume / counts).unsqueeze(0), torch.zeros((), dtype=torch.float64)), average)


def _counts(site: Site, axis: WindowAxis, count_padding: bool) -> np.ndarray:  # (outputs,) float64
    first, last = (-axis.padding[0], axis.size + axis.padding[1]) if count_padding else (0, axis.size)
    positions = axis.positions()
    counts: np.ndarray = ((positions >= first) & (positions < last)).sum(axis=1).astype(np.float64)
    if not counts.all():
        raise site.invalid("a pooling window lies in the padding alone; make the padding smaller")
    return counts


def max_pool(site: Site, x: Value, axes: Sequence[WindowAxis]) -> Value:
    """Window maxima, axis by axis (the maximum over a box of voxels is separable)."""
    _check(site, x, axes)
    for position, axis in enumerate(axes, start=len(x.shape) - len(axes)):
        x = _max_along(site, x, position, axis)
    return x


def adaptive_average_pool(site: Site, x: Value, outputs: Sequence[int]) -> Value:
    """Means over windows that cut the last axes into so many parts, as equal as they can be; they may overlap."""
    first = len(x.shape) - len(outputs)
    windows = [_even(size, count) for size, count in zip(x.shape[first:], outputs, strict=True)]
    if all(window is not None for window in windows):
        return average_pool(site, x, [window for window in windows if window is not None], count_padding=True)
    for axis, (size, count) in enumerate(zip(x.shape[first:], outputs, strict=True), start=first):
        weight = torch.zeros(count, size, dtype=torch.float64)
        for i, (start, stop) in enumerate(_uneven(size, count)):
            weight[i, start:stop] = 1.0 / (stop - start)
        x = along(site, x, axis, weight)
    return x


def adaptive_max_pool(site: Site, x: Value, outputs: Sequence[int]) -> Value:
    """Maxima over the same windows."""
    first = len(x.shape) - len(outputs)
    for axis, (size, count) in enumerate(zip(x.shape[first:], outputs, strict=True), start=first):
        windows = _uneven(size, count)
        longest = max(stop - start for start, stop in windows)
        taps = [[min(start + tap, stop - 1) for start, stop in windows] for tap in range(longest)]
        distinct = list(dict.fromkeys(map(tuple, taps)))
        x = maximum(site, [selected(site, x, axis, tap) for tap in distinct])
    return x


def maximum_over(site: Site, x: Value, axes: Sequence[int], keep: bool) -> Value:
    """The maximum over whole axes as the model counts them."""
    for axis in node_axes(site, x, axes):
        while x.shape[axis] > 1:  # by halves: few layers, and every place is read once
            half = -(-x.shape[axis] // 2)
            places = [range(half), [*range(half, x.shape[axis]), *range(2 * half - x.shape[axis])]]
            x = maximum(site, [selected(site, x, axis, place) for place in places])
    return x if keep else squeezed(site, x, axes)


def _even(size: int, count: int) -> WindowAxis | None:
    return WindowAxis(size, size // count, size // count, (0, 0)) if size % count == 0 else None


def _uneven(size: int, count: int) -> list[tuple[int, int]]:
    """Where torch's adaptive pooling has its windows, `[start, stop)`."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _max_along(site: Site, x: Value, position: int, axis: WindowAxis) -> Value:
    indices = _inner_taps(site, axis)
    distinct = list(dict.fromkeys(tuple(column) for column in indices.T.tolist()))
    return maximum(site, [selected(site, x, position, column) for column in distinct])


def _inner_taps(site: Site, axis: WindowAxis) -> np.ndarray:  # (outputs, kernel)
    """Taps in the padding (minus infinity) replaced by the nearest tap of the same window inside the operand.

    With a dilation the nearest *voxel* is not enough: it need not be under the window.
    """
    positions = axis.positions()
    inside = (positions >= 0) & (positions < axis.size)
    if not inside.any(axis=1).all():
        raise site.invalid("a pooling window lies in the padding alone; make the padding smaller")
    first = np.argmax(inside, axis=1)[:, None]
    last = axis.kernel - 1 - np.argmax(inside[:, ::-1], axis=1)[:, None]
    taps = np.clip(np.arange(axis.kernel)[None, :], first, last)
    nearest: np.ndarray = np.take_along_axis(positions, taps, axis=1)
    return nearest


def _check(site: Site, x: Value, axes: Sequence[WindowAxis]) -> None:
    fits = len(x.shape) == len(axes) + 1 or (x.batch is None and len(x.shape) == len(axes) + 2)
    if len(axes) not in (1, 2, 3) or not fits:
        raise site.unsupported(
            f"a window over {len(axes)} axes arrived at an operand of shape {x.whole}; "
            "expected one channel axis and 1, 2 or 3 axes under the window"
        )
    if any(axis.outputs < 1 for axis in axes):
        raise site.invalid(f"the window is larger than the operand of shape {x.whole}")
