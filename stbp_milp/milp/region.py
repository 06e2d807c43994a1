"""The set of inputs in the form that a program needs: a flat box, and the choice of a set with several members."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stbp_milp.sets.choice import ChoiceProgram
from stbp_milp.sets.perturbation import InputSet, PerturbationSet


@dataclass(frozen=True, eq=False)
class InputRegion:
    """Inputs with `lower <= x <= upper`; with a choice, also `x_i = centre_i` if the chosen cover does not contain i.

    The box is the hull of the set, so an input entry that no member moves has width zero.
    """

    shape: tuple[int, ...]
    centre: np.ndarray  # (size,) float64
    lower: np.ndarray
    upper: np.ndarray
    choice: ChoiceProgram | None  # None: every entry moves on its own

    @property
    def channels(self) -> int:
        """The number of entries per voxel: a cover is the same in every channel."""
        return 1 if self.choice is None else self.centre.size // int(self.choice.cover.shape[0])

    @classmethod
    def of(cls, inputs: InputSet, part: int = 0) -> InputRegion:
        """Makes the region of part `part` of a set; a part with one member is a box, whose choice needs no binaries."""
        one = inputs.select(torch.tensor([part], device=inputs.centre.device))
        lower, upper = one.hull()
        choice = None
        if isinstance(inputs, PerturbationSet) and float(inputs.choice.members()[part]) != 1.0:
            choice = inputs.choice.program(part)
        centre = one.centre[0]
        return cls(tuple(centre.shape), _flat(centre), _flat(lower[0]), _flat(upper[0]), choice)


def _flat(values: torch.Tensor) -> np.ndarray:
    return values.detach().to("cpu", torch.float64).reshape(-1).numpy()
