"""The perturbation set: a box for every voxel and a choice of the voxels that move.

With centre c, box [l, u] and a linear form a, voxel v gains `g_v = sum_channels max(a (u - c), a (l - c)) >= 0`, and

    support(a) = max over x in S of <a, x> = <a, c> + max over covers of sum_{v in cover} g_v,

exact for every form. Bounding methods know of a set only what `InputSet` offers.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from stbp_milp.errors import InputError
from stbp_milp.sets.choice import Choice
from stbp_milp.sets.patch import Patch


class InputSet(Protocol):
    """A batch of N sets of inputs, each with an exact support function."""

    @property
    def parts(self) -> int:
        """N, the number of sets."""

    @property
    def centre(self) -> Tensor:
        """The clean input, `(N or 1, *shape)`, which lies in every set of the batch."""

    def deviation(self, form: Tensor) -> Tensor:
        """Computes `max <form, x - centre> >= 0` per set, `(N, M, *shape) -> (N, M)`, differentiable in the form."""

    def maximiser(self, form: Tensor) -> Tensor:
        """Returns points that attain the support function, `(N, M, *shape)`."""

    def hull(self) -> tuple[Tensor, Tensor]:
        """Returns the smallest boxes around the sets, two `(N, *shape)`."""

    def select(self, index: Tensor) -> Self:
        """Selects the sets at `index` (int64 `(n,)`)."""

    def to(self, dtype: torch.dtype) -> Self:
        """Converts the sets to another floating-point type."""


@dataclass(frozen=True, eq=False)
class VoxelBox:
    """A batch of boxes around a centre: every input in `[lower, upper]` is in the set."""

    centre: Tensor  # (N, *shape)
    lower: Tensor
    upper: Tensor

    @property
    def parts(self) -> int:
        return self.centre.shape[0]

    def deviation(self, form: Tensor) -> Tensor:
        # max(a u, a l) = a (u + l) / 2 + |a| (u - l) / 2: two products instead of five passes over the form
        middle, radius = (self.upper + self.lower) / 2 - self.centre, (self.upper - self.lower) / 2
        return inner(form, middle) + inner(form.abs(), radius)

    def maximiser(self, form: Tensor) -> Tensor:
        return self.centre.unsqueeze(1) + _move(form, self.centre, self.lower, self.upper)

    def hull(self) -> tuple[Tensor, Tensor]:
        return self.lower, self.upper

    def split(self, form: Tensor) -> tuple[Self, Tensor]:
        """Halves every box along the input that matters most to its form `(N, *shape)`: the form times the width.

        Returns 2 N boxes, and the parent of each, `(2 N,)`; a box of a single point becomes two equal ones.
        """
        width = (self.upper - self.lower).flatten(1)
        # The width decides where the form is zero.
        weight = width * (form.flatten(1).abs() + 1e-9 * form.abs().amax() + torch.finfo(width.dtype).tiny)
        at = weight.argmax(1, keepdim=True)
        lower, upper = self.lower.flatten(1), self.upper.flatten(1)
        middle = (lower.gather(1, at) + upper.gather(1, at)) / 2
        sides = torch.cat([lower, lower.scatter(1, at, middle)]), torch.cat([upper.scatter(1, at, middle), upper])
        parents = torch.arange(self.parts, device=self.centre.device).repeat(2)
        lower, upper = (side.view(2 * self.parts, *self.lower.shape[1:]) for side in sides)
        return replace(self, centre=self.centre[parents], lower=lower, upper=upper), parents

    def select(self, index: Tensor) -> Self:
        return replace(self, centre=self.centre[index], lower=self.lower[index], upper=self.upper[index])

    def to(self, dtype: torch.dtype) -> Self:
        return replace(self, centre=self.centre.to(dtype), lower=self.lower.to(dtype), upper=self.upper.to(dtype))


@dataclass(frozen=True, eq=False)
class PerturbationSet:
    """All clips that differ from `clip` only on one cover of the choice, with every voxel inside its box.

    Attributes:
        clip: the clean clip `(C, T, H, W)`, values in the data domain.
        lower, upper: the box `(C, T, H, W)`, `lower <= clip <= upper`.
        choice: the N parts, all over the same clip and box.
    """

    clip: Tensor
    lower: Tensor
    upper: Tensor
    choice: Choice

    def __post_init__(self) -> None:
        if self.clip.dim() != 4 or self.clip.shape[1:] != self.choice.voxels:
            raise InputError(
                f"a clip of shape {tuple(self.clip.shape)} does not fit a choice over {self.choice.voxels} voxels; "
                f"expected (C, T, H, W)"
            )
        if not bool(((self.lower <= self.clip) & (self.clip <= self.upper)).all()):
            raise InputError("the clean clip lies outside its own perturbation box; check the data domain")

    def _derived(self, **changes: Any) -> Self:
        """Returns a copy with changes that keep clip and box consistent, so nothing is checked again."""
        made = copy(self)
        for name, value in changes.items():
            object.__setattr__(made, name, value)
        return made

    @property
    def parts(self) -> int:
        return self.choice.parts

    @property
    def centre(self) -> Tensor:
        return self.clip.unsqueeze(0)

    def deviation(self, form: Tensor) -> Tensor:
        return self.choice.total(_gain(form, self.clip, self.lower, self.upper).sum(2))

    def maximiser(self, form: Tensor) -> Tensor:
        _, cover = self.choice.best(_gain(form, self.clip, self.lower, self.upper).sum(2))
        return self.clip + _move(form, self.clip, self.lower, self.upper) * cover.unsqueeze(2)

    def hull(self) -> tuple[Tensor, Tensor]:
        moves = self.choice.union().unsqueeze(1)
        return torch.where(moves, self.lower, self.clip), torch.where(moves, self.upper, self.clip)

    def select(self, index: Tensor) -> Self:
        return self._derived(choice=self.choice.select(index))

    def to(self, target: torch.dtype | torch.device) -> Self:
        choice = _moved(self.choice, target) if isinstance(target, torch.device) else self.choice
        clip, lower, upper = (x.to(target) for x in (self.clip, self.lower, self.upper))
        return self._derived(clip=clip, lower=lower, upper=upper, choice=choice)

    def contains(self, clips: Tensor) -> Tensor:
        """Tells which clips are in part 0, `(B, C, T, H, W) -> (B,)` bool, by exact comparison without a tolerance.

        Some cover holds every changed voxel exactly if the best cover of the changed voxels counts them all.
        """
        inside = ((clips >= self.lower) & (clips <= self.upper)).flatten(1).all(1)
        changed = (clips != self.clip).any(1).to(self.clip.dtype)  # (B, T, H, W)
        covered = self.choice.select(torch.tensor([0], device=self.clip.device)).total(changed.unsqueeze(0)).squeeze(0)
        return inside & (covered == changed.flatten(1).sum(1))

    def nearest(self, clips: Tensor) -> Tensor:
        """Projects clips `(B, C, T, H, W)` onto part 0: onto the box, and onto the cover with the most change."""
        inside = clips.clamp(self.lower, self.upper)
        one = self.choice.select(torch.tensor([0], device=self.clip.device))
        _, cover = one.best((inside - self.clip).abs().sum(1).unsqueeze(0))
        return torch.where(cover.squeeze(0).unsqueeze(1), inside, self.clip)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws random clips of part 0, `(count, C, T, H, W)`: random members, about half of them box corners."""

        def random(*shape: int) -> Tensor:  # drawn on the generator's device, so that all devices get the same numbers
            return torch.rand(shape, generator=generator, dtype=self.clip.dtype).to(self.clip.device)

        gain = random(1, count, *self.clip.shape[1:])
        _, cover = self.choice.select(torch.tensor([0], device=self.clip.device)).best(gain)
        position = random(count, *self.clip.shape)
        corner = torch.rand((count, 1, 1, 1, 1), generator=generator).to(self.clip.device) < 0.5
        value = self.lower + torch.where(corner, position.round(), position) * (self.upper - self.lower)
        return torch.where(cover.squeeze(0).unsqueeze(1), value, self.clip).clamp(self.lower, self.upper)

    def singletons(self) -> PerturbationSet:
        """Returns every member of every part as a part of its own; for sets with few members, or of patches."""
        if isinstance(self.choice, Patch):
            return self._derived(choice=self.choice.singletons())
        alone: PerturbationSet = self
        while bool((alone.choice.members() > 1).any()):
            done = alone.select((alone.choice.members() <= 1).nonzero().flatten())
            level = self.clip.new_zeros(alone.parts, *self.clip.shape)
            alone = concatenate([done, alone.split(level)[0]])
        return alone

    def split(self, form: Tensor) -> tuple[Self, Tensor]:
        """Splits every part with several members, guided by forms `(N, C, T, H, W)`; returns children and parents."""
        gain = _gain(form.unsqueeze(1), self.clip, self.lower, self.upper).sum(2).squeeze(1)
        children, parents = self.choice.split(gain)
        return self._derived(choice=children), parents


S = TypeVar("S", VoxelBox, PerturbationSet)


def concatenate(sets: Sequence[S]) -> S:
    """Joins sets of one kind into one batch; perturbation sets must share their clip and box."""
    first: Any = sets[0]
    if isinstance(first, PerturbationSet):
        choices = [s.choice for s in sets if isinstance(s, PerturbationSet)]
        first = first._derived(choice=_concatenated(choices))
    else:
        first = _concatenated(sets)
    joined: S = first
    return joined


def _concatenated(items: Sequence[Any]) -> Any:
    """Concatenates frozen dataclasses whose tensors all have the batch axis first."""
    joined = {name: torch.cat([getattr(item, name) for item in items]) for name in _tensor_names(items[0])}
    return replace(items[0], **joined)


def _moved(item: Any, device: torch.device) -> Any:
    """Returns a frozen dataclass with its tensors on another device."""
    return replace(item, **{name: getattr(item, name).to(device) for name in _tensor_names(item)})


def _tensor_names(item: Any) -> list[str]:
    return [f.name for f in fields(item) if isinstance(getattr(item, f.name), Tensor)]


def support(inputs: InputSet, form: Tensor) -> Tensor:
    """Computes `max <form, x>` over each set, `(N, M, *shape) -> (N, M)`."""
    return inner(form, inputs.centre) + inputs.deviation(form)


def inner(form: Tensor, centre: Tensor) -> Tensor:
    """Computes `<form, centre>` for `(N, M, *shape)` and `(N or 1, *shape)`."""
    return (form.flatten(2) @ centre.flatten(1).unsqueeze(-1)).squeeze(-1)


def _gain(form: Tensor, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Computes `max(a (u - c), a (l - c))` for forms a `(N, M, *shape)` and boxes `(N, *shape)` or `(*shape)`."""
    batched = centre.dim() == form.dim() - 1
    up, down = upper - centre, centre - lower
    if batched:
        up, down = up.unsqueeze(1), down.unsqueeze(1)
    return torch.maximum(form * up, -form * down)


def _move(form: Tensor, centre: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Returns the change of every voxel that attains its gain; a voxel without influence stays."""
    up, down = upper - centre, lower - centre
    if centre.dim() == form.dim() - 1:
        up, down = up.unsqueeze(1), down.unsqueeze(1)
    return torch.where(form > 0, up, torch.where(form < 0, down, torch.zeros_like(up)))
