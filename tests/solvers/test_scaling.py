"""A program in other units is the same program.

By hand first: minimise -x - b with 1024 x <= 4096 b, x in [0, 1e6]. x counts in units of 2^20, b stays a binary.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from solvers import Highs, MixedIntegerProgram, Scip, SolveLimits, scaled


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


def narrow_choice() -> MixedIntegerProgram:
    """Minimise 30,000 (0.9 - x) for x in [0.9, 0.9 + 1e-9 b] with a binary b: -3e-5, at the upper end."""
    start, width = 0.9, 1e-9
    return MixedIntegerProgram(
        np.array([-3e4, 0.0]),
        sp.csr_matrix(np.array([[1.0, -width]])),
        np.array([-np.inf]),
        np.array([start]),
        np.array([start, 0.0]),
        np.array([start + width, 1.0]),
        np.array([False, True]),
        3e4 * start,
    )


@pytest.mark.parametrize("backend", [Highs(), Scip()], ids=["highs", "scip"])
def test_a_narrow_box_is_not_taken_for_a_number(backend: Highs | Scip) -> None:
    moderate = scaled(narrow_choice())
    assert moderate.origin.tolist() == [0.9, 0.0]
    solution = backend.solve(moderate.program, SolveLimits(5.0))
    assert solution.dual_bound == pytest.approx(-3e-5, abs=1e-8)
    assert solution.point is not None
    assert moderate.point(solution.point).tolist() == pytest.approx([0.9 + 1e-9, 1.0], abs=1e-11)


@given(seed=st.integers(0, 10**6))
def test_shifted_rows_hold_for_every_point_and_the_objective_is_not_larger(seed: int) -> None:
    """In exact arithmetic: what satisfies the original rows satisfies the new ones, at no larger objective."""
    random = np.random.default_rng(seed)
    n, m = 4, 3
    lower = random.normal(size=n) * 10.0 ** random.uniform(-3, 6, n)
    upper = lower + np.abs(lower) * 10.0 ** random.uniform(-12, 1, n)
    rows, cost = random.normal(size=(m, n)), random.normal(size=n)
    sides = [(Fraction(a), Fraction(b)) for a, b in zip(lower, upper, strict=True)]
    at = [a + (b - a) * Fraction(t) for (a, b), t in zip(sides, random.random(n), strict=True)]
    exact = [sum(Fraction(w) * x for w, x in zip(row, at, strict=True)) for row in rows]
    below = np.array([np.nextafter(float(v), -np.inf) for v in exact])
    above = np.array([np.nextafter(float(v), np.inf) for v in exact])
    offset = float(random.normal())
    program = MixedIntegerProgram(
        cost, sp.csr_matrix(rows), below, above, lower, upper, np.zeros(n, dtype=bool), offset
    )
    moderate = scaled(program)
    y = [(x - Fraction(o)) / Fraction(u) for x, o, u in zip(at, moderate.origin, moderate.unit, strict=True)]
    new = moderate.program
    assert all(Fraction(a) <= v <= Fraction(b) for a, v, b in zip(new.lower, y, new.upper, strict=True))
    for row, low, high in zip(new.rows.toarray(), new.row_lower, new.row_upper, strict=True):
        value = sum(Fraction(w) * v for w, v in zip(row, y, strict=True))
        assert Fraction(low) <= value <= Fraction(high)
    was = sum(Fraction(c) * x for c, x in zip(cost, at, strict=True)) + Fraction(offset)
    now = sum(Fraction(c) * v for c, v in zip(new.cost, y, strict=True)) + Fraction(new.offset)
    assert was - Fraction(1, 10**9) * (1 + abs(was)) <= now <= was
