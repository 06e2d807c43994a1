"""A program in other units is the same program.

By hand first: minimise -x - b with 1024 x <= 4096 b, x in [0, 1e6]. x counts in units of 2^20, b stays a binary.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from solvers import Highs, MixedIntegerProgram, SolveLimits, scaled


def test_by_hand() -> None:
    rows = sp.csr_matrix(np.array([[1024.0, -4096.0]]))
    program = MixedIntegerProgram(
        np.array([-1.0, -1.0]),
        rows,
        np.array([-np.inf]),
        np.zeros(1),
        np.zeros(2),
        np.array([1e6, 1.0]),
        np.array([False, True]),
    )
    moderate = scaled(program)
    assert moderate.unit.tolist() == [2.0**20, 1.0]
    assert moderate.program.upper[0] == pytest.approx(1e6 / 2**20)
    solution = Highs().solve(moderate.program, SolveLimits(5.0))
    assert solution.dual_bound == pytest.approx(-5.0, abs=1e-4)
    assert solution.point is not None
    assert moderate.point(solution.point).tolist() == pytest.approx([4.0, 1.0], abs=1e-3)


@given(seed=st.integers(0, 10**6))
def test_points_rows_and_objective_are_the_same(seed: int) -> None:
    """Bit by bit: units are powers of two."""
    random = np.random.default_rng(seed)
    n, m = 5, 4
    reach = 10.0 ** random.uniform(-9, 9, n)
    integer = random.random(n) < 0.3
    reach[integer] = 1.0
    rows = sp.csr_matrix(
        random.normal(size=(m, n)) * 10.0 ** random.uniform(-6, 6, (m, n)) * (random.random((m, n)) < 0.7)
    )
    upper = np.where(random.random(m) < 0.3, np.inf, random.normal(size=m))
    box = np.where(integer, 0.0, -reach), np.where(random.random(n) < 0.1, np.inf, reach)
    box = box[0], np.where(integer, 1.0, box[1])
    program = MixedIntegerProgram(random.normal(size=n), rows, np.full(m, -np.inf), upper, *box, integer, 0.5)
    moderate = scaled(program)
    assert np.array_equal(np.exp2(np.round(np.log2(moderate.unit))), moderate.unit)
    assert (moderate.unit[integer] == 1).all()
    x = random.uniform(box[0], np.minimum(box[1], 1e9))
    y = moderate.start(x)
    assert np.array_equal(moderate.point(y), x)
    assert moderate.program.objective(y) == pytest.approx(program.objective(x), rel=1e-12)
    finite = np.maximum(np.abs(moderate.program.lower), np.abs(moderate.program.upper))
    finite = finite[np.isfinite(finite)]
    assert (finite <= 2.0**4.6).all()
    original, own = program.rows @ x <= program.row_upper, moderate.program.rows @ y <= moderate.program.row_upper
    assert np.array_equal(original, own)
