"""The data of a bound: a problem with what is known of its ReLUs, and the forms to be bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stbp_milp.bounds.problem import Preactivations, Problem, select_preactivations

Phases = Mapping[int, Tensor]
"""Which neurons are split, per nonlinear node; `(N, *shape)`, dtype of the bounds, 0 for neurons that are not.

For ReLUs, +1 stands for active and -1 for inactive. For other layers, 1 says that the bounds of the operand come from
splits, so they hold only on the subproblem, and multipliers use them.
"""


@dataclass(frozen=True, eq=False)
class Bounded:
    """A problem, and what is known of its ReLUs.

    Attributes:
        bounds: bounds of all pre-activations.
        phases: the phases that splits have fixed, for layers that have any.
    """

    problem: Problem
    bounds: Preactivations
    phases: Phases = field(default_factory=dict)

    def select(self, items: Tensor) -> Bounded:
        """Selects items, in this order; an item may occur several times."""
        phases = {relu: own[items] for relu, own in self.phases.items()}
        return Bounded(self.problem.select(items), select_preactivations(self.bounds, items), phases)

    def single(self) -> Bounded:
        """Converts to float32, as a guide for the search: rounding is not counted."""
        bounds = {relu: own.to(torch.float32) for relu, own in self.bounds.items()}
        phases = {relu: own.to(torch.float32) for relu, own in self.phases.items()}
        return Bounded(self.problem.single(), bounds, phases)


@dataclass(frozen=True, eq=False)
class Forms:
    """M affine forms `rows @ output + offset` on a network's output.

    Attributes:
        rows: `(M, K)` for all N items alike, or `(N, M, K)`.
        offset: `(M,)`, or `(N, M)`.
    """

    rows: Tensor
    offset: Tensor

    @property
    def count(self) -> int:
        """M, the number of forms per item."""
        return self.rows.shape[-2]

    def each(self, items: int) -> Forms:
        """Writes out the axis N."""
        return Forms(self.rows.expand(items, *self.rows.shape[-2:]), self.offset.expand(items, self.offset.shape[-1]))

    def select(self, items: Tensor) -> Forms:
        """Selects items; N must be written out."""
        return Forms(self.rows[items], self.offset[items])

    def columns(self, at: Tensor) -> Forms:
        """Selects some of the M forms of every item; N must be written out."""
        return Forms(self.rows[:, at], self.offset[:, at])

    def to(self, dtype: torch.dtype) -> Forms:
        return Forms(self.rows.to(dtype), self.offset.to(dtype))
