"""Laws of the compared methods, on micro networks where the exact optimum is known otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stbp_milp.search import Deadline
from stbp_milp.tightness.bounding import Request, alpha_bounds, flat_boxes, whole_set
from stbp_milp.tightness.laws import AGREEMENT, ORDERS
from stbp_milp.tightness.layers import layer_widths
from stbp_milp.tightness.methods import METHODS
from tests import micro_instances
from tests.enumeration import SETS
from tests.micro_instances import KINDS

ALL_SETS = range(len(SETS))
# Every set on the network "plain"; then max pooling with pixels and a residual network with a patch.
SEEDS = {kind: seed for seed, kind in enumerate(KINDS)} | {
    "max pooling, pixels": 2 * len(KINDS) + KINDS.index("pixels"),
    "residual, patch": 3 * len(KINDS) + KINDS.index("patch"),
}


def request(seed: int) -> Request:
    return Request(micro_instances.draw(seed).query, Deadline.after(60))


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_bounds_lie_below_the_exact_optimum_and_keep_the_orders(seed: int) -> None:
    asked = request(seed)
    found = {name: method.run(asked) for name, method in METHODS.items()}
    oracle = micro_instances.whole_minimum(asked.query, "highs")
    for name, bound in found.items():
        slack = METHODS[name].tolerance * (1 + abs(oracle.upper))
        assert bound.lower <= oracle.upper + slack, name
        assert bound.upper >= oracle.lower - 1e-5 * (1 + abs(oracle.lower)), name
    for smaller, larger, tolerance in ORDERS:
        low, high = found[smaller].lower, found[larger].lower
        assert low <= high + tolerance * (1 + abs(high)), (smaller, larger)
    # The same program twice: by our encoding, and by cvxpy from the layers and the set's words alone.
    assert found["lp"].lower == pytest.approx(found["lp-cvxpy"].lower, rel=AGREEMENT, abs=AGREEMENT)
    for exact in (found["milp"], found["search"]):
        assert exact.upper - exact.lower <= 1e-4
        assert exact.upper == pytest.approx(oracle.upper, abs=1e-4)
    assert math.isfinite(found["per-member"].lower)


@pytest.mark.parametrize("kind", ALL_SETS, ids=KINDS)
def test_the_first_layer_of_stbp_is_exact_for_every_set(kind: int) -> None:
    """Network "plain", radius as drawn: a convolution, ReLUs, a linear layer."""
    widths = layer_widths(request(kind), sample=6)
    first = {w.method: w for w in widths if w.layer == 1}
    for name in ("stbp-interval", "stbp-backward", "stbp-alpha"):
        assert first[name].neurons > 0
        assert first[name].ratio == pytest.approx(1.0, abs=1e-6)
    assert first["box-interval"].ratio >= 1 - 1e-6


def test_the_box_is_wider_than_the_set_where_the_set_chooses() -> None:
    """Any 2 pixels of 3x3 frames: a filter of 18 taps sees at most 2 of them change, the box changes all."""
    widths = {w.method: w.ratio for w in layer_widths(request(KINDS.index("pixels")), sample=6) if w.layer == 1}
    assert widths["box-interval"] > 1.5


def test_alpha_bounds_are_nowhere_wider() -> None:
    asked = request(len(KINDS) * 4 + KINDS.index("window"))  # two convolutions
    plain, tight = (flat_boxes(b) for b in alpha_bounds(whole_set(asked.query), asked))
    for relu, (lower, upper) in plain.items():
        assert np.all(tight[relu][0] >= lower)
        assert np.all(tight[relu][1] <= upper)
