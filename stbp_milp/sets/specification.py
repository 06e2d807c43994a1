"""Perturbation sets in words, as the command line and records write them.

everywhere            frames:3,4            any-frames:2         window:2
patch:3x3@2           moving-patch:3x3@2    patch-at:t,i,j:3x3@2
pixels:5              pixels-per-frame:1
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stbp_milp.errors import InputError
from stbp_milp.sets.blocks import Blocks
from stbp_milp.sets.choice import Choice
from stbp_milp.sets.moving_patch import MovingPatch
from stbp_milp.sets.parts import divide
from stbp_milp.sets.patch import Patch
from stbp_milp.sets.perturbation import PerturbationSet

Voxels = tuple[int, int, int]


def _size(numbers: list[int], voxels: Voxels, text: str) -> Voxels:
    h, w, m = numbers
    if 0 in numbers:
        raise InputError(f"set {text!r} is empty; give numbers of 1 or more")
    if not (1 <= m <= voxels[0] and 1 <= h <= voxels[1] and 1 <= w <= voxels[2]):
        raise InputError(
            f"set {text!r} needs {m} frames of {h}x{w} pixels, the clip has {voxels[0]} of {voxels[1]}x{voxels[2]}; "
            f"give smaller numbers"
        )
    return m, h, w


def _everywhere(numbers: list[int], voxels: Voxels, text: str) -> Choice:
    return Patch.of(voxels, voxels)


def _frames(numbers: list[int], voxels: Voxels, text: str) -> Choice:
    wrong = [n for n in numbers if n >= voxels[0]]
    if wrong:
        raise InputError(f"set {text!r} names frame {wrong[0]}, but the clip has frames 0 to {voxels[0] - 1}")
    return Blocks.frames(tuple(sorted(set(numbers))), voxels)


def _counted(kind: str) -> Callable[[list[int], Voxels, str], Choice]:
    def build(numbers: list[int], voxels: Voxels, text: str) -> Choice:
        (k,) = numbers
        blocks = {
            "frames": voxels[0],
            "pixels": voxels[0] * voxels[1] * voxels[2],
            "pixels per frame": voxels[1] * voxels[2],
        }[kind]
        if not 1 <= k <= blocks:
            raise InputError(
                f"set {text!r} asks for {k} {kind}, but the clip has {blocks}; give a number from 1 to {blocks}"
            )
        return Blocks.of(kind, k, voxels)  # type: ignore[arg-type]

    return build


def _window(numbers: list[int], voxels: Voxels, text: str) -> Choice:
    return Patch.of(_size([voxels[1], voxels[2], numbers[0]], voxels, text), voxels)


def _patch(numbers: list[int], voxels: Voxels, text: str) -> Choice:
    return Patch.of(_size(numbers, voxels, text), voxels)


def _moving_patch(numbers: list[int], voxels: Voxels, text: str) -> Choice:
    return MovingPatch.of(_size(numbers, voxels, text), voxels)


def _patch_at(numbers: list[int], voxels: Voxels, text: str) -> Choice:
    t, i, j = numbers[:3]
    size = _size(numbers[3:], voxels, text)
    if any(first + length > n for first, length, n in zip((t, i, j), size, voxels, strict=True)):
        raise InputError(
            f"set {text!r} reaches outside the clip of {voxels[0]} frames of {voxels[1]}x{voxels[2]} pixels; "
            f"move it or make it smaller"
        )
    return Patch.at((t, i, j), size, voxels)


@dataclass(frozen=True)
class _Form:
    """One way to write a set: its pattern, an example, and the function that builds the choice."""

    pattern: str
    example: str
    build: Callable[[list[int], Voxels, str], Choice]


_FORMS = {
    "everywhere": _Form("everywhere", "everywhere", _everywhere),
    "frames": _Form(r"frames:\d+(?:,\d+)*", "frames:3,4", _frames),
    "any-frames": _Form(r"any-frames:\d+", "any-frames:2", _counted("frames")),
    "window": _Form(r"window:\d+", "window:2", _window),
    "patch": _Form(r"patch:\d+x\d+@\d+", "patch:3x3@2", _patch),
    "moving-patch": _Form(r"moving-patch:\d+x\d+@\d+", "moving-patch:3x3@2", _moving_patch),
    "patch-at": _Form(r"patch-at:\d+,\d+,\d+:\d+x\d+@\d+", "patch-at:t,i,j:3x3@2", _patch_at),
    "pixels": _Form(r"pixels:\d+", "pixels:5", _counted("pixels")),
    "pixels-per-frame": _Form(r"pixels-per-frame:\d+", "pixels-per-frame:1", _counted("pixels per frame")),
}
FORMS = ", ".join(form.example for form in _FORMS.values())


@dataclass(frozen=True)
class SetSpecification:
    """A set without its clip: its text, the radius and the data domain.

    Attributes:
        text: the set in one of the forms above.
        epsilon: the radius in the unit of the data; the box is clipped to the domain.
        domain: the smallest and the largest value that a voxel may have.
        part: `(i, n)`: only part i (from 0) of the n parts that `divide` makes of the set; None: the whole set.
    """

    text: str
    epsilon: float
    domain: tuple[float, float] = (0.0, 1.0)
    part: tuple[int, int] | None = None

    def build(self, clip: Tensor) -> PerturbationSet:
        """Builds the set around `clip` (C, T, H, W), in float64.

        Raises:
            InputError: the text is unknown, the set does not fit the clip, or the clip lies outside the domain.
        """
        low, high = self.domain
        if not low < high:
            raise InputError(f"the data domain [{low}, {high}] is empty; give its smallest value first")
        if not self.epsilon >= 0:
            raise InputError(f"eps is {self.epsilon}; expected a radius of 0 or more, such as 4/255")
        if clip.dim() != 4:
            raise InputError(f"the clip has shape {tuple(clip.shape)}; expected (C, T, H, W)")
        clip = clip.to(torch.float64)
        if not bool(((clip >= low) & (clip <= high)).all()):
            raise InputError(
                f"the clip's values run from {float(clip.min())!r} to {float(clip.max())!r}, outside the data domain "
                f"[{low!r}, {high!r}]; scale the clip, or give a domain (--domain) that contains them"
            )
        voxels = (clip.shape[1], clip.shape[2], clip.shape[3])
        choice = parse_set(self.text, voxels)
        lower, upper = _around(clip, self.epsilon)
        whole = PerturbationSet(clip, lower.clamp(min=low), upper.clamp(max=high), choice)
        return whole if self.part is None else self._part(whole, *self.part)

    def _part(self, whole: PerturbationSet, index: int, count: int) -> PerturbationSet:
        parts = divide(whole, count)
        if len(parts) != count or not 0 <= index < count:
            raise InputError(f"part {index} of {count} of set {self.text!r} is asked for; it has {len(parts)} parts")
        return parts[index]


def _around(clip: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Computes `clip - epsilon` and `clip + epsilon`, rounded outwards, so that they enclose the real interval.

    The rounding error of a floating-point sum is itself a number and can be computed (Knuth's two-sum).
    """
    sides = []
    for step, outwards in ((-epsilon, -torch.inf), (epsilon, torch.inf)):
        side = clip + step
        part = side - clip
        left_out = (clip - (side - part)) + (step - part)
        short = left_out < 0 if step < 0 else left_out > 0
        sides.append(torch.where(short, torch.nextafter(side, torch.full_like(side, outwards)), side))
    return sides[0], sides[1]


@dataclass(frozen=True, eq=False)
class BoxSpecification:
    """The box of all clips between two given ones, without a given centre.

    Attributes:
        lower, upper: (C, T, H, W) float64, finite, `lower <= upper`.
    """

    lower: Tensor
    upper: Tensor
    text: ClassVar[str] = "box"

    def __post_init__(self) -> None:
        if not bool((self.lower <= self.upper).all()):
            raise InputError("the box is empty; for every voxel, the largest value must not be below the smallest")

    @property
    def epsilon(self) -> float:
        """Half of the longest side."""
        return float((self.upper - self.lower).max()) / 2

    @property
    def domain(self) -> tuple[float, float]:
        """The smallest and the largest value in the box."""
        return float(self.lower.min()), float(self.upper.max())

    def centre(self) -> Tensor:
        """Returns the middle (C, T, H, W) of the widened box, moved to float32 values inside it, in float64."""
        lower, upper = self.widened()
        middle = (lower + (upper - lower) / 2).to(torch.float32)
        infinity = torch.full_like(middle, torch.inf)
        down = torch.where(middle > upper, torch.nextafter(middle, -infinity), middle)
        return torch.where(down < lower, torch.nextafter(down, infinity), down).to(torch.float64)

    def contains(self, clip: Tensor) -> bool:
        """Is `clip` (C, T, H, W) exactly in the box as it was given?"""
        return bool(((clip >= self.lower) & (clip <= self.upper)).all())

    def widened(self) -> tuple[Tensor, Tensor]:
        """Returns the box, extended by the nearest float32 values of its sides, which a model may be given."""
        lower, upper = (side.to(torch.float32).to(torch.float64) for side in (self.lower, self.upper))
        return torch.minimum(self.lower, lower), torch.maximum(self.upper, upper)

    def build(self, clip: Tensor) -> PerturbationSet:
        """Builds the widened box around `clip` (C, T, H, W).

        Programs that evaluate a property written in decimals round them to float32. A proof therefore covers the box
        and its rounded version, and a counterexample may lie on a rounded side.

        Raises:
            InputError: the clip has another shape, or it lies outside the box.
        """
        if clip.shape != self.lower.shape:
            raise InputError(
                f"the clip has shape {tuple(clip.shape)}, but the box {tuple(self.lower.shape)}; give them one shape"
            )
        voxels = (clip.shape[1], clip.shape[2], clip.shape[3])
        return PerturbationSet(clip.to(torch.float64), *self.widened(), Patch.of(voxels, voxels))


def parse_set(text: str, voxels: Voxels) -> Choice:
    """Returns the choice that `text` names, over a clip of `(T, H, W)` voxels.

    Raises:
        InputError: the text has none of the known forms, or the set does not fit the clip.
    """
    form = _FORMS.get(text.partition(":")[0])
    if form is None:
        raise InputError(f"unknown set {text!r}; expected one of: {FORMS}")
    if not re.fullmatch(form.pattern, text):
        raise InputError(f"set {text!r} is not understood; write it as in {form.example}")
    return form.build([int(n) for n in re.findall(r"\d+", text)], voxels, text)
