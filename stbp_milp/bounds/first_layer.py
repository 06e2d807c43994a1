"""The closed form of the first layer: exact bounds of every neuron of a convolution on the clip (STBP).

A neuron is a linear form on its receptive field, so its bound is the support function of the set there: the clean
value plus the best cover's gain. All neurons share the geometry, so the rows are never built: per kernel *tap* the
gains of all output positions come from one product over channels, and the choice is made over taps, by top-k for
blocks, by running maxima over *shifts* (first voxel of a patch relative to the first tap) for patches.

"Exact" means equal to the support function of the neuron's row, which equals enumeration of the members.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from stbp_milp.bounds.interval import Interval
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Convolution, Input, Scale
from stbp_milp.sets import Blocks, Choice, MovingPatch, Patch, PerturbationSet

CHUNK_BYTES = 512 << 20
_INSERTION_LIMIT = 8  # more than this many largest gains are found by sorting


def first_layer(
    network: Network, perturbation: PerturbationSet, node: int, gamma: float, chunk_bytes: int = CHUNK_BYTES
) -> Interval | None:
    """Computes exact bounds of the deviations of `node`, `(N, *shape)`.

    Returns None unless the node is a Conv3d on the clip, possibly with scalings before and after it. All gains are sums
    of numbers that are not negative, so the rounding error is relative.

    Args:
        gamma: the constant of `bounds.rounding`.
        chunk_bytes: memory for the tap gains of one group of filters.
    """
    chain = _chain(network, node)
    if chain is None:
        return None
    before, convolution, after = chain
    up, down = perturbation.upper - perturbation.clip, perturbation.clip - perturbation.lower
    for scale in before:
        positive = scale.factor >= 0
        up, down = (
            torch.where(positive, scale.factor * up, -scale.factor * down),
            torch.where(positive, scale.factor * down, -scale.factor * up),
        )
    rise, fall = excess(convolution, up, down, perturbation.choice, chunk_bytes)
    for scale in after:
        positive = scale.factor >= 0
        rise, fall = (
            torch.where(positive, scale.factor * rise, -scale.factor * fall),
            torch.where(positive, scale.factor * fall, -scale.factor * rise),
        )
    return Interval(-(1 + 2 * gamma) * fall, (1 + 2 * gamma) * rise)


def _chain(network: Network, node: int) -> tuple[list[Scale], Convolution, list[Scale]] | None:
    """Returns the layers from the input to `node` if they are scalings, one Conv3d with one group, and scalings."""
    before: list[Scale] = []
    after: list[Scale] = []
    convolution: Convolution | None = None
    while node:
        layer = network.nodes[node].layer
        if isinstance(layer, Scale):
            (before if convolution else after).append(layer)
        elif isinstance(layer, Convolution) and convolution is None and layer.weight.dim() == 5 and layer.groups == 1:
            convolution = layer
        else:
            return None
        (node,) = network.nodes[node].inputs
    if convolution is None or not isinstance(network.nodes[0].layer, Input):
        return None
    return before[::-1], convolution, after[::-1]


@dataclass(frozen=True, eq=False)
class _Geometry:
    """The positions of a kernel's taps on the clip; a dilated kernel has zeros between its taps."""

    kernel: tuple[int, int, int]
    first_tap: tuple[Tensor, Tensor, Tensor]  # per axis, the voxel under tap 0 of every output position

    def voxel(self, axis: int) -> Tensor:
        """Returns the voxel under every tap and output position of an axis, `(K, out)`; outside the clip is padding."""
        return self.first_tap[axis] + torch.arange(self.kernel[axis], device=self.first_tap[axis].device)[:, None]


def excess(
    convolution: Convolution, up: Tensor, down: Tensor, choice: Choice, chunk_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Computes how far every neuron can rise above and fall below its clean value, two `(N, O, To, Ho, Wo)`.

    It is differentiable in the weights and works with `torch.func.vmap` over clips, as certified training needs.

    Args:
        up, down: how far every voxel can rise and fall, `(C, T, H, W)`, not negative.
    """
    weight = _undilated(convolution)
    kernel = (weight.shape[2], weight.shape[3], weight.shape[4])
    outputs = [
        (size + sum(pad) - k) // stride + 1
        for size, pad, k, stride in zip(up.shape[1:], convolution.padding, kernel, convolution.stride, strict=True)
    ]
    first_tap = [
        torch.arange(n, device=up.device) * stride - pad[0]
        for n, stride, pad in zip(outputs, convolution.stride, convolution.padding, strict=True)
    ]
    geometry = _Geometry(kernel, (first_tap[0], first_tap[1], first_tap[2]))
    sides = [side for pad in reversed(convolution.padding) for side in pad]
    reach = F.pad(torch.cat([up, down]), sides)  # (2C, padded T, H, W)
    taps = kernel[0] if _frames_only(choice) else kernel[0] * kernel[1] * kernel[2]
    per_filter = outputs[0] * outputs[1] * outputs[2] * taps * reach.element_size() * max(4, choice.parts)
    step = max(1, chunk_bytes // per_filter)
    rises, falls = [], []
    for part in torch.split(weight, step):
        positive, negative = part.clamp(min=0), (-part).clamp(min=0)
        rises.append(
            _best(choice, _tap_gains(torch.cat([positive, negative], 1), reach, convolution.stride, choice), geometry)
        )
        falls.append(
            _best(choice, _tap_gains(torch.cat([negative, positive], 1), reach, convolution.stride, choice), geometry)
        )
    return torch.cat(rises, 1), torch.cat(falls, 1)


def _undilated(convolution: Convolution) -> Tensor:
    weight = convolution.weight
    for axis, dilation in enumerate(convolution.dilation, start=2):
        if dilation > 1:
            size = list(weight.shape)
            size[axis] = (size[axis] - 1) * dilation + 1
            index = torch.arange(0, size[axis], dilation, device=weight.device)
            weight = weight.new_zeros(size).index_copy(axis, index, weight)
    return weight


def _frames_only(choice: Choice) -> bool:
    """Do covers consist of whole frames?"""
    if isinstance(choice, Patch):
        return choice.size[1:] == choice.voxels[1:]
    return isinstance(choice, Blocks) and choice.kind == "frames"


def _tap_gains(weight: Tensor, reach: Tensor, stride: tuple[int, ...], choice: Choice) -> Tensor:
    """Computes every tap's gain at every output position, `(O, KT, KH, KW, To, Ho, Wo)`; KH = KW = 1 for frames."""
    kt, kh, kw = weight.shape[2:]
    if _frames_only(choice):
        frames = [
            F.conv3d(reach[None, :, t : reach.shape[1] - kt + 1 + t], weight[:, :, t : t + 1], stride=stride)[0]
            for t in range(kt)
        ]
        return torch.stack(frames, 1)[:, :, None, None]
    slices = []
    for t, h, w in product(range(kt), range(kh), range(kw)):
        under = reach[
            :,
            t : reach.shape[1] - kt + 1 + t : stride[0],
            h : reach.shape[2] - kh + 1 + h : stride[1],
            w : reach.shape[3] - kw + 1 + w : stride[2],
        ]
        slices.append(torch.tensordot(weight[:, :, t, h, w], under, 1))
    gains = torch.stack(slices, 1)
    return gains.reshape(weight.shape[0], kt, kh, kw, *gains.shape[2:])


@singledispatch
def _best(choice: Choice, gains: Tensor, geometry: _Geometry) -> Tensor:
    """Computes the best cover's gain for every neuron, `(N, O, To, Ho, Wo)`."""
    raise NotImplementedError(f"first_layer: no closed form for {type(choice).__name__}")


@_best.register
def _(choice: Blocks, gains: Tensor, geometry: _Geometry) -> Tensor:
    kt, kh, kw = gains.shape[1:4]
    grid = (choice.parts, *choice.voxels)
    if choice.kind == "frames":
        grid = (choice.parts, choice.voxels[0], 1, 1)
    allowed = _under_taps(choice.allowed.reshape(grid), geometry, (kt, kh, kw))
    forced = _under_taps(choice.forced.reshape(grid), geometry, (kt, kh, kw))
    groups = (kt, kh * kw) if choice.kind == "pixels per frame" else (1, kt * kh * kw)
    gains = gains.reshape(1, gains.shape[0], *groups, *gains.shape[4:])
    allowed, forced = (m.reshape(m.shape[0], 1, *groups, *m.shape[4:]) for m in (allowed, forced))
    left = choice.budget - choice.forced.sum(-1)  # (N, groups of the choice)
    if choice.kind == "pixels per frame":  # the budget of the frame under each tap; padding frames have no gain
        frames = geometry.voxel(0).clamp(0, choice.voxels[0] - 1)
        left = left[:, frames][:, None, :, None, :, None, None]
    else:
        left = left.view(-1, 1, 1, 1, 1, 1, 1)
    total = (gains * forced).sum((2, 3))
    rank_limit = min(int(left.max()), groups[1])
    if rank_limit > 0:
        for rank, ranked in enumerate(_largest(gains * (allowed & ~forced), rank_limit)):
            total = total + (ranked * (rank < left.squeeze(3))).sum(2)
    return total


def _largest(gains: Tensor, count: int) -> list[Tensor]:
    """Returns the `count` largest of `(N, O, groups, blocks, *positions)` along the blocks, in descending order.

    Blocks are inserted one by one into a sorted list of whole tensors. This streams through memory, unlike a sort along
    a strided axis, and is 2 to 3 times faster for the 5 largest of 27.
    """
    if count > _INSERTION_LIMIT:
        return list(gains.sort(dim=3, descending=True).values.narrow(3, 0, count).unbind(3))
    largest: list[Tensor] = []
    for value in gains.unbind(3):
        for rank, held in enumerate(largest):
            largest[rank], value = torch.maximum(held, value), torch.minimum(held, value)
        if len(largest) < count:
            largest.append(value)
    return largest


@_best.register
def _(choice: Patch, gains: Tensor, geometry: _Geometry) -> Tensor:
    shifts = [
        list(
            _shifts(
                choice.size[axis],
                gains.shape[1 + axis],
                geometry,
                axis,
                choice.first[:, axis],
                choice.last[:, axis],
                choice.voxels[axis],
            )
        )
        if axis == 0 or not _frames_only(choice)
        else [(0, 1, None)]
        for axis in range(3)
    ]
    best = gains.new_zeros(choice.parts, gains.shape[0], *gains.shape[4:])
    for low_t, high_t, mask_t in shifts[0]:
        over_time = gains[:, low_t:high_t].sum(1)
        for low_h, high_h, mask_h in shifts[1]:
            over_rows = over_time[:, low_h:high_h].sum(1)
            for low_w, high_w, mask_w in shifts[2]:
                total = over_rows[:, low_w:high_w].sum(1).unsqueeze(0)
                for axis, mask in enumerate((mask_t, mask_h, mask_w)):
                    if mask is not None:
                        total = total * mask.view(mask.shape[0], 1, *(-1 if a == axis else 1 for a in range(3)))
                best = torch.maximum(best, total)
    return best


@_best.register
def _(choice: MovingPatch, gains: Tensor, geometry: _Geometry) -> Tensor:
    frame = geometry.voxel(0)  # (KT, To)
    clamped = frame.clamp(0, choice.voxels[0] - 1)
    first, last = choice.place_first[:, clamped], choice.place_last[:, clamped]  # (N, KT, To, 2)
    full = [n - s for n, s in zip(choice.voxels[1:], choice.size[1:], strict=True)]
    free = [
        bool((choice.place_first[..., a] == 0).all() and (choice.place_last[..., a] == full[a]).all()) for a in (0, 1)
    ]
    shifts = [_shift_range(choice.size[1 + a], gains.shape[2 + a], free[a]) for a in (0, 1)]
    per_frame = gains.new_zeros(choice.parts, gains.shape[0], *gains.shape[1:2], *gains.shape[4:])
    for row, column in product(*shifts):
        total = (
            gains[:, :, max(row, 0) : row + choice.size[1], max(column, 0) : column + choice.size[2]]
            .sum((2, 3))
            .unsqueeze(0)
        )
        for a, shift in enumerate((row, column)):
            if not free[a]:
                start = geometry.first_tap[1 + a] + shift  # (out,)
                inside = (start >= first[..., a, None]) & (start <= last[..., a, None])  # (N, KT, To, out)
                total = total * (inside[:, None, :, :, :, None] if a == 0 else inside[:, None, :, :, None, :])
        per_frame = torch.maximum(per_frame, total)
    best = gains.new_zeros(choice.parts, gains.shape[0], *gains.shape[4:])
    for low, high, mask in _shifts(
        choice.size[0], gains.shape[1], geometry, 0, choice.start_first, choice.start_last, choice.voxels[0]
    ):
        run = per_frame[:, :, low:high].sum(2)
        best = torch.maximum(best, run if mask is None else run * mask[:, None, :, None, None])
    return best


def _shift_range(length: int, kernel: int, free: bool) -> range:
    """Returns the shifts that can be best.

    If every position is allowed, a window that extends beyond the taps (or beyond the border of the clip, where taps
    lie on padding) is never better than one moved inside, because gains are not negative.
    """
    if free:
        return range(0, max(kernel - length, 0) + 1)
    return range(1 - length, kernel)


def _shifts(
    length: int, kernel: int, geometry: _Geometry, axis: int, first: Tensor, last: Tensor, voxels: int
) -> Iterator[tuple[int, int, Tensor | None]]:
    """Yields, for every useful shift, the taps `[low, high)` under a window of `length` voxels and where it is allowed.

    The mask is `(N, out)`; None if every part allows every position.
    """
    free = bool((first == 0).all() and (last == voxels - length).all())
    for shift in _shift_range(length, kernel, free):
        low, high = max(shift, 0), min(shift + length, kernel)
        if free:
            yield low, high, None
            continue
        start = geometry.first_tap[axis] + shift
        yield low, high, (start >= first[:, None]) & (start <= last[:, None])


def _under_taps(blocks: Tensor, geometry: _Geometry, taps: tuple[int, int, int]) -> Tensor:
    """Gathers the blocks under every tap: `(N, T, H, W)` bool to `(N, KT, KH, KW, To, Ho, Wo)`, False on padding.

    With H = W = 1 blocks are whole frames.
    """
    result = blocks
    for axis in range(3):
        size = blocks.shape[1 + axis]
        if axis and size == 1 and taps[axis] == 1:
            index = torch.zeros(1, 1, dtype=torch.int64, device=blocks.device)
            inside = torch.ones(1, 1, dtype=torch.bool, device=blocks.device)
        else:
            voxel = geometry.voxel(axis)
            inside = (voxel >= 0) & (voxel < size)
            index = voxel.clamp(0, size - 1)
        # The axis becomes two, (K, out), appended at the end; earlier axes keep their order.
        result = result.movedim(1, -1)[..., index] & inside
    n = result.shape[0]
    return result.view(n, *result.shape[1:]).permute(0, 1, 3, 5, 2, 4, 6)
