"""The ideal relaxation of first-layer neurons over a box of inputs.

A neuron `y = max(z, 0)` with `z = z_c + sum_i t_i`, where the *terms* `t_i = w_i (x_i - c_i)` move independently in
`[low_i, high_i]`, lies below

    sum_i a_i t_i - sum_i a_i low_i + max(0, z_c + sum_i (a_i low_i + (1 - a_i) high_i))

for all *shares* `a` in [0, 1]^n: with a the indicator of a subset these are the inequalities of the ideal formulation
(Anderson, Huchette, Ma, Tjandraatmadja, Vielma 2020, Proposition 12) with its binary at the worst value, and every
other `a` is a convex combination of such. Together they describe the neuron's convex hull over the box; equal shares
`a_i = u / (u - l)` give the chord of the triangle, the best that depends on z alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from stbp_milp.bounds.interval import Interval, slope_range
from stbp_milp.network.graph import Network
from stbp_milp.network.normal_form import normal_form
from stbp_milp.sets import VoxelBox

_MOST_TERMS = 200_000  # of all neurons of a layer together; with more, a share per term costs too much


@dataclass(frozen=True, eq=False)
class IdealNeurons:
    """Neurons of one ReLU that are affine functions of the input, term by term, over N boxes.

    Attributes:
        neurons: flat positions of the neurons, `(U,)`.
        index: flat indices of the input entries that they read, `(U, K)`; padded.
        weight: the weights of those entries, `(U, K)`; padded with 0.
        low, high: the ranges of the terms, `(N or 1, U, K)`.
    """

    neurons: Tensor
    index: Tensor
    weight: Tensor
    low: Tensor
    high: Tensor

    @property
    def terms(self) -> int:
        return self.index.numel()

    def to(self, dtype: torch.dtype) -> IdealNeurons:
        weight, low, high = (x.to(dtype) for x in (self.weight, self.low, self.high))
        return IdealNeurons(self.neurons, self.index, weight, low, high)

    def rows(self, at: Tensor, neurons: Tensor) -> IdealNeurons:
        """Selects some of the neurons and gives them other positions."""
        return IdealNeurons(neurons, self.index[at], self.weight[at], self.low[:, at], self.high[:, at])

    def select(self, items: Tensor) -> IdealNeurons:
        """Selects the boxes at `items`; a single box is shared."""
        if self.low.shape[0] == 1:
            return self
        return replace(self, low=self.low[items], high=self.high[items])


def ideal_neurons(network: Network, box: VoxelBox, bounds: Mapping[int, Interval]) -> dict[int, IdealNeurons]:
    """Returns the unstable neurons of every ReLU that reads an affine function of the input (unstable in some item)."""
    depth = network.affine_depth()
    found = {}
    for relu in network.relus:
        interval, operand = bounds[relu], network.operand(relu)
        neurons = interval.undecided.flatten(1).any(0).nonzero().flatten()
        if not depth[operand] or not len(neurons):
            continue
        (affine,) = normal_form(network.part(operand))  # no ReLU below: other branches are left out
        rows = affine.weights[0][neurons.cpu().numpy()].tocsr()
        rows.sort_indices()
        widest = int(np.diff(rows.indptr).max(initial=1))
        if widest * len(neurons) > _MOST_TERMS:
            continue
        index, weight = _padded(rows, widest)
        index, weight = index.to(interval.lower.device), weight.to(interval.lower)
        down, up = ((side - box.centre).flatten(1)[:, index] * weight for side in (box.lower, box.upper))
        found[relu] = IdealNeurons(neurons, index, weight, torch.minimum(down, up), torch.maximum(down, up))
    return found


def _padded(rows: sp.csr_matrix, widest: int) -> tuple[Tensor, Tensor]:
    """Returns column indices and values of every row, `(rows, widest)`, padded with 0."""
    counts = np.diff(rows.indptr)
    index, weight = np.zeros((len(counts), widest), dtype=np.int64), np.zeros((len(counts), widest))
    row = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(rows.nnz) - rows.indptr[row]
    index[row, column], weight[row, column] = rows.indices, rows.data
    return torch.from_numpy(index), torch.from_numpy(weight)


def chord_shares(ideal: IdealNeurons, bounds: Interval) -> Tensor:
    """Returns the shares that give the triangle's chord, `(N, 1, U, K)`."""
    lower, upper = (x.flatten(1)[:, ideal.neurons] for x in (bounds.lower, bounds.upper))
    chord = upper / (upper - lower).clamp(min=1e-12)
    return chord.clamp(0.0, 1.0)[:, None, :, None].expand(-1, 1, *ideal.index.shape)


@dataclass(frozen=True, eq=False)
class PlaneTerms:
    """The part of the planes that does not depend on the shares.

    Attributes:
        ideal: the neurons.
        free: `z_c + sum_i high_i`, `(N, U)`.
        output: clean outputs, `(N or 1, U)`.
        least, most: the range of a neuron's shares, `(N, U)`: [0, 1], or only its own slope if it is decided.
        exact: the gap of decided neurons and where they are, `(N, U)` each; None if all are undecided.
    """

    ideal: IdealNeurons
    free: Tensor
    output: Tensor
    least: Tensor
    most: Tensor
    exact: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, ideal: IdealNeurons, bounds: Interval, clean: Tensor) -> PlaneTerms:
        """Computes the terms from the pre-activation's bounds, `(N, *shape)`, and clean value, `(N or 1, *shape)`."""
        at = ideal.neurons
        own = Interval(bounds.lower.flatten(1)[:, at], bounds.upper.flatten(1)[:, at])
        z, (least, most) = clean.flatten(1)[:, at], slope_range(own)
        decided = least == most
        exact = (least * z - z.clamp(min=0), decided) if bool(decided.any()) else None
        return cls(ideal, z + ideal.high.sum(-1), z.clamp(min=0), least, most, exact)

    def project(self, shares: Tensor) -> Tensor:
        """Projects shares `(N, M, U, K)` onto their range."""
        return shares.clamp(self.least[:, None, :, None], self.most[:, None, :, None])

    def gap(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the planes at the centre less the clean output, `(N, M, U)`, and where the binary is 1, bool."""
        ideal = self.ideal
        rest = self.free.unsqueeze(1) - (shares * (ideal.high - ideal.low).unsqueeze(1)).sum(-1)
        gap = rest.clamp(min=0) - (shares * ideal.low.unsqueeze(1)).sum(-1) - self.output.unsqueeze(1)
        if self.exact is not None:
            gap = torch.where(self.exact[1].unsqueeze(1), self.exact[0].unsqueeze(1), gap)
        return gap, rest > 0


@dataclass(frozen=True, eq=False)
class Planes:
    """Upper bounds of neurons by planes over the input; shares `(N, M or 1, U, K)`, in their range."""

    terms: PlaneTerms
    shares: Tensor


def through_planes(form: Tensor, own: Planes, input_shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Carries to the input the part of a form `(N, M, *shape)` on a ReLU's output that planes bound.

    Returns what is left of the form for the lines, the form on the input `(N, M, *input_shape)` and the constant.
    """
    flat, neurons = form.flatten(2), own.terms.ideal.neurons
    negative = flat[..., neurons].clamp(max=0)  # (N, M, U)
    rest = flat.index_add(2, neurons, -negative).view_as(form)
    onto, constant = _Carry.apply(negative, own.shares, own.terms, math.prod(input_shape))  # type: ignore[no-untyped-call]
    return rest, onto.view(*form.shape[:2], *input_shape), constant


class _Carry(torch.autograd.Function):
    """Maps forms on the neurons `(N, M, U)` to forms on the input `(N, M, size)` and constants `(N, M)`.

    The gradient is written out, because autograd would keep four tensors `(N, M, U, K)`.
    """

    @staticmethod
    def forward(ctx: Any, form: Tensor, shares: Tensor, terms: PlaneTerms, size: int) -> tuple[Tensor, Tensor]:
        gap, on = terms.gap(shares)
        ctx.save_for_backward(form, shares, gap, on)
        ctx.terms = terms
        moved = (form.unsqueeze(-1) * (shares * terms.ideal.weight)).flatten(2)
        onto = form.new_zeros(*form.shape[:2], size).index_add_(2, terms.ideal.index.flatten(), moved)
        return onto, (form * gap).sum(-1)

    @staticmethod
    def backward(ctx: Any, onto: Tensor, constant: Tensor) -> tuple[Tensor | None, ...]:
        form, shares, gap, on = ctx.saved_tensors
        ideal = ctx.terms.ideal
        back = onto.index_select(2, ideal.index.flatten()).view(*onto.shape[:2], *ideal.index.shape) * ideal.weight
        own = (shares * back).sum(-1) + constant.unsqueeze(-1) * gap
        side = torch.where(on.unsqueeze(-1), ideal.high.unsqueeze(1), ideal.low.unsqueeze(1))
        slope = form.unsqueeze(-1) * back.sub_(constant[..., None, None] * side)
        if shares.shape[1] < form.shape[1]:
            slope = slope.sum(1, keepdim=True)
        return own, slope, None, None
