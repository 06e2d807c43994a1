"""A clean clip beside an attacked one: what changed, where the attacker acted, and how the model classifies both.

The *cover* is the set of voxels that the attacker chose; it holds every changed voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stbp_milp.errors import SoundnessError
from stbp_milp.query import Query
from stbp_milp.sets import BoxSpecification, SetSpecification
from stbp_milp.verdict import Counterexample

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A clean clip and an attacked one, ready to be drawn.

    Attributes:
        clean, attacked: (C, T, H, W) float, in the data domain.
        cover: (T, H, W) bool, the voxels that the attacker chose.
        domain: the values drawn as black and white.
        title: the question in short.
        clean_says, attacked_says: the model's answers, one or two lines each.
    """

    clean: Array
    attacked: Array
    cover: Array
    domain: tuple[float, float]
    title: str
    clean_says: str
    attacked_says: str

    @property
    def frames(self) -> int:
        return int(self.clean.shape[1])

    @property
    def change(self) -> float:
        """The largest change of a voxel."""
        return float(np.abs(self.attacked - self.clean).max())


def compare(query: Query, counterexample: Counterexample, clean_outputs: Sequence[float]) -> Comparison:
    """Compares the counterexample with the query's clip, and finds the cover that holds every changed voxel.

    Raises:
        SoundnessError: no cover of the set holds all changed voxels.
    """
    attacked = counterexample.clip.to(torch.float64)
    cover = chosen_cover(query.set, query.clip, attacked)
    if cover is None:
        raise SoundnessError(f"the counterexample of {counterexample.stage!r} lies outside the set {query.set.text!r}")
    return Comparison(
        clean=query.clip.numpy(),
        attacked=attacked.numpy(),
        cover=cover.numpy(),
        domain=query.set.domain,
        title=f"{query.model.name}   {query.set.text}   eps {as_fraction(query.set.epsilon)}",
        clean_says=answer(query, clean_outputs),
        attacked_says=answer(query, counterexample.outputs),
    )


def chosen_cover(specification: SetSpecification | BoxSpecification, clean: Tensor, attacked: Tensor) -> Tensor | None:
    """Returns the voxels (T, H, W) that the attacker of `clean` (C, T, H, W) chose; None if no cover explains them."""
    change = (attacked - clean).abs().sum(0)
    cover = specification.build(clean).choice.best(change[None, None])[1][0, 0] & bool(change.any())
    return None if bool((change[~cover] > 0).any()) else cover


def answer(query: Query, outputs: Sequence[float]) -> str:
    """Describes the model's `outputs` (K,): the class and its score, or the numbers of a regression."""
    return says(query.property.text, outputs)


def says(property_text: str, outputs: Sequence[float]) -> str:
    """Does what `answer` does, given only the text of the property."""
    if property_text.startswith("class") and outputs:
        best = int(np.argmax(outputs))
        return f"class {best}, score {outputs[best]:.4g}"
    return "output " + ", ".join(f"{value:.4g}" for value in outputs[:3]) + (", ..." if len(outputs) > 3 else "")


def as_fraction(epsilon: float) -> str:
    """Formats a radius as people write it: "4/255" or "0.03"."""
    return _levels(epsilon, 1e-9) or f"{epsilon:.12g}"


def rounded(change: float) -> str:
    """Formats a number that float32 has rounded, like `as_fraction`."""
    return _levels(change, 1e-4) or f"{change:.3g}"


def _levels(value: float, tolerance: float) -> str | None:
    """Returns "n/255" if the value is that within the tolerance and the text is shorter than its digits, else None."""
    levels = value * 255
    whole = round(levels)
    fits = 0 < whole < 255 and abs(levels - whole) < tolerance
    return f"{whole}/255" if fits and len(f"{value:.6g}") > 6 else None
