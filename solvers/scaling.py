"""Scaling of programs to numbers of moderate size, because solvers keep rows and integrality to absolute tolerances.

A neuron with values in the millions, followed by a weight of a millionth, is a harmless network. A tolerance of 1e-6 on
its big-M rows, however, is then a tolerance of 1 on its value: dual bounds of SCIP and Gurobi were seen 0.5 above the
true minimum. Measuring every column in a power of two near its own magnitude removes that without any rounding.

A column whose box is narrow relative to its magnitude is measured from its lower end, in units of its width: HiGHS
takes a box narrower than its tolerance for a constant, drops coefficients below 1e-9, and was seen to prove bounds that
were too large by 1e-4. That shift rounds, so rows are widened and the objective is lowered by the rounding error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from solvers.program import MixedIntegerProgram

_MODERATE = 4.0  # columns and rows within 2^-4 .. 2^4 stay as they are
_NARROW = 2.0**-4  # boxes narrower than this share of their magnitude are measured from their lower end
_ROUNDING = 2.0**-50  # relative, of a few operations


@dataclass(frozen=True, eq=False)
class Scaled:
    """A program with `x = origin + unit * y`; up to rounding its minimum is that of the original, and never larger.

    Attributes:
        program: the program over y.
        unit: powers of two (n,), 1 for binaries and for columns without a finite box.
        origin: (n,), 0 except for narrow boxes.
    """

    program: MixedIntegerProgram
    unit: np.ndarray
    origin: np.ndarray

    def point(self, y: np.ndarray) -> np.ndarray:
        """Converts a point of this program to one of the original program."""
        return np.asarray(self.origin + self.unit * y)

    def start(self, x: np.ndarray) -> np.ndarray:
        """Converts a point of the original program to one of this program."""
        return np.asarray((x - self.origin) / self.unit)

    @property
    def weight(self) -> float:
        """The largest coefficient of the objective, in magnitude."""
        return float(np.abs(self.program.cost).max(initial=0.0))


def scaled(program: MixedIntegerProgram) -> Scaled:
    """Scales columns to units near their magnitude or width, and then rows likewise."""
    reach = np.maximum(np.abs(program.lower), np.abs(program.upper))
    boxed = np.isfinite(reach)
    width = np.where(boxed, program.upper, 0.0) - np.where(boxed, program.lower, 0.0)
    narrow = boxed & ~program.integer & (width > 0) & (width < _NARROW * reach)
    origin = np.where(narrow, program.lower, 0.0)
    unit = np.where(program.integer, 1.0, _power_of_two(np.where(narrow, width, reach)))
    shift, error = _products(program.rows, origin)
    offset, slip = (float(x[0]) for x in _products(sp.csr_matrix(program.cost[None]), origin))
    less = slip + _ROUNDING * abs(program.offset) if slip > 0 else 0.0
    rows = sp.csr_matrix(program.rows @ sp.diags(unit))
    largest = np.zeros(rows.shape[0])
    np.maximum.at(largest, np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)), np.abs(rows.data))
    factor = 1.0 / _power_of_two(largest)
    below, above = (
        (side - shift + sign * np.where(error > 0, error + _ROUNDING * np.abs(side), 0.0)) * factor
        for side, sign in ((program.row_lower, -1.0), (program.row_upper, 1.0))
    )
    upper = np.where(narrow, (width * (1 + 2 * _ROUNDING)) / unit, program.upper / unit)
    return Scaled(
        MixedIntegerProgram(
            program.cost * unit,
            sp.csr_matrix(sp.diags(factor) @ rows),
            below,
            above,
            np.where(narrow, 0.0, program.lower / unit),
            upper,
            program.integer,
            program.offset + offset - less,
        ),
        unit,
        origin,
    )


def _products(rows: sp.csr_matrix, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes `rows @ point`, and a bound of the rounding error of it and of a sum with it."""
    size = abs(rows) @ np.abs(point)
    terms = np.diff(rows.indptr) + 4
    return np.asarray(rows @ point), np.asarray(np.finfo(float).eps * terms * size)


def _power_of_two(magnitude: np.ndarray) -> np.ndarray:
    """Returns the nearest power of two; 1 if the magnitude is moderate, zero or infinite."""
    usable = np.isfinite(magnitude) & (magnitude > 0)
    exponent = np.round(np.log2(np.where(usable, magnitude, 1.0)))
    return np.asarray(np.exp2(np.where(np.abs(exponent) > _MODERATE, exponent, 0.0)))
