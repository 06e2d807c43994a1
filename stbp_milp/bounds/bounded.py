"""What travels through the bounds: a problem with all that is known of its ReLUs, and the forms that are bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stbp_milp.bounds.problem import Preactivations, Problem, select_preactivations

Phases = Mapping[int, Tensor]
"""By ReLU node: +1 where a split made the neuron active, -1 inactive, 0 undecided; `(N, *shape)`, the bounds' dtype."""


@dataclass(frozen=True, eq=False)
class Bounded:
    """A problem, and what is known of its ReLUs.

    Attributes:
        bounds: of the operands of all ReLUs.
        phases: of those that splits have fixed; only layers that have any.
    """

    problem: Problem
    bounds: Preactivations
    phases: Phases = field(default_factory=dict)

    def select(self, items: Tensor) -> Bounded:
        """Those of some items, in this order; an item may come several times."""
        phases = {relu: own[items] for relu, own in self.phases.items()}
        return Bounded(self.problem.select(items), select_preactivations(self.bounds, items), phases)

    def single(self) -> Bounded:
        """The same in float32, a guide that counts no rounding."""
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
        """M, the forms of an item."""
        return self.rows.shape[-2]

    def each(self, items: int) -> Forms:
        """The same with N written out."""
        return Forms(self.rows.expand(items, *self.rows.shape[-2:]), self.offset.expand(items, self.offset.shape[-1]))

    def select(self, items: Tensor) -> Forms:
        """Those of some items, where N is written out."""
        return Forms(self.rows[items], self.offset[items])

    def columns(self, at: Tensor) -> Forms:
        """Some of the M forms of every item, where N is written out."""
        return Forms(self.rows[:, at], self.offset[:, at])

    def to(self, dtype: torch.dtype) -> Forms:
        return Forms(self.rows.to(dtype), self.offset.to(dtype))
