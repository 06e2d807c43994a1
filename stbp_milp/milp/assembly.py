"""A program under construction: columns with their boxes, rows, and affine expressions over the columns so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from solvers import MixedIntegerProgram


@dataclass(frozen=True, eq=False)
class Affine:
    """The expressions `matrix @ columns + constant`, one per row; columns added later do not occur in them.

    Attributes:
        size: the sum of the magnitudes of the terms of which an expression was composed, before cancellation.
        error: a bound of the difference to the value that it stands for, at the columns' true values.
    """

    matrix: sp.csr_matrix  # (n, number of columns when it was made)
    constant: np.ndarray  # (n,)
    size: np.ndarray  # (n,)
    error: np.ndarray  # (n,)

    @classmethod
    def exact(cls, matrix: sp.csr_matrix, constant: np.ndarray) -> Affine:
        """Makes an expression without an error: it relates columns by definition, not by the network's numbers."""
        none = np.zeros(constant.size)
        return cls(matrix, constant, none, none)

    def select(self, index: np.ndarray) -> Affine:
        return Affine(self.matrix[index], self.constant[index], self.size[index], self.error[index])

    def beside(self, matrix: sp.csr_matrix) -> Affine:
        """Returns the expressions with another matrix, to which columns were added."""
        return Affine(matrix, self.constant, self.size, self.error)


class Assembly:
    """Collects columns and rows; `program` closes it. Mutable, and private to one encoding."""

    def __init__(self) -> None:
        self.columns = 0
        self.largest_error = 0.0  # over the rows so far
        self._rows = 0
        self._boxes: list[tuple[np.ndarray, np.ndarray, bool]] = []
        self._blocks: list[tuple[sp.csr_matrix, np.ndarray, np.ndarray]] = []

    def add_columns(self, lower: np.ndarray, upper: np.ndarray, integer: bool = False) -> np.ndarray:
        """Adds columns with these boxes and returns their positions."""
        first, self.columns = self.columns, self.columns + lower.size
        self._boxes.append((lower, upper, integer))
        return np.arange(first, self.columns)

    def add_rows(self, affine: Affine, lower: float | np.ndarray, upper: float | np.ndarray) -> np.ndarray:
        """Adds rows `lower <= affine <= upper`, widened by the expression's error, and returns their positions."""
        count = affine.constant.size
        sides = [
            np.broadcast_to(np.asarray(side, dtype=float), count) - affine.constant + sign * affine.error
            for side, sign in ((lower, -1.0), (upper, 1.0))
        ]
        self.largest_error = max(self.largest_error, float(affine.error.max(initial=0.0)))
        first, self._rows = self._rows, self._rows + count
        self._blocks.append((affine.matrix, sides[0], sides[1]))
        return np.arange(first, self._rows)

    def terms(self, *parts: tuple[np.ndarray, np.ndarray | float]) -> sp.csr_matrix:
        """Returns one row per entry: row i is `sum over parts of coefficient_i * columns[i]`."""
        count = parts[0][0].size
        rows = np.tile(np.arange(count), len(parts))
        columns = np.concatenate([columns for columns, _ in parts])
        values = np.concatenate([np.broadcast_to(coefficient, count) for _, coefficient in parts])
        return sp.csr_matrix((values, (rows, columns)), shape=(count, self.columns))

    def widened(self, matrix: sp.csr_matrix) -> sp.csr_matrix:
        """Extends rows to all columns so far."""
        return sp.csr_matrix((matrix.data, matrix.indices, matrix.indptr), shape=(matrix.shape[0], self.columns))

    def sum(self, *parts: sp.csr_matrix) -> sp.csr_matrix:
        """Adds matrices that were made at different times."""
        total = self.widened(parts[0])
        for part in parts[1:]:
            total = total + self.widened(part)
        return total.tocsr()

    def interval(self, affine: Affine) -> tuple[np.ndarray, np.ndarray]:
        """Bounds the values that the expressions stand for over the columns' boxes, including rounding.

        A sum of terms that are all zero has no rounding error, so `-relu(..)` keeps the upper bound 0.
        """
        lower, upper = self._box()
        matrix = self.widened(affine.matrix)
        positive, negative = matrix.maximum(0), matrix.minimum(0)
        terms = np.diff(matrix.indptr) + 2
        rounding = np.finfo(np.float64).eps * terms
        smallest = positive @ lower + negative @ upper + affine.constant
        largest = positive @ upper + negative @ lower + affine.constant
        below = positive @ np.abs(lower) - negative @ np.abs(upper) + np.abs(affine.constant)
        above = positive @ np.abs(upper) - negative @ np.abs(lower) + np.abs(affine.constant)
        return smallest - rounding * below - affine.error, largest + rounding * above + affine.error

    def reach(self) -> np.ndarray:
        """Returns the largest magnitude of every column, `(columns,)`."""
        lower, upper = self._box()
        reach: np.ndarray = np.maximum(-lower, upper)
        return reach

    def program(self, cost: np.ndarray, offset: float) -> MixedIntegerProgram:
        lower, upper = self._box()
        integer = np.concatenate([np.zeros(0, dtype=bool), *(np.full(low.size, kind) for low, _, kind in self._boxes)])
        empty = sp.csr_matrix((0, self.columns))
        rows = sp.vstack([empty, *(self.widened(matrix) for matrix, _, _ in self._blocks)], format="csr")
        none = np.zeros(0)
        return MixedIntegerProgram(
            cost,
            rows,
            np.concatenate([none, *(low for _, low, _ in self._blocks)]),
            np.concatenate([none, *(high for _, _, high in self._blocks)]),
            lower,
            upper,
            integer,
            offset,
        )

    def _box(self) -> tuple[np.ndarray, np.ndarray]:
        none = np.zeros(0)
        lower = np.concatenate([none, *(low for low, _, _ in self._boxes)])
        upper = np.concatenate([none, *(high for _, high, _ in self._boxes)])
        return lower, upper
