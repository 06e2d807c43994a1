"""Every input as a clip: networks of flat, 1D and 2D inputs seen with the four axes (C, T, H, W) of a clip.

The numbers keep their row-major order, so a view costs nothing and index i of the input is index i of the clip. A flat
input is one row of pixels, a series (C, L) has one pixel a frame, an image (C, H, W) is one frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from stbp_milp.network.graph import Network, Node
from stbp_milp.network.layers import Reshape


def clip_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """The clip's shape for an input of `shape` (without the batch axis)."""
    match tuple(shape):
        case (channels, frames, height, width):
            return channels, frames, height, width
        case (channels, height, width):
            return channels, 1, height, width
        case (channels, length) if length > 1:
            return channels, length, 1, 1
        case _:
            return 1, 1, 1, math.prod(shape)


def on_clips(network: Network) -> Network:
    """The same function of a clip: a reshape in front, where the input has not four axes."""
    own = network.input_shape
    if len(own) == 4:
        return network
    clip, view, *others = (
        replace(network.nodes[0], shape=clip_shape(own)),
        Node(f"{network.nodes[0].name}/view", Reshape(own), (0,), own),
        *(replace(node, inputs=tuple(i + 1 for i in node.inputs)) for node in network.nodes[1:]),
    )
    return Network((clip, view, *others))


def predicts_clips(
    predict: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]
) -> Callable[[np.ndarray], np.ndarray]:
    """`predict` on inputs `(N, *shape)` as the same on clips `(N, C, T, H, W)`."""
    return predict if len(shape) == 4 else lambda clips: predict(clips.reshape(len(clips), *shape))


def as_clip(array: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`array` as a clip of `shape` where it is one but for axes of length 1; else as it is.

    An image saved as (C, H, W) and read as one channel, (1, C, H, W), is the clip (C, 1, H, W) of one frame. Only axes
    in front of the array are dropped: anything else may be a mistake.
    """
    front = next((axis for axis, n in enumerate(array.shape) if n != 1), array.dim())
    return array.reshape(shape) if list(array.shape[front:]) == [n for n in shape if n != 1] else array
