"""The same program in numbers of moderate size: solvers keep rows and whole numbers to absolute tolerances.

A neuron in the millions with a weight of a millionth behind it is a harmless network, but a tolerance of 1e-6 on its
big-M rows is then one of 1 on its value: dual bounds of SCIP and Gurobi were seen 0.5 above the true minimum.
Measuring every column in a power of two near its own magnitude removes that, and rounds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from solvers.program import MixedIntegerProgram

_MODERATE = 4.0  # columns and rows within 2^-4 .. 2^4 stay as they are


@dataclass(frozen=True, eq=False)
class Scaled:
    """A program with `x = unit * y`; the objective is the same number.

    Attributes:
        program: over y.
        unit: (n,) powers of two, 1 for binaries and for columns without a finite box.
    """

    program: MixedIntegerProgram
    unit: np.ndarray

    def point(self, y: np.ndarray) -> np.ndarray:
        """The original program's point."""
        return np.asarray(self.unit * y)

    def start(self, x: np.ndarray) -> np.ndarray:
        """A point of the original program, in this one's units."""
        return np.asarray(x / self.unit)


def scaled(program: MixedIntegerProgram) -> Scaled:
    """Columns in units near their magnitude, then rows likewise."""
    reach = np.maximum(np.abs(program.lower), np.abs(program.upper))
    unit = np.where(program.integer, 1.0, _power_of_two(reach))
    rows = sp.csr_matrix(program.rows @ sp.diags(unit))
    largest = np.zeros(rows.shape[0])
    np.maximum.at(largest, np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)), np.abs(rows.data))
    factor = 1.0 / _power_of_two(largest)
    return Scaled(
        MixedIntegerProgram(
            program.cost * unit,
            sp.csr_matrix(sp.diags(factor) @ rows),
            program.row_lower * factor,
            program.row_upper * factor,
            program.lower / unit,
            program.upper / unit,
            program.integer,
            program.offset,
        ),
        unit,
    )


def _power_of_two(magnitude: np.ndarray) -> np.ndarray:
    """The nearest power of two; 1 where the magnitude is moderate, zero or infinite."""
    usable = np.isfinite(magnitude) & (magnitude > 0)
    exponent = np.round(np.log2(np.where(usable, magnitude, 1.0)))
    return np.asarray(np.exp2(np.where(np.abs(exponent) > _MODERATE, exponent, 0.0)))
