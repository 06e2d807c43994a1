"""Procedural clips of ST-Bench: moving shapes, organs with lesions, roads.

Everything is drawn from one seed per call, in float32 and within `[0, 1]`, so that the training and the shipped clips
can be reproduced anywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

VIDEO_SHAPE = (1, 8, 16, 16)
VIDEO_CLASSES = ("left", "right", "up", "down")
VOLUME_SHAPE = (1, 12, 16, 16)
VOLUME_CLASSES = ("healthy", "cyst", "tumour")
STEERING_SHAPE = (3, 4, 16, 24)
STEERING_LIMIT = 25.0  # degrees


def moving_shapes(count: int, seed: int, clip_shape: tuple[int, int, int, int] = VIDEO_SHAPE) -> tuple[Tensor, Tensor]:
    """Draws clips `(count, *clip_shape)` of one moving shape; the label `(count,)` is its direction (VIDEO_CLASSES).

    The shape leaves one side and enters at the other, from a uniformly random start: every single frame has the
    same distribution in all four classes, so only the motion tells them apart. Larger frames show it larger and
    faster in proportion; with several channels shape and background have colours.
    """
    draw = _Draw(seed)
    channels, frames, height, width = clip_shape
    scale = height / VIDEO_SHAPE[2]
    labels = torch.randint(len(VIDEO_CLASSES), (count,), generator=draw.generator)
    direction = torch.tensor([[0.0, -1.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])[labels]  # (count, 2): rows, columns
    start = draw.uniform(0.0, 1.0, count, 2) * torch.tensor([height, width])
    speed = draw.uniform(0.9, 1.6, count) * scale
    time = torch.arange(frames, dtype=torch.float32)
    place = start[:, None] + direction[:, None] * (speed[:, None] * time)[..., None]  # (count, T, 2)
    rows = _around(torch.arange(height), place[..., 0], height)[..., :, None]  # (count, T, H, 1)
    columns = _around(torch.arange(width), place[..., 1], width)[..., None, :]
    distances = torch.stack(
        [
            torch.sqrt(rows**2 + columns**2),  # disc
            torch.maximum(rows, columns) * torch.ones_like(rows + columns),  # square
            (rows + columns) / math.sqrt(2),  # diamond
        ],
        dim=1,
    )
    kind = torch.randint(distances.shape[1], (count,), generator=draw.generator)
    distance = distances[torch.arange(count), kind]  # (count, T, H, W)
    shape = (draw.uniform(2.0, 3.2, count, 1, 1, 1) * scale - distance + 0.5).clamp(0, 1).unsqueeze(1)
    planes = [count, channels, 1, 1, 1]
    background, contrast = draw.uniform(0.05, 0.3, *planes), draw.uniform(0.45, 0.65, *planes)
    clips = background + contrast * shape + 0.03 * draw.normal(count, channels, frames, height, width)
    return clips.clamp(0, 1), labels


def organs(count: int, seed: int, clip_shape: tuple[int, int, int, int] = VOLUME_SHAPE) -> tuple[Tensor, Tensor]:
    """Draws volumes `(count, *clip_shape)` of one ellipsoid organ; the label `(count,)` says what is in it.

    The classes are VOLUME_CLASSES: a cyst is a dark ball, a tumour a bright one, five to seven slices of twelve thick;
    a healthy organ has neither. Larger volumes show everything larger in proportion, axis by axis.
    """
    draw = _Draw(seed)
    channels, *sizes = clip_shape
    scale = torch.tensor(sizes) / torch.tensor(VOLUME_SHAPE[1:])
    labels = torch.randint(len(VOLUME_CLASSES), (count,), generator=draw.generator)
    axes = [torch.arange(n, dtype=torch.float32) for n in sizes]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # (T, H, W, 3)
    middle = torch.tensor([(n - 1) / 2 for n in sizes])
    centre = middle + draw.uniform(-0.8, 0.8, count, 3) * scale
    radii = torch.tensor([4.2, 5.2, 5.2]) + draw.uniform(0.0, 1.0, count, 3) * torch.tensor([1.0, 1.6, 1.6])
    offset = (grid - _on_grid(centre)) / scale
    organ = ((1 - torch.linalg.vector_norm(offset / _on_grid(radii), dim=-1)) * 4 + 0.5).clamp(0, 1)
    towards = draw.normal(count, 3)
    towards = towards / torch.linalg.vector_norm(towards, dim=1, keepdim=True)
    lesion_centre = centre + towards * radii * draw.uniform(0.0, 0.45, count, 1) * scale
    lesion_radius = draw.uniform(2.3, 3.2, count, 1, 1, 1)
    apart = torch.linalg.vector_norm((grid - _on_grid(lesion_centre)) / scale, dim=-1)
    lesion = (lesion_radius - apart + 0.5).clamp(0, 1)
    sign = torch.tensor([0.0, -1.0, 1.0])[labels].view(-1, 1, 1, 1)
    tissue = draw.uniform(0.45, 0.55, count, 1, 1, 1)
    depth = draw.uniform(0.3, 0.4, count, 1, 1, 1)
    background = draw.uniform(0.05, 0.15, count, 1, 1, 1)
    volumes = background + (tissue - background + sign * depth * lesion) * organ
    volumes = volumes.unsqueeze(1) + 0.02 * draw.normal(count, channels, *sizes)
    return volumes.clamp(0, 1), labels


def roads(count: int, seed: int, clip_shape: tuple[int, int, int, int] = STEERING_SHAPE) -> tuple[Tensor, Tensor]:
    """Clips `(count, *clip_shape)` of a road seen from a car, and the steering angle `(count, 1)` in degrees.

    The angle follows from the road's bend and from where the car is in its lane in the last frame, within
    +-STEERING_LIMIT; positive is to the right. Larger pictures show the same view, more frames the same time in
    smaller steps.

    Raises:
        ValueError: a clip without three channels.
    """
    draw = _Draw(seed)
    channels, frames, height, width = clip_shape
    if channels != STEERING_SHAPE[0]:
        raise ValueError(f"roads are drawn in colour: expected 3 channels, got a clip of shape {clip_shape}")
    per_frame, taller, wider = (old / new for old, new in zip((4, height, width), (frames, 16, 24), strict=True))
    bend, offset = draw.uniform(-1.0, 1.0, count), draw.uniform(-1.0, 1.0, count)
    drift, pace = draw.uniform(-0.05, 0.05, count), draw.uniform(0.3, 0.6, count)
    horizon = 5 * taller
    time = (torch.arange(frames, dtype=torch.float32) - (frames - 1)) * per_frame
    row = torch.arange(height, dtype=torch.float32)
    near = ((row - horizon) / (height - 1 - horizon)).clamp(0, 1)  # (H,): 0 at the horizon, 1 at the car
    sideways = offset[:, None] + drift[:, None] * time  # (count, T)
    shift = 7.0 * bend[:, None, None] * (1 - near) ** 2 - 3.5 * sideways[..., None] * near  # (count, T, H)
    middle = (width - 1) / 2 + wider * shift[..., None]
    half = wider * (1.0 + 8.0 * near)[:, None]  # (H, 1)
    column = torch.arange(width, dtype=torch.float32)
    across = (column - middle).abs()  # (count, T, H, W)
    road = (half - across + 0.5).clamp(0, 1)
    edge = (wider - (across - half).abs()).clamp(0, 1) * (near > 0.05).float()[:, None]
    distance = 1 / (near + 0.25)  # how far ahead a row is
    dashes = (torch.sin(6.0 * (distance + pace[:, None, None] * time[:, None])) > 0).float()[..., None]
    line = (wider * (0.4 + 0.6 * near[:, None]) - across).clamp(0, 1) * dashes
    light = draw.uniform(0.8, 1.0, count, 1, 1, 1)
    below = (row >= horizon).float()[:, None]
    colours = {"sky": (0.45, 0.6, 0.85), "grass": (0.25, 0.5, 0.2), "road": (0.35, 0.35, 0.38)}
    planes = []
    for channel in range(channels):
        ground = colours["grass"][channel] * (1 - road) + colours["road"][channel] * road
        marked = torch.maximum(edge * 0.9, line * (0.9, 0.8, 0.3)[channel])
        ground = ground * (1 - marked) + 0.95 * marked
        planes.append(light * (below * ground + (1 - below) * colours["sky"][channel]))
    clips = torch.stack(planes, 1)
    clips = clips + 0.02 * draw.normal(*clips.shape)
    angle = STEERING_LIMIT * (0.7 * bend - 0.3 * offset)
    return clips.clamp(0, 1), angle[:, None]


class _Draw:
    """The random numbers of one call."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)


def _around(index: Tensor, place: Tensor, size: int) -> Tensor:
    """Computes distances along a circle of `size` pixels, `(size,), (N, T) -> (N, T, size)`."""
    apart = (index - place[..., None]).remainder(size)
    return torch.minimum(apart, size - apart)


def _on_grid(points: Tensor) -> Tensor:  # (count, 3) -> (count, 1, 1, 1, 3)
    return points[:, None, None, None]
