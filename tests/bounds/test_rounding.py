"""The rounding slack covers what rounding does to a bound: a bound in float32 against the same in float64.

By hand first: x -> 3 x on [0, 1] with the row 1: two terms of magnitude 3 (the product, and adding the bias), so the
slack is a small multiple of 3 units in the last place and nothing near 3.
"""

from __future__ import annotations

import pytest
import torch
from bound_cases import BODIES, case, members_of
from enumeration import SETS
from hypothesis import given, settings
from hypothesis import strategies as st

from stbp_milp.bounds.duals import Duals
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.bounds.rounding import rounding_slack
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Linear
from stbp_milp.properties import same_class
from stbp_milp.sets import PerturbationSet

seeds = st.integers(0, 10**6)
ROWS, OFFSET = same_class(0, 3).forms()


def test_by_hand() -> None:
    b = NetworkBuilder((1,))
    net = b.build(b.add("f", Linear(torch.full((1, 1), 3.0).double(), torch.zeros(1).double()), "input"))
    zero, one = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    slack = rounding_slack(net, zero, one, one, torch.zeros(1).double())
    assert 3 * 2.0**-53 < slack < 1e3 * 3 * 2.0**-53
    ten = rounding_slack(net, zero, 10 * one, one, torch.zeros(1).double())
    assert ten == pytest.approx(10 * slack)


def single(net: Network, perturbation: PerturbationSet) -> tuple[Network, PerturbationSet]:
    return net.to(torch.float32), perturbation.to(torch.float32)


@pytest.mark.parametrize("body", BODIES)
@given(
    seed=seeds,
    text=st.sampled_from(SETS),
    epsilon=st.sampled_from([0.05, 0.4]),
    scale=st.sampled_from([1.0, 1e3]),
    deep=st.booleans(),
)
@settings(max_examples=12)
def test_float32_errs_by_less_than_its_slack(
    body: str, seed: int, text: str, epsilon: float, scale: float, deep: bool
) -> None:
    """With fixed slopes of 1/2, which do not tip over, and hidden bounds by intervals, or exact (one hidden layer)."""
    net, perturbation = case(body, text, seed, epsilon)
    net32, set32 = single(net, perturbation)
    lower, upper = set32.hull()
    rows, offset = scale * ROWS.float(), scale * OFFSET.float()
    slack = rounding_slack(net32, lower[:1], upper[:1], rows, offset)
    options = BoundingOptions("backward" if deep and len(net.relus) == 1 else "interval")
    found = []
    for problem in (Problem.of(net32, set32), Problem.of(net, perturbation)):
        bounds = preactivations(problem, options)
        half = Duals(
            {r: torch.full_like(b.lower, 0.5).unsqueeze(1).expand(-1, 2, *b.lower.shape[1:]) for r, b in bounds.items()}
        )
        dtype = problem.network.dtype
        found.append(bound_once(problem, bounds, rows.to(dtype), offset.to(dtype), half).lower.double())
    # The float32 problem has a rounded box: its radius errs by a unit in the last place as well.
    assert float((found[0] - found[1]).abs().max()) <= slack
    assert slack < 0.02 * scale
    seen = scale * (net(members_of(perturbation, seed)[0]) @ ROWS.T + OFFSET)
    assert bool((found[0] <= seen + slack).all())


@pytest.mark.parametrize("body", BODIES)
def test_slack_grows_with_the_numbers_and_is_tiny_in_float64(body: str) -> None:
    net, perturbation = case(body, "everywhere", 1)
    lower, upper = perturbation.hull()
    slack = rounding_slack(net, lower, upper, ROWS, OFFSET)
    assert 0 < slack < 1e-10
    assert rounding_slack(net, lower, upper, 1e6 * ROWS, OFFSET) == pytest.approx(1e6 * slack)
    assert rounding_slack(net, 0 * lower, 0 * upper, ROWS, OFFSET) <= slack
