"""The program of a network means the network.

By hand: f(x) = relu(x - y) + relu(y - x) = |x - y| on [0, 1]^2 has minimum 0 and `1 - f` has minimum 0; with y
pinned to 0.25 the minimum of `1 - f` is 0.25.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers import LinearRelaxation, SolveLimits, Termination
from stbp_milp.errors import SoundnessError
from stbp_milp.milp import (
    PROOF_MARGIN,
    Encoded,
    InputRegion,
    complete,
    cut_rounds,
    encode,
    extract,
    minimum,
    until_sign,
)
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Linear, ReLU
from stbp_milp.network.normal_form import normal_form
from stbp_milp.sets import VoxelBox
from tests.milp.small_networks import CHOICES, NETWORKS, around, brute_force, interval_boxes, margin, network

LIMITS = SolveLimits(seconds=20)


def strengthen(encoded: Encoded, rounds: int, seconds: float) -> Encoded:
    """The program after rounds of cuts."""
    return [encoded, *(stronger for _, stronger in cut_rounds(encoded, rounds, seconds))][-1]


TOLERANCE = 1e-5
seeds = st.integers(0, 10**6)
each_network = pytest.mark.parametrize("kind", NETWORKS)
each_choice = pytest.mark.parametrize("choice", list(CHOICES))


def distance() -> Network:
    b = NetworkBuilder((2,))
    b.add("d", Linear(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double(), torch.zeros(2).double()), "input")
    b.add("r", ReLU(), "d")
    b.add("f", Linear(torch.ones(1, 2).double(), torch.zeros(1).double()), "r")
    return b.build("f")


def box(lower: list[float], upper: list[float]) -> InputRegion:
    low, high = torch.tensor([lower]).double(), torch.tensor([upper]).double()
    return InputRegion.of(VoxelBox((low + high) / 2, low, high))


@pytest.mark.parametrize("solver", ["scip", "gurobi", "highs"])
@pytest.mark.parametrize(("y", "sign", "expected"), [((0, 1), 1, 0.0), ((0, 1), -1, 0.0), ((0.25, 0.25), -1, 0.25)])
def test_distance_by_hand(solver: str, y: tuple[float, float], sign: int, expected: float) -> None:
    region = box([0.0, y[0]], [1.0, y[1]])
    encoded = encode(normal_form(distance()), region, {}, np.array([float(sign)]), 0.0 if sign > 0 else 1.0)
    result = minimum(encoded, solver, LIMITS)  # type: ignore[arg-type]
    assert result.dual_bound == pytest.approx(expected, abs=TOLERANCE)
    assert result.solver == solver
    assert result.candidate is not None
    value = margin(distance(), np.array([float(sign)]), 0.0 if sign > 0 else 1.0, result.candidate)
    assert value == pytest.approx(expected, abs=TOLERANCE)


@each_network
@each_choice
@given(seed=seeds)
@settings(max_examples=3)
def test_completed_clips_are_feasible_and_have_the_margin(kind: str, choice: str, seed: int) -> None:
    net = network(kind, seed, hidden=4)
    inputs = around(net, choice, seed)
    region = InputRegion.of(inputs)
    random = np.random.default_rng(seed)
    form, offset = random.normal(size=2), float(random.normal())
    encoded = encode(normal_form(net), region, interval_boxes(net, region), form, offset)
    strong = strengthen(encoded, rounds=3, seconds=5.0)
    for clip in inputs.sample(6, torch.Generator().manual_seed(seed)).numpy():
        point = complete(encoded, clip)
        assert not np.isnan(point).any()
        assert encoded.program.violation(point) <= 1e-9
        assert strong.program.violation(point) <= 1e-9
        assert encoded.program.objective(point) == pytest.approx(margin(net, form, offset, clip), abs=1e-9)
        back = extract(encoded, point).reshape(-1)
        assert back[encoded.entries] == pytest.approx(clip.reshape(-1)[encoded.entries], abs=1e-12)


@each_network
@pytest.mark.parametrize("solver", ["scip", "gurobi", "highs"])
def test_a_pinned_input_gives_the_output(kind: str, solver: str) -> None:
    for seed in range(3):
        net = network(kind, seed, hidden=4)
        inputs = around(net, "everywhere", seed)
        region = InputRegion.of(inputs)
        form = np.random.default_rng(seed).normal(size=2)
        encoded = encode(normal_form(net), region, interval_boxes(net, region), form, 0.5)
        clip = inputs.sample(1, torch.Generator().manual_seed(seed))[0].numpy()
        lower, upper = encoded.program.lower.copy(), encoded.program.upper.copy()
        lower[encoded.entry_columns] = upper[encoded.entry_columns] = clip.reshape(-1)[encoded.entries]
        pinned = replace(encoded, program=replace(encoded.program, lower=lower, upper=upper))
        result = minimum(pinned, solver, LIMITS)  # type: ignore[arg-type]
        assert result.termination is Termination.OPTIMAL
        assert result.dual_bound == pytest.approx(margin(net, form, 0.5, clip), abs=2e-5)


@each_network
def test_a_box_of_width_zero_has_no_columns(kind: str) -> None:
    net = network(kind, 1)
    clip = torch.rand(1, *net.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    encoded = encode(normal_form(net), InputRegion.of(VoxelBox(clip, clip, clip)), {}, np.array([1.0, -2.0]), 0.0)
    assert encoded.program.variables == 0
    result = minimum(encoded, "auto", LIMITS)
    assert result.dual_bound == pytest.approx(margin(net, np.array([1.0, -2.0]), 0.0, clip[0].numpy()), abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "choice"),
    [(kind, choice) for kind in NETWORKS for choice in ("everywhere", "any frame")]
    + [("two layers", "patch"), ("residual", "moving patch"), ("select and scale", "a pixel per frame")],
)
@given(seed=seeds, cuts=st.booleans(), derived=st.booleans())
@settings(max_examples=2)
def test_minimum_equals_brute_force(kind: str, choice: str, seed: int, cuts: bool, derived: bool) -> None:
    net = network(kind, seed)
    inputs = around(net, choice, seed)
    region = InputRegion.of(inputs)
    form, offset = np.random.default_rng(seed).normal(size=2), 0.3
    boxes = {} if derived else interval_boxes(net, region)
    encoded = encode(normal_form(net), region, boxes, form, offset)
    if cuts:
        encoded = strengthen(encoded, rounds=2, seconds=5.0)
    start = inputs.sample(1, torch.Generator().manual_seed(seed))[0].numpy()
    result = minimum(encoded, "auto", LIMITS, start)
    expected = brute_force(net, inputs, form, offset)
    assert result.dual_bound == pytest.approx(expected, abs=2e-5)
    assert result.candidate is not None
    assert margin(net, form, offset, result.candidate) == pytest.approx(expected, abs=2e-5)
    assert bool(inputs.contains(torch.from_numpy(result.candidate)[None])[0])


@given(seed=seeds)
@settings(max_examples=6)
def test_the_largest_of_several_rows(seed: int) -> None:
    """min of max dominates the max of minima, and the candidate attains it."""
    net = network("two layers", seed)
    inputs = around(net, "patch", seed)
    form, offset = np.random.default_rng(seed).normal(size=(3, 2)), np.array([0.1, 0.2, 0.3])
    encoded = encode(normal_form(net), InputRegion.of(inputs), {}, form, offset)
    result = minimum(encoded, "auto", LIMITS)
    single = max(brute_force(net, inputs, row, float(d)) for row, d in zip(form, offset, strict=True))
    assert result.dual_bound >= single - TOLERANCE
    assert result.candidate is not None
    value = max(margin(net, row, float(d), result.candidate) for row, d in zip(form, offset, strict=True))
    assert result.dual_bound == pytest.approx(value, abs=2e-5)
    for clip in inputs.sample(20, torch.Generator().manual_seed(seed)).numpy():
        point = complete(encoded, clip)
        assert encoded.program.violation(point) <= 1e-9
        assert encoded.program.objective(point) >= result.dual_bound - TOLERANCE


@given(seed=seeds)
@settings(max_examples=8)
def test_children_of_a_phase_split_cover_the_parent(seed: int) -> None:
    net = network("three layers", seed)
    inputs = around(net, "any frame", seed)
    maps, region = normal_form(net), InputRegion.of(inputs)
    form = np.random.default_rng(seed).normal(size=2)
    boxes = interval_boxes(net, region)
    whole = minimum(encode(maps, region, boxes, form, 0.0), "auto", LIMITS).dual_bound
    relu = net.relus[seed % len(net.relus)]
    children = [
        minimum(encode(maps, region, boxes, form, 0.0, {relu: np.array([sign, 0])}), "auto", LIMITS).dual_bound
        for sign in (1, -1)
    ]
    assert min(children) == pytest.approx(whole, abs=3e-5)


def test_fixed_phases_that_leave_nothing_prove_the_subproblem_empty() -> None:
    maps, region = normal_form(distance()), box([0.0, 0.0], [1.0, 1.0])
    relu = distance().relus[0]
    # x - y >= 0 and y - x >= 0 leaves the diagonal; with x above 0.6 and y below 0.4 nothing is left.
    apart = box([0.6, 0.0], [1.0, 0.4])
    both = {relu: np.array([1, 1])}
    assert minimum(encode(maps, region, {}, np.ones(1), 0.0, both), "auto", LIMITS).dual_bound < 1e-5
    result = minimum(encode(maps, apart, {}, np.ones(1), 0.0, both), "auto", LIMITS)
    assert result.termination is Termination.INFEASIBLE
    assert result.dual_bound == np.inf
    assert result.lower == np.inf


def test_contradicting_bounds_without_phases_stop_the_run() -> None:
    maps, region = normal_form(distance()), box([0.6, 0.0], [1.0, 0.4])
    relu = distance().relus[0]
    wrong = {relu: (np.array([-1.0, 0.5]), np.array([1.0, 1.0]))}  # y - x is at most -0.2
    with pytest.raises(SoundnessError, match="contradict"):
        encode(maps, region, wrong, np.ones(1), 0.0)


def test_an_infeasible_program_without_phases_stops_the_run() -> None:
    """As a wrong bound that only the solver can see through would make it."""
    encoded = encode(normal_form(distance()), box([0.0, 0.0], [1.0, 1.0]), {}, np.ones(1), 0.0)
    x, y = encoded.entry_columns
    rows = encoded.program.rows.copy()
    impossible = sp.csr_matrix(([1.0, 1.0], ([0, 0], [x, y])), shape=(1, encoded.program.variables))
    program = replace(
        encoded.program,
        rows=sp.vstack([rows, impossible], format="csr"),
        row_lower=np.append(encoded.program.row_lower, 3.0),
        row_upper=np.append(encoded.program.row_upper, 4.0),
    )
    with pytest.raises(SoundnessError, match="no phase was fixed"):
        minimum(replace(encoded, program=program), "auto", LIMITS)
    assert minimum(replace(encoded, program=program, split=True), "auto", LIMITS).dual_bound == np.inf


def test_a_settled_sign_stops_a_run_on_either_side() -> None:
    maps, region = normal_form(distance()), box([0.0, 0.0], [1.0, 1.0])
    limits = until_sign(SolveLimits(20.0), PROOF_MARGIN)
    positive = minimum(encode(maps, region, {}, np.ones(1), 5.0), "auto", limits)
    assert positive.tolerance == PROOF_MARGIN
    assert positive.lower > 0
    negative = minimum(encode(maps, region, {}, np.ones(1), -0.5), "auto", limits)
    assert negative.lower <= 0
    assert negative.candidate is not None
    assert margin(distance(), np.ones(1), -0.5, negative.candidate) <= -PROOF_MARGIN


def test_only_the_cone_of_influence_is_encoded() -> None:
    """Two separate halves; the objective reads one."""
    b = NetworkBuilder((4,))
    halves = torch.block_diag(torch.ones(1, 2), torch.ones(1, 2)).double()
    b.add("d", Linear(halves, torch.full((2,), -1.0).double()), "input")
    b.add("r", ReLU(), "d")
    b.add("f", Linear(torch.eye(2).double(), torch.zeros(2).double()), "r")
    encoded = encode(normal_form(b.build("f")), box([0.0] * 4, [1.0] * 4), {}, np.array([1.0, 0.0]), 0.0)
    assert encoded.entries.tolist() == [0, 1]
    assert encoded.program.binaries == 1


def test_cuts_tighten_the_relaxation_and_keep_the_minimum() -> None:
    gained = 0.0
    for seed in range(6):
        net = network("two layers", seed, hidden=6)
        region = InputRegion.of(around(net, "everywhere", seed))
        form = np.random.default_rng(seed).normal(size=2)
        plain = encode(normal_form(net), region, interval_boxes(net, region), form, 0.0)
        strong = strengthen(plain, rounds=4, seconds=5.0)
        before, after = (
            LinearRelaxation(e.program).minimum(e.program.cost, 5.0) + e.program.offset for e in (plain, strong)
        )
        exact = minimum(plain, "auto", LIMITS).dual_bound
        assert before - 1e-7 <= after <= exact + TOLERANCE
        assert minimum(strong, "auto", LIMITS).dual_bound == pytest.approx(exact, abs=2e-5)
        gained += after - before
    assert gained > 0.01


def test_bounds_that_are_exactly_zero_need_no_binary() -> None:
    net = network("dead", 3)
    region = InputRegion.of(around(net, "everywhere", 3))
    encoded = encode(normal_form(net), region, interval_boxes(net, region), np.ones(2), 0.0)
    assert encoded.program.binaries <= 2
