"""Every input as a clip: networks of any input seen with the four axes (C, T, H, W) of a clip.

A *layout* names the axes of a model's input, without the batch axis, in their order: `CTHW`, `TCHW`, `THWC`; `THW`
where there is no axis of channels; `CHW`, `HWC`, `HW` for images, which are clips of one frame; `CT`, `TC` for series,
which have one pixel a frame. Where the input keeps the order of a clip, a view is a reshape and index i of the input is
index i of the clip; else it is a permutation too.

Where nobody names the layout, four axes are `CTHW`, three `CHW`, two `CT`, and everything else is one row of pixels.
That must not be a guess, because a set of frames or pixels is another set in another layout: `undecided` says where
other layouts fit as well. The rule:

1. `everywhere` and boxes are the same in every layout, so nothing needs to be known.
2. The first convolution says more than lengths do: its operand has the channels first. Where it reads the input as it
   is, or transposed, the layouts that fit its operand are the only ones. Frames may be stacked as channels of an image,
   though: three axes under a 2D convolution are `CHW` only where the first has length 1, or length 3 and the set does
   not speak of frames.
3. Without a convolution, lengths decide. Four axes may be `THWC` where the last is at most 4 and below the two before
   it, and `TCHW` where the first is not 1 and the second is 1, 3, or at most 4 and below the two after it. Three axes
   may be `THW` where the first is not 1, and `HWC` where the last is at most 4 and below the other two. Two axes may be
   `TC` or `HW`, (n, 1) a series where the set speaks of frames. More than four axes have no names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stbp_milp.errors import InputError
from stbp_milp.network.graph import Network, Node
from stbp_milp.network.layers import Convolution, Permute, Reshape, Scale, Select

LAYOUTS = ("CTHW", "TCHW", "THWC", "THW", "CHW", "HWC", "HW", "CT", "TC")
_CLIP = "CTHW"
_PICTURE = (1, 3)  # channels of grey and of colour
_MOST_CHANNELS = 4  # of a picture or an optical flow that is stored with its channels last
_OF_FRAMES = ("frames", "any-frames", "window", "pixels-per-frame", "moving-patch")
_SAME_IN_ALL = ("everywhere", "box")


def parse_layout(text: str) -> str:
    """One of `LAYOUTS`, in any case; `D`, the depth of a volume, may stand for `T`.

    Raises:
        InputError: none of them.
    """
    name = text.upper().replace("D", "T") if isinstance(text, str) else ""
    if name in LAYOUTS:
        return name
    raise InputError(
        f"layout {text!r} is not understood; expected the axes of the model's input without the batch axis, one of "
        f"{', '.join(LAYOUTS)}"
    )


@dataclass(frozen=True)
class Axes:
    """Which axes of a clip those of a model's input are.

    Attributes:
        shape: of the model's own input, without the batch axis.
        layout: one of `LAYOUTS`; "" where the input is one row of pixels.
        named: did a user say so?
        convolved: the layouts that fit what the first convolution reads, where there is one that reads the input; ()
            without.
    """

    shape: tuple[int, ...]
    layout: str
    named: bool = False
    convolved: tuple[str, ...] = ()

    @classmethod
    def of(cls, shape: Sequence[int], layout: str | None = None, convolved: tuple[str, ...] = ()) -> Axes:
        """The axes of an input of `shape` in a layout, by default that of so many axes.

        Raises:
            InputError: the layout is unknown, or has another number of axes.
        """
        own = tuple(shape)
        if layout is not None:
            return cls(own, _fitting_name(own, layout), named=True, convolved=convolved)
        match own:
            case (_, _, _, _):
                return cls(own, _CLIP, convolved=convolved)
            case (_, _, _):
                return cls(own, "CHW", convolved=convolved)
            case (_, length) if length > 1:
                return cls(own, "CT", convolved=convolved)
            case _:
                return cls(own, "", convolved=convolved)

    @property
    def clip(self) -> tuple[int, int, int, int]:
        """The shape (C, T, H, W) of the clips."""
        if not self.layout:
            return 1, 1, 1, math.prod(self.shape)
        length = dict(zip(self.layout, self.shape, strict=True))
        channels, frames, height, width = (length.get(axis, 1) for axis in _CLIP)
        return channels, frames, height, width

    @property
    def in_order(self) -> bool:
        """Is index i of the input index i of the clip?"""
        long = [axis for axis, length in zip(self.layout, self.shape, strict=False) if length > 1]
        return long == sorted(long, key=_CLIP.index)

    @property
    def contradicted(self) -> bool:
        """Does the first convolution read the input in other layouts only? Frames may be an image's channels."""
        stacked = self.layout == "THW" and "CHW" in self.convolved
        return bool(self.convolved) and self.layout not in self.convolved and not stacked

    def to_model(self, clips: Tensor) -> Tensor:
        """`(..., C, T, H, W)` as `(..., *shape)`."""
        front = clips.shape[:-4]
        if self.in_order:
            return clips.reshape(*front, *self.shape)
        present = [axis for axis in _CLIP if axis in self.layout]
        lengths = dict(zip(_CLIP, self.clip, strict=True))
        short = clips.reshape(*front, *(lengths[axis] for axis in present))
        return short.permute(*range(len(front)), *(len(front) + present.index(axis) for axis in self.layout))

    def from_model(self, array: Tensor) -> Tensor:
        """`(*shape)` as `(C, T, H, W)`."""
        if self.in_order:
            return array.reshape(self.clip)
        return array.permute(*(self.layout.index(axis) for axis in _CLIP if axis in self.layout)).reshape(self.clip)

    def words(self) -> str:
        """As in "1 channel, 8 frames, 16x16 pixels"."""
        channels, frames, height, width = self.clip
        if not self.layout:
            return f"one row of {width:,} values"
        return f"{_counted(channels, 'channel')}, {_counted(frames, 'frame')}, {height}x{width} pixels"


def _fitting_name(own: tuple[int, ...], layout: str) -> str:
    name = parse_layout(layout)
    if len(name) == len(own):
        return name
    others = [other for other in LAYOUTS if len(other) == len(own)]
    raise InputError(
        f"layout {name} names {len(name)} axes, but the model's input has shape {own} without the batch axis; "
        + (f"choose one of {', '.join(others)}" if others else "leave the layout out, inputs of so many axes have none")
    )


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def clip_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The clip's shape for an input of `shape` (without the batch axis) whose layout nobody named."""
    return Axes.of(shape).clip


def on_clips(network: Network, axes: Axes | None = None) -> Network:
    """The same function of a clip: a view in front, where the input has not the axes of a clip."""
    own = network.input_shape
    axes = Axes.of(own) if axes is None else axes
    if own == axes.clip and axes.in_order:
        return network
    name = network.nodes[0].name
    front = [replace(network.nodes[0], shape=axes.clip)]
    if not axes.in_order:
        size = (math.prod(own),)
        order = axes.to_model(torch.arange(size[0]).reshape(axes.clip)).flatten()
        front += [
            Node(f"{name}/flat", Reshape(size), (0,), size),
            Node(f"{name}/permuted", Select(0, order), (1,), size),
        ]
    front.append(Node(f"{name}/view", Reshape(own), (len(front) - 1,), own))
    moved = len(front) - 1
    others = (replace(node, inputs=tuple(i + moved for i in node.inputs)) for node in network.nodes[1:])
    return _without_detours(Network((*front, *others)))


def _moved_input(network: Network, scaled: bool = False) -> dict[int, Tensor]:
    """Of every node that only moves the input's values, or scales them too: which it holds where, as flat indices."""
    moved = {0: torch.arange(math.prod(network.input_shape)).reshape(network.input_shape)}
    for at, node in enumerate(network.nodes[1:], start=1):
        operand = moved.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if operand is None:
            continue
        if isinstance(node.layer, Reshape):
            moved[at] = operand.reshape(node.layer.shape)
        elif isinstance(node.layer, Permute):
            moved[at] = operand.permute(node.layer.order)
        elif isinstance(node.layer, Select) and not node.layer.padded:
            moved[at] = operand.index_select(node.layer.axis, node.layer.index.cpu())
        elif scaled and isinstance(node.layer, Scale):
            moved[at] = operand
    return moved


def _without_detours(network: Network) -> Network:
    """Nodes that move values and end at the clip as it was are the clip: what a model does first is often to undo its
    layout, and its first convolution then reads the clip itself."""
    last = len(network.nodes) - 1
    moved = _moved_input(network)
    clip = {at for at, held in moved.items() if at != last and torch.equal(held, moved[0])}
    needed, stack = {0, last}, [last]
    while stack:
        for operand in network.nodes[stack.pop()].inputs:
            found = 0 if operand in clip else operand
            if found not in needed:
                needed.add(found)
                stack.append(found)
    kept = sorted(needed)
    position = {at: new for new, at in enumerate(kept)} | dict.fromkeys(clip, 0)
    nodes = (network.nodes[at] for at in kept)
    return Network(tuple(replace(node, inputs=tuple(position[i] for i in node.inputs)) for node in nodes))


def convolved_layouts(network: Network) -> tuple[str, ...]:
    """The layouts in which the first convolution's operand is a clip, an image or a series, channels first; of a
    network on its own input. () where no convolution reads the input, but for scales and transpositions."""
    own = network.input_shape
    moved = _moved_input(network, scaled=True)
    for node in network.nodes[1:]:
        if isinstance(node.layer, Convolution) and (read := moved.get(node.inputs[0])) is not None:
            return tuple(name for name in LAYOUTS if len(name) == len(own) and _is_clip(read, Axes.of(own, name)))
    return ()


def _is_clip(read: Tensor, axes: Axes) -> bool:
    """Does the operand of a convolution hold a clip of these axes?"""
    wanted = axes.from_model(torch.arange(math.prod(axes.shape)).reshape(axes.shape))
    channels, frames, height, width = axes.clip
    lengths = {4: axes.clip, 3: (channels, height, width), 2: (channels, frames)}.get(read.dim())
    if read.dim() == 3 and frames != 1:
        return False
    if read.dim() == 2 and (height, width) != (1, 1):
        return False
    return tuple(read.shape) == lengths and torch.equal(read.flatten(), wanted.flatten())


def predicts_clips(predict: Callable[[np.ndarray], np.ndarray], axes: Axes) -> Callable[[np.ndarray], np.ndarray]:
    """`predict` on inputs `(N, *axes.shape)` as the same on clips `(N, C, T, H, W)`."""
    if axes.shape == axes.clip and axes.in_order:
        return predict
    if axes.in_order:
        return lambda clips: predict(clips.reshape(len(clips), *axes.shape))
    return lambda clips: predict(np.ascontiguousarray(axes.to_model(torch.from_numpy(np.array(clips))).numpy()))


def as_clip(array: Tensor, axes: Axes) -> Tensor:
    """`array` as a clip (C, T, H, W) where it is one, but for axes of length 1 in front; else as it is.

    It has the axes of the model's input, or those of a clip where only they fit. An image saved as (C, H, W) and read
    as one channel, (1, C, H, W), is the clip (C, 1, H, W) of one frame. Only axes in front of the array are dropped:
    anything else may be a mistake.
    """
    lengths = _without_front(array.shape)
    if lengths == _without_front(axes.shape):
        return axes.from_model(array.reshape(axes.shape))
    if lengths == _without_front(axes.clip) or lengths == [n for n in axes.clip if n != 1]:
        return array.reshape(axes.clip)
    return array


def _without_front(shape: Sequence[int]) -> list[int]:
    """The lengths without the ones in front."""
    front = next((axis for axis, n in enumerate(shape) if n != 1), len(shape))
    return list(shape[front:])


def undecided(axes: Axes, set_text: str) -> str | None:
    """Why the layout must be named before the set can be asked about, in a sentence; None where it need not be."""
    if axes.named or set_text in _SAME_IN_ALL:
        return None
    shape = f"the model's input has shape {axes.shape} without the batch axis"
    if len(axes.shape) > 4:
        return f"{shape}, and so many axes are not those of a clip; ask about the set everywhere, or drop axes"
    others = _fitting(axes, set_text.split(":")[0] in _OF_FRAMES)
    if not others:
        return None
    first = [] if axes.convolved and axes.layout not in axes.convolved else [axes]
    readings = [*first, *(Axes.of(axes.shape, name) for name in others)]
    described = " or ".join(f"{one.layout or 'a row'} ({one.words()})" for one in readings)
    advice = f"say which with layout (--layout), as {readings[0].layout or others[0]}"
    return f"{shape}, which can be {described}, and the set {set_text!r} depends on it; {advice}"


def _fitting(axes: Axes, of_frames: bool) -> list[str]:
    """The layouts that fit besides the default one; the rule is at the top of this file."""
    match axes.shape:
        case (first, second, third, last):
            if axes.convolved:
                return [] if axes.layout in axes.convolved else list(axes.convolved)
            last_fits = last <= _MOST_CHANNELS and last < min(second, third)
            second_fits = second in _PICTURE or (second <= _MOST_CHANNELS and second < min(third, last))
            return ["TCHW"] * (second_fits and first != 1) + ["THWC"] * last_fits
        case (first, second, last):
            if axes.convolved and axes.layout not in axes.convolved:
                return list(axes.convolved)
            stacked = first != 1 and (of_frames or not axes.convolved or first not in _PICTURE)
            last_fits = not axes.convolved and last <= _MOST_CHANNELS and last < min(first, second)
            return ["THW"] * stacked + ["HWC"] * last_fits
        case (_, last) if last > 1:
            if axes.convolved:
                return [] if axes.layout in axes.convolved else list(axes.convolved)
            return ["TC", "HW"]
        case (first, _) if of_frames and first > 1:
            return ["TC"]
        case _:
            return []
