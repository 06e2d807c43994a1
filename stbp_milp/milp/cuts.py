"""The ideal formulation of one neuron, as cuts.

For a neuron `y = max(w v + d, 0)` with v in the box [L, U] and binary b, the convex hull of its points is described by
one inequality per subset I of its inputs (Anderson, Huchette, Ma, Tjandraatmadja, Vielma 2020, Proposition 12):

    y <= sum_{i in I} w_i (v_i - low_i (1 - b)) + (d + sum_{i not in I} w_i high_i) b,

with `low_i = L_i, high_i = U_i` if `w_i >= 0` and swapped otherwise. The most violated inequality takes the smaller of
its two terms for every input, so separation is linear in the number of inputs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from solvers import LinearRelaxation, MixedIntegerProgram
from stbp_milp.milp.encode import Encoded

_VIOLATION = 1e-4  # a cut less violated than this, relative to 1 + |y|, is not worth its row
_BINDING = 1e-6  # a cut with less room than this at an optimum binds
_ROUNDING = 1e-9  # cuts are relaxed by this much, relative to the magnitude of their terms


def cut_rounds(encoded: Encoded, rounds: int, seconds: float) -> Iterator[tuple[float, Encoded]]:
    """Yields a proved lower bound of the margin and the program, before the first round of cuts and after every one.

    The bound is that of the relaxation, from its duals. The program keeps only cuts that bind at the optimum: the
    others cost time at every node of a search and change nothing here. The rounds end when no cut is violated, or when
    the solver has no point (out of time, or after a failure), because it is then unknown which cuts to add or to keep.
    """
    deadline = time.monotonic() + seconds
    own = encoded.program.rows.shape[0]
    for done in range(rounds + 1):
        left = deadline - time.monotonic()
        if left <= 0 or not encoded.program.variables or encoded.empty:
            return
        relaxation = LinearRelaxation(encoded.program)
        lower = relaxation.minimum(encoded.program.cost, left) + encoded.program.offset
        point = relaxation.point()
        if point is None:
            yield lower, encoded
            return
        encoded = replace(encoded, program=_binding(encoded.program, point, own))
        yield lower, encoded
        if done == rounds or not encoded.program.binaries:
            return
        rows, sides = ideal_cuts(encoded, point)
        if not sides.size:
            return
        encoded = replace(encoded, program=_with_rows(encoded.program, rows, sides))


def ideal_cuts(encoded: Encoded, point: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
    """Returns every unstable neuron's most violated inequality at `point` `(columns,)`, if any: `rows @ x <= sides`."""
    rows: list[sp.csr_matrix] = []
    sides: list[np.ndarray] = []
    for neurons in encoded.neurons:
        unstable = np.flatnonzero(neurons.binary >= 0)
        if not unstable.size:
            continue
        columns = (
            neurons.definition[unstable],
            neurons.pre[unstable],
            neurons.post[unstable],
            neurons.binary[unstable],
        )
        matrix, side = _separate(encoded.program, point, *columns)
        rows.append(matrix)
        sides.append(side)
    none = sp.csr_matrix((0, encoded.program.variables))
    return sp.vstack([none, *rows], format="csr"), np.concatenate([np.zeros(0), *sides])


def _separate(
    program: MixedIntegerProgram,
    point: np.ndarray,
    definition: np.ndarray,
    pre: np.ndarray,
    post: np.ndarray,
    binary: np.ndarray,
) -> tuple[sp.csr_matrix, np.ndarray]:
    count = definition.size
    defining = program.rows[definition].tocoo()
    own = defining.col == pre[defining.row]
    neuron, column, weight = defining.row[~own], defining.col[~own], defining.data[~own]
    bias = -program.row_lower[definition]  # the row reads `w v - z = -d`
    lower, upper = program.lower[column], program.upper[column]
    low, high = weight * np.where(weight >= 0, lower, upper), weight * np.where(weight >= 0, upper, lower)
    b, y = point[binary], point[post]
    inside, outside = weight * point[column] - low * (1 - b[neuron]), high * b[neuron]
    chosen = inside < outside

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(neuron, weights=values, minlength=count)

    limit = total(np.where(chosen, inside, outside)) + bias * b
    violated = y - limit > _VIOLATION * (1 + np.abs(y))
    # y - sum_I w v - (sum_I low + d + sum_{not I} high) b <= -sum_I low
    in_chosen, not_chosen = total(np.where(chosen, low, 0.0)), total(np.where(chosen, 0.0, high))
    take = chosen & violated[neuron]
    each = np.arange(count)[violated]
    matrix = sp.csr_matrix(
        (
            np.concatenate([np.ones(each.size), -weight[take], -(in_chosen + bias + not_chosen)[violated]]),
            (
                np.concatenate([each, neuron[take], each]),
                np.concatenate([post[violated], column[take], binary[violated]]),
            ),
        ),
        shape=(count, program.variables),
    )
    magnitude = total(np.abs(low) + np.abs(high)) + np.abs(bias)
    return matrix[violated], (-in_chosen + _ROUNDING * (1 + magnitude))[violated]


def _binding(program: MixedIntegerProgram, point: np.ndarray, own: int) -> MixedIntegerProgram:
    """Removes the rows from `own` on that do not bind at the point."""
    keep = program.row_upper - program.rows @ point <= _BINDING
    keep[:own] = True
    return replace(
        program, rows=program.rows[keep], row_lower=program.row_lower[keep], row_upper=program.row_upper[keep]
    )


def _with_rows(program: MixedIntegerProgram, rows: sp.csr_matrix, upper: np.ndarray) -> MixedIntegerProgram:
    return replace(
        program,
        rows=sp.vstack([program.rows, rows], format="csr"),
        row_lower=np.concatenate([program.row_lower, np.full(upper.size, -np.inf)]),
        row_upper=np.concatenate([program.row_upper, upper]),
    )
