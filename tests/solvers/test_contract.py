"""One contract for every backend.

By hand first: three things of weight 5, 4, 3 and value 6, 5, 4 in a sack of 8. All pairs but (5, 4) fit; the best
is 5 + 3 with value 10, so the minimum of `1 - value` is -9.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from solvers import (
    Backend,
    Gurobi,
    Highs,
    LinearRelaxation,
    MixedIntegerProgram,
    RefusedError,
    Scip,
    SolveLimits,
    Termination,
    choose,
    dual_bound,
)

BACKENDS = [pytest.param(backend, id=backend.name) for backend in (Scip(), Gurobi(), Highs())]
TOLERANCE = 1e-5
LIMITS = SolveLimits(seconds=20)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
seeds = st.integers(0, 10**6)
few = settings(max_examples=12, deadline=None)


def knapsack() -> MixedIntegerProgram:
    return MixedIntegerProgram(
        cost=np.array([-6.0, -5.0, -4.0]),
        rows=sp.csr_matrix([[5.0, 4.0, 3.0]]),
        row_lower=np.array([-np.inf]),
        row_upper=np.array([8.0]),
        lower=np.zeros(3),
        upper=np.ones(3),
        integer=np.ones(3, dtype=bool),
        offset=1.0,
    )


def random_program(seed: int, binaries: int = 5, continuous: int = 4, rows: int = 5) -> MixedIntegerProgram:
    """Two-sided, one-sided and equality rows around a random point, so that the program is feasible."""
    random = np.random.default_rng(seed)
    n = binaries + continuous
    matrix = random.normal(size=(rows, n)) * (random.random((rows, n)) < 0.7)
    inside = np.concatenate([random.integers(0, 2, binaries), random.uniform(-1, 1, continuous)])
    activity = matrix @ inside
    below, above = random.exponential(size=rows), random.exponential(size=rows)
    kind = random.integers(0, 4, rows)
    return MixedIntegerProgram(
        cost=random.normal(size=n),
        rows=sp.csr_matrix(matrix),
        row_lower=np.select([kind == 0, kind == 1], [activity, np.full(rows, -np.inf)], activity - below),
        row_upper=np.select([kind == 0, kind == 2], [activity, np.full(rows, np.inf)], activity + above),
        lower=np.concatenate([np.zeros(binaries), np.full(continuous, -1.0)]),
        upper=np.ones(n),
        integer=np.arange(n) < binaries,
        offset=float(random.normal() * 10),
    )


def hard_program(seed: int = 3, n: int = 60) -> MixedIntegerProgram:
    """Market split: no backend settles it in a second, all of them bound it."""
    random = np.random.default_rng(seed)
    m = 5
    weights = random.integers(0, 100, (m, n)).astype(float)
    half = np.floor(weights.sum(1) / 2)
    rows = sp.hstack([sp.csr_matrix(weights), sp.identity(m), -sp.identity(m)], format="csr")
    return MixedIntegerProgram(
        cost=np.concatenate([np.zeros(n), np.ones(2 * m)]),
        rows=rows,
        row_lower=half,
        row_upper=half,
        lower=np.zeros(n + 2 * m),
        upper=np.concatenate([np.ones(n), np.full(2 * m, 1e4)]),
        integer=np.arange(n + 2 * m) < n,
    )


def brute_force(program: MixedIntegerProgram) -> float:
    """The minimum over all assignments of the binaries, each completed by scipy's linprog."""
    matrix, best = program.rows.toarray(), math.inf
    upper, lower = np.isfinite(program.row_upper), np.isfinite(program.row_lower)
    sides = np.concatenate([program.row_upper[upper], -program.row_lower[lower]])
    stacked = np.vstack([matrix[upper], -matrix[lower]])
    whole = np.flatnonzero(program.integer)
    for values in itertools.product((0.0, 1.0), repeat=whole.size):
        low, high = program.lower.copy(), program.upper.copy()
        low[whole] = high[whole] = values
        answer = linprog(program.cost, stacked, sides, bounds=np.column_stack([low, high]))
        if answer.status == 0:
            best = min(best, answer.fun + program.offset)
    return best


@each_backend
def test_knapsack_by_hand(backend: Backend) -> None:
    solution = backend.solve(knapsack(), LIMITS)
    assert solution.termination is Termination.OPTIMAL
    assert solution.dual_bound == pytest.approx(-9.0, abs=TOLERANCE)
    assert solution.point == pytest.approx(np.array([1.0, 0.0, 1.0]), abs=TOLERANCE)
    assert solution.objective == pytest.approx(-9.0, abs=TOLERANCE)


@each_backend
@given(seed=seeds)
@few
def test_minimum_equals_brute_force(backend: Backend, seed: int) -> None:
    program = random_program(seed)
    solution = backend.solve(program, LIMITS)
    assert solution.termination is Termination.OPTIMAL
    assert solution.point is not None
    assert program.violation(solution.point) <= TOLERANCE
    expected = brute_force(program)
    assert solution.dual_bound == pytest.approx(expected, abs=TOLERANCE)
    assert solution.objective == pytest.approx(expected, abs=TOLERANCE)


@each_backend
@given(seed=seeds)
@few
def test_linear_program_without_binaries(backend: Backend, seed: int) -> None:
    program = random_program(seed, binaries=0, continuous=6)
    solution = backend.solve(program, LIMITS)
    assert solution.termination is Termination.OPTIMAL
    assert solution.dual_bound == pytest.approx(brute_force(program), abs=TOLERANCE)


@each_backend
def test_infeasible_has_an_infinite_bound_and_no_point(backend: Backend) -> None:
    program = replace(knapsack(), row_lower=np.array([12.5]), row_upper=np.array([np.inf]))
    solution = backend.solve(program, LIMITS)
    assert solution.termination is Termination.INFEASIBLE
    assert solution.dual_bound == math.inf
    assert solution.point is None


@each_backend
def test_unbounded_proves_nothing(backend: Backend) -> None:
    # No integers and no rows that bind: Gurobi may answer "infeasible or unbounded", which is an ERROR here.
    free = np.full(3, -np.inf)
    program = replace(knapsack(), lower=free, upper=-free, integer=np.zeros(3, dtype=bool), cost=np.array([1.0, 0, 0]))
    solution = backend.solve(program, LIMITS)
    assert solution.termination in (Termination.UNBOUNDED, Termination.ERROR)
    assert solution.dual_bound == -math.inf


@each_backend
def test_an_empty_row_is_a_statement_about_zero(backend: Backend) -> None:
    program = knapsack()
    rows = sp.vstack([program.rows, sp.csr_matrix((1, 3))], format="csr")
    for upper, expected in ((1.0, Termination.OPTIMAL), (-1.0, Termination.INFEASIBLE)):
        grown = replace(program, rows=rows, row_lower=np.array([-np.inf, -np.inf]), row_upper=np.array([8.0, upper]))
        assert backend.solve(grown, LIMITS).termination is expected


@each_backend
def test_time_limit_leaves_a_valid_bound(backend: Backend) -> None:
    program = hard_program()
    limits = SolveLimits(seconds=0.4)
    solution = backend.solve(program, limits)
    assert solution.seconds < 5.0
    assert solution.termination is Termination.TIME
    # The cost is a sum of non-negative slacks, and balanced halves exist to within the weights.
    assert solution.dual_bound <= 100.0
    if solution.point is not None:
        assert program.violation(solution.point) <= TOLERANCE
        assert solution.objective is not None
        assert solution.dual_bound <= solution.objective + TOLERANCE


@each_backend
def test_no_time_at_all(backend: Backend) -> None:
    solution = backend.solve(hard_program(), SolveLimits(seconds=0.0))
    assert solution.termination is Termination.TIME


@each_backend
@given(seed=seeds, below=st.floats(0.0, 2.0))
@few
def test_stop_above_stops_with_a_bound_that_is_there(backend: Backend, seed: int, below: float) -> None:
    program = random_program(seed, binaries=8, continuous=6, rows=8)
    minimum = Scip().solve(program, LIMITS).dual_bound
    threshold = minimum - below
    solution = backend.solve(program, replace(LIMITS, stop_above=threshold))
    assert solution.termination in (Termination.STOPPED_ABOVE, Termination.OPTIMAL)
    assert threshold - TOLERANCE <= solution.dual_bound <= minimum + TOLERANCE


@each_backend
def test_stop_above_stops_early(backend: Backend) -> None:
    program = hard_program()
    solution = backend.solve(replace(program, offset=7.0), SolveLimits(seconds=20.0, stop_above=6.5))
    assert solution.termination is Termination.STOPPED_ABOVE
    assert solution.dual_bound >= 6.5
    assert solution.seconds < 10.0


@each_backend
@given(seed=seeds, above=st.floats(0.0, 2.0))
@few
def test_stop_below_returns_a_stored_point(backend: Backend, seed: int, above: float) -> None:
    program = random_program(seed, binaries=8, continuous=6, rows=8)
    minimum = Highs().solve(program, LIMITS).dual_bound
    threshold = minimum + above + TOLERANCE
    solution = backend.solve(program, replace(LIMITS, stop_below=threshold))
    assert solution.termination in (Termination.STOPPED_BELOW, Termination.OPTIMAL)
    assert solution.point is not None
    assert program.violation(solution.point) <= TOLERANCE
    assert program.objective(solution.point) == solution.objective
    assert solution.objective is not None
    assert solution.objective <= threshold + TOLERANCE
    assert solution.dual_bound <= minimum + TOLERANCE


@each_backend
def test_stop_below_that_cannot_be_reached_claims_no_point_there(backend: Backend) -> None:
    # An objective limit would answer this one with a primal bound of -20 and no solution.
    solution = backend.solve(knapsack(), replace(LIMITS, stop_below=-20.0))
    assert solution.termination is Termination.OPTIMAL
    assert solution.objective == pytest.approx(-9.0, abs=TOLERANCE)


@each_backend
def test_a_start_is_used(backend: Backend) -> None:
    """A market split with a planted exact solution, which no backend finds by itself in the time."""
    program = hard_program()
    planted = np.random.default_rng(0).integers(0, 2, program.binaries).astype(float)
    side = program.rows[:, : program.binaries] @ planted
    program = replace(program, row_lower=side, row_upper=side)
    start = np.concatenate([planted, np.zeros(program.variables - program.binaries)])
    solution = backend.solve(program, SolveLimits(seconds=5.0, stop_below=1e-6), start)
    assert solution.termination in (Termination.STOPPED_BELOW, Termination.OPTIMAL)
    assert solution.point is not None
    assert np.round(solution.point) == pytest.approx(start)
    without = backend.solve(program, SolveLimits(seconds=0.3, stop_below=1e-6))
    assert without.termination is Termination.TIME


@each_backend
@pytest.mark.parametrize("kind", ["infeasible", "out of the box", "fractional", "partial", "nothing known"])
@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_a_start_never_harms(backend: Backend, kind: str, seed: int) -> None:
    program = random_program(seed)
    random = np.random.default_rng(seed)
    start = {
        "infeasible": np.where(program.integer, 1.0, 1.0),
        "out of the box": np.full(program.variables, 50.0),
        "fractional": np.full(program.variables, 0.5),
        "partial": np.where(random.random(program.variables) < 0.5, np.nan, random.integers(0, 2, program.variables)),
        "nothing known": np.full(program.variables, np.nan),
    }[kind]
    solution = backend.solve(program, LIMITS, start)
    assert solution.termination is Termination.OPTIMAL
    assert solution.dual_bound == pytest.approx(Scip().solve(program, LIMITS).dual_bound, abs=TOLERANCE)


@each_backend
def test_memory_limit_and_seed_are_accepted(backend: Backend) -> None:
    solution = backend.solve(knapsack(), replace(LIMITS, memory_bytes=2**30, seed=7))
    assert solution.termination is Termination.OPTIMAL


def oversized() -> MixedIntegerProgram:
    n = 2001
    return MixedIntegerProgram(
        np.ones(n), sp.csr_matrix((1, n)), np.zeros(1), np.zeros(1), np.zeros(n), np.ones(n), np.zeros(n, dtype=bool)
    )


def test_the_bundled_gurobi_licence_refuses_a_large_program_beforehand() -> None:
    gurobi = Gurobi()
    refusal = gurobi.accepts(oversized())
    if refusal is None:
        pytest.skip("a full Gurobi licence is installed")
    assert "2000" in refusal
    assert gurobi.accepts(knapsack()) is None
    with pytest.raises(RefusedError, match="bundled licence"):
        gurobi.solve(oversized(), LIMITS)
    with pytest.raises(RefusedError, match="bundled licence"):
        choose(oversized(), "gurobi")
    assert choose(oversized()).name == "scip"


def test_choose_prefers_gurobi_and_obeys() -> None:
    assert choose(knapsack()).name == "gurobi"
    assert choose(knapsack(), "highs").name == "highs"
    with pytest.raises(ValueError, match="no solver is named 'cplex'"):
        choose(knapsack(), "cplex")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_installation_is_a_sentence(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"scip": "solvers.scip", "gurobi": "solvers.gurobi", "highs": "solvers.highs"}[backend.name]
    monkeypatch.setattr(f"{module}.find_spec", lambda name: None)
    refusal = backend.accepts(knapsack())
    assert refusal is not None
    assert "pip install" in refusal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cost": np.zeros(2)}, "cost has shape"),
        ({"row_lower": np.zeros(2)}, "row_lower has shape"),
        ({"integer": np.ones(3)}, "expected bool"),
        ({"upper": np.full(3, 2.0)}, "only binaries"),
        ({"lower": np.array([0.0, np.nan, 0.0])}, "NaN"),
        ({"cost": np.array([0.0, np.inf, 0.0])}, "finite"),
        ({"rows": sp.csc_matrix([[5.0, 4.0, 3.0]])}, "CSR"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(knapsack(), **change)  # type: ignore[arg-type]


# --- linear relaxations -----------------------------------------------------------------------------------


@given(seed=seeds)
@few
def test_any_multipliers_give_a_bound(seed: int) -> None:
    program = random_program(seed)
    minimum = (
        Highs().solve(replace(program, integer=np.zeros_like(program.integer)), LIMITS).dual_bound - program.offset
    )
    multipliers = np.random.default_rng(seed).normal(size=program.rows.shape[0]) * 3
    assert dual_bound(program, program.cost, multipliers) <= minimum + 1e-9
    multipliers[0] = np.inf
    assert dual_bound(program, program.cost, multipliers) <= minimum + 1e-9


@given(seed=seeds)
@few
def test_relaxation_is_exact_for_every_objective_in_turn(seed: int) -> None:
    program = random_program(seed)
    relaxation = LinearRelaxation(program)
    random = np.random.default_rng(seed)
    for _ in range(4):
        cost = random.normal(size=program.variables)
        relaxed = replace(program, cost=cost, integer=np.zeros_like(program.integer), offset=0.0)
        expected = brute_force(relaxed)
        found = relaxation.minimum(cost, seconds=10.0)
        assert found <= expected + 1e-9
        assert found == pytest.approx(expected, abs=1e-6)
        assert relaxed.violation(relaxation.point()) <= 1e-6


def test_relaxation_without_time_still_bounds() -> None:
    program = hard_program()
    relaxation = LinearRelaxation(program)
    bound = relaxation.minimum(program.cost, seconds=0.0)
    assert -math.inf < bound <= 1e-9
    assert relaxation.minimum(program.cost, seconds=10.0) == pytest.approx(0.0, abs=1e-6)


def test_relaxation_needs_a_box() -> None:
    with pytest.raises(ValueError, match="infinite bound"):
        LinearRelaxation(replace(knapsack(), integer=np.zeros(3, dtype=bool), upper=np.full(3, np.inf)))
    with pytest.raises(ValueError, match="NaN"):
        dual_bound(knapsack(), np.zeros(3), np.full(1, np.nan))
