"""The form in which every backend receives a problem: a linear program with some binary variables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp


@dataclass(frozen=True, eq=False)
class MixedIntegerProgram:
    """Minimise `cost @ x + offset` subject to `row_lower <= rows @ x <= row_upper` and `lower <= x <= upper`.

    Variables with `integer[j]` are binaries, whose bounds lie within [0, 1]. A missing side of a row or a variable is
    an infinity.

    Raises:
        ValueError: the arrays do not fit together, a number is NaN, or an integer variable is not binary.
    """

    cost: np.ndarray  # (n,)
    rows: sp.csr_matrix  # (m, n)
    row_lower: np.ndarray  # (m,)
    row_upper: np.ndarray  # (m,)
    lower: np.ndarray  # (n,)
    upper: np.ndarray  # (n,)
    integer: np.ndarray  # (n,) bool
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.rows.format != "csr":
            raise ValueError(f"rows arrived as a {self.rows.format} matrix; expected CSR, call .tocsr() first")
        m, n = self.rows.shape
        expected = {"cost": n, "lower": n, "upper": n, "integer": n, "row_lower": m, "row_upper": m}
        for name, length in expected.items():
            shape = getattr(self, name).shape
            if shape != (length,):
                raise ValueError(f"{name} has shape {shape}; expected ({length},), because rows has shape {(m, n)}")
        if self.integer.dtype != np.bool_:
            raise ValueError(f"integer has dtype {self.integer.dtype}; expected bool, one flag per variable")
        if not np.isfinite(self.cost).all() or not np.isfinite(self.rows.data).all() or not np.isfinite(self.offset):
            raise ValueError("cost, rows and offset must be finite; an infinity or NaN arrived")
        if any(np.isnan(side).any() for side in (self.lower, self.upper, self.row_lower, self.row_upper)):
            raise ValueError("a bound is NaN; leave a side open with an infinity instead")
        if (self.lower[self.integer] < 0).any() or (self.upper[self.integer] > 1).any():
            raise ValueError("an integer variable has bounds outside [0, 1]; only binaries are supported")

    @property
    def variables(self) -> int:
        return int(self.rows.shape[1])

    @property
    def binaries(self) -> int:
        return int(self.integer.sum())

    def objective(self, point: np.ndarray) -> float:
        """Computes `cost @ point + offset`."""
        return float(self.cost @ point + self.offset)

    def violation(self, point: np.ndarray) -> float:
        """Returns the largest amount by which `point` violates a row, a bound or integrality (0 if it is feasible)."""
        activity = self.rows @ point
        sides = (self.row_lower - activity, activity - self.row_upper, self.lower - point, point - self.upper)
        whole = np.abs(point - np.round(point))[self.integer]
        return max([0.0, *(float(part.max()) for part in (*sides, whole) if part.size)])
