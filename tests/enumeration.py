"""Perturbation sets by definition: every cover written out with itertools. The oracle of all tests about sets.

Nothing here uses the package's choices. A set is a list of masks `(T, H, W)`: the voxels of one member that may move.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

SETS = (
    "everywhere",
    "frames:0,2",
    "any-frames:2",
    "window:2",
    "patch:2x1@2",
    "moving-patch:2x1@2",
    "patch-at:1,0,1:2x1@2",
    "pixels:2",
    "pixels-per-frame:1",
)  # every form; all fit clips of at least 3 frames of 2x2 pixels

Voxels = tuple[int, int, int]


def covers(text: str, voxels: Voxels) -> np.ndarray:
    """The maximal covers of a set in words, `(members, T, H, W)` bool."""
    masks = {mask.tobytes(): mask for mask in _covers(text, voxels)}
    return np.stack(list(masks.values()))


def count(text: str, voxels: Voxels, limit: int) -> int:
    """The number of members, or `limit` if there are at least so many."""
    return sum(1 for _ in itertools.islice(_covers(text, voxels), limit))


def _covers(text: str, voxels: Voxels) -> Iterator[np.ndarray]:
    """Covers by the kind of set; some come more than once."""
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    yield from _KINDS[text.split(":")[0]](numbers, voxels)


def _everywhere(numbers: list[int], voxels: Voxels) -> Iterator[np.ndarray]:
    yield np.ones(voxels, dtype=bool)


def _given_frames(numbers: list[int], voxels: Voxels) -> Iterator[np.ndarray]:
    yield _frames(numbers, voxels)


def _any_frames(numbers: list[int], voxels: Voxels) -> Iterator[np.ndarray]:
    for chosen in itertools.combinations(range(voxels[0]), numbers[0]):
        yield _frames(chosen, voxels)


def _window(numbers: list[int], voxels: Voxels) -> Iterator[np.ndarray]:
    for start in range(voxels[0] - numbers[0] + 1):
        yield _frames(range(start, start + numbers[0]), voxels)


def _patch(numbers: list[int], voxels: Voxels) -> Iterator[np.ndarray]:
    t, h, w = voxels
    *at, rows, columns, frames = numbers
    everywhere = itertools.product(range(t - frames + 1), range(h - rows + 1), range(w - columns + 1))
    for start, i, j in [tuple(at)] if at else everywhere:
        mask = np.zeros(voxels, dtype=bool)
        mask[start : start + frames, i : i + rows, j : j + columns] = True
        yield mask


def _moving_patch(numbers: list[int], voxels: Voxels) -> Iterator[np.ndarray]:
    t, h, w = voxels
    rows, columns, frames = numbers
    places = list(itertools.product(range(h - rows + 1), range(w - columns + 1)))
    for start in range(t - frames + 1):
        for path in itertools.product(places, repeat=frames):
            mask = np.zeros(voxels, dtype=bool)
            for frame, (i, j) in enumerate(path, start):
                mask[frame, i : i + rows, j : j + columns] = True
            yield mask


def _any_pixels(numbers: list[int], voxels: Voxels) -> Iterator[np.ndarray]:
    for chosen in itertools.combinations(itertools.product(*map(range, voxels)), numbers[0]):
        yield _pixels(chosen, voxels)


def _pixels_per_frame(numbers: list[int], voxels: Voxels) -> Iterator[np.ndarray]:
    t, h, w = voxels
    frame = list(itertools.combinations(itertools.product(range(h), range(w)), numbers[0]))
    for chosen in itertools.product(frame, repeat=t):
        yield _pixels([(time, i, j) for time, pixels in enumerate(chosen) for i, j in pixels], voxels)


_KINDS: dict[str, Callable[[list[int], Voxels], Iterator[np.ndarray]]] = {
    "everywhere": _everywhere,
    "frames": _given_frames,
    "any-frames": _any_frames,
    "window": _window,
    "patch": _patch,
    "patch-at": _patch,
    "moving-patch": _moving_patch,
    "pixels": _any_pixels,
    "pixels-per-frame": _pixels_per_frame,
}


def _frames(indices: Iterable[int], voxels: Voxels) -> np.ndarray:
    mask = np.zeros(voxels, dtype=bool)
    mask[list(indices)] = True
    return mask


def _pixels(positions: Iterable[tuple[int, ...]], voxels: Voxels) -> np.ndarray:
    mask = np.zeros(voxels, dtype=bool)
    for position in positions:
        mask[position] = True
    return mask


def random_clip(seed: int, channels: int, voxels: Voxels) -> Tensor:
    """Float32 values in [0, 1], about every third of them saturated."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(channels, *voxels, generator=generator) * 1.6 - 0.3).clamp(0, 1).double()


def radius(clip: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The box of a clip in the data domain [0, 1]: the smallest float64 numbers that hold the real interval."""
    lower, upper = clip - epsilon, clip + epsilon
    for side, sign in ((lower, -1), (upper, 1)):
        flat = side.view(-1)
        for i, (own, centre) in enumerate(zip(flat.tolist(), clip.flatten().tolist(), strict=True)):
            if sign * Fraction(own) < sign * (Fraction(centre) + sign * Fraction(epsilon)):
                flat[i] = math.nextafter(own, sign * math.inf)
    return lower.clamp(min=0), upper.clamp(max=1)


def boxes(text: str, clip: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The box of every member, two `(members, C, T, H, W)`."""
    mask = torch.from_numpy(covers(text, tuple(clip.shape[1:]))).unsqueeze(1)
    lower, upper = radius(clip, epsilon)
    return torch.where(mask, lower, clip), torch.where(mask, upper, clip)


def largest(form: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """`max <form, x>` over the union of the boxes: `(*shape)`, two `(members, *shape)` -> a number."""
    return torch.maximum(form * lower, form * upper).flatten(1).sum(1).max()


def holds(clip: Tensor, lower: Tensor, upper: Tensor) -> bool:
    """Is the clip in one of the boxes?"""
    return bool(((clip >= lower) & (clip <= upper)).flatten(1).all(1).any())
