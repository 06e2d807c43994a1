"""Properties of a network's output: linear rows in conjunctive normal form.

The value of row r at output y is `rows[r] @ y + offset[r]`. A *clause* is a set of rows of which at least one must be
positive; the property holds at y if every clause holds. Its *margin* is `min over clauses of max over its rows`:
positive exactly when the property holds. Every bound in this package is a lower bound of rows or margins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from stbp_milp.errors import InputError

_CLAUSE_LIMIT = 5_000


@dataclass(frozen=True, eq=False)
class Property:
    """A property of outputs (K,).

    Attributes:
        rows: (M, K) float64.
        offset: (M,) float64.
        clauses: the row indices of every clause.
        text: the property in words.
    """

    rows: Tensor
    offset: Tensor
    clauses: tuple[tuple[int, ...], ...]
    text: str

    def margin(self, outputs: Tensor) -> Tensor:
        """Computes the margin of each output, `(B, K) -> (B,)`: positive exactly where the property holds."""
        values = outputs.to(self.rows) @ self.rows.T + self.offset
        return self.clause_bounds(values).amin(-1)

    def to(self, target: torch.dtype | torch.device) -> Property:
        """Returns the same property in another floating-point type or on another device."""
        return replace(self, rows=self.rows.to(target), offset=self.offset.to(target))

    def clause_bounds(self, row_bounds: Tensor) -> Tensor:
        """Turns lower bounds of the rows, `(..., M)`, into lower bounds of the clauses, `(..., clauses)`."""
        if all(len(clause) == 1 for clause in self.clauses):
            return row_bounds[..., [clause[0] for clause in self.clauses]]
        return torch.stack([row_bounds[..., list(clause)].amax(-1) for clause in self.clauses], -1)

    def forms(self) -> tuple[Tensor, Tensor]:
        """Returns one form per clause, its only row or the mean of its rows: `(clauses, K)` and `(clauses,)`.

        A clause holds wherever some convex combination of its rows is positive, so a lower bound of the mean is a lower
        bound of the clause.
        """
        weight = self.rows.new_zeros(len(self.clauses), self.rows.shape[0])
        for i, clause in enumerate(self.clauses):
            weight[i, list(clause)] = 1 / len(clause)
        return weight @ self.rows, weight @ self.offset


def same_class(label: int, classes: int) -> Property:
    """Returns the property that class `label` has a strictly larger score than every other class."""
    return top_k(label, 1, classes)


def top_k(label: int, k: int, classes: int) -> Property:
    """Returns the property that fewer than k other classes reach the score of class `label`.

    There is one clause per set of k other classes: not all of them may reach that score.

    Raises:
        InputError: label or k does not fit the number of classes, or there would be too many clauses.
    """
    if not 0 <= label < classes:
        raise InputError(f"label {label} is not one of the network's {classes} classes (0 to {classes - 1})")
    if not 1 <= k < classes:
        raise InputError(f"top-k with k = {k} says nothing about {classes} classes; give a k from 1 to {classes - 1}")
    if comb(classes - 1, k) > _CLAUSE_LIMIT:
        raise InputError(
            f"top-{k} of {classes} classes has {comb(classes - 1, k)} clauses, more than {_CLAUSE_LIMIT}; "
            "give a smaller k"
        )
    others = [c for c in range(classes) if c != label]
    rows = torch.zeros(classes - 1, classes, dtype=torch.float64)
    rows[:, label] = 1.0
    rows[range(classes - 1), others] = -1.0
    clauses = tuple(combinations(range(classes - 1), k))
    text = f"class {label} stays first" if k == 1 else f"class {label} stays among the first {k}"
    return Property(rows, torch.zeros(classes - 1, dtype=torch.float64), clauses, text)


def within_tolerance(reference: Tensor, tolerance: float) -> Property:
    """Returns the property that every output stays within +-tolerance (in the output's unit) of `reference` (K,).

    Raises:
        InputError: the tolerance is not positive and finite, or the reference is not finite.
    """
    if not 0 < tolerance < math.inf:
        raise InputError(
            f"the tolerance is {tolerance}; expected a positive, finite number in the unit of the network's output"
        )
    if not bool(reference.isfinite().all()):
        raise InputError(
            f"the clean output is {reference.tolist()}, but outputs can only be compared with finite numbers; "
            "check that the model computes finite numbers for this clip"
        )
    reference = reference.to(torch.float64)
    identity = torch.eye(reference.numel(), dtype=torch.float64)
    rows = torch.cat([identity, -identity])
    offset = torch.cat([tolerance - reference, tolerance + reference])
    clauses = tuple((r,) for r in range(rows.shape[0]))
    return Property(
        rows, offset, clauses, f"output stays within {tolerance:g} of {[round(v, 6) for v in reference.tolist()]}"
    )


def property_of(
    predict: Callable[[np.ndarray], np.ndarray], clip: Tensor, label: int | None, top: int, tolerance: float | None
) -> Property:
    """Returns the property that the user asks for: a tolerance (regression) or a class (by default the prediction).

    Raises:
        InputError: the options contradict each other or do not fit the model's outputs.
    """
    outputs = torch.from_numpy(predict(clip.to(torch.float32).numpy()[None])[0]).to(torch.float64)
    if tolerance is not None:
        if label is not None or top != 1:
            raise InputError(
                "a tolerance (regression) and a label or top-k (classification) were given together; give one of them"
            )
        return within_tolerance(outputs, tolerance)
    classes = outputs.numel()
    if classes == 1:
        raise InputError("the model has a single output (a regression); give the tolerance by which it may change")
    chosen = int(outputs.argmax()) if label is None else label
    return same_class(chosen, classes) if top == 1 else top_k(chosen, top, classes)
