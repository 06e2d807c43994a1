"""The verdict against exact optima of SCIP and of HiGHS, and against all members one by one.

Some instances are compared in every run of the tests, and as many as you like on demand:

    python -m pytest -m slow -n 2 tests/test_agreement.py --instances 500 --first 0

By hand first: relu(x0 - x1) - relu(x1) on the box [0, 1] x [0.2, 0.5] is least at (0.., 0.5) with -0.5; the oracle
must say so before it judges anybody.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from stbp_milp.network.graph import NetworkBuilder
from stbp_milp.network.layers import Linear, ReLU
from stbp_milp.properties import Property
from stbp_milp.query import Configuration
from tests import micro_instances

CONFIGURATION = Configuration(timeout=20.0, threads=1)


def test_oracle_by_hand() -> None:
    b = NetworkBuilder((2,))
    b.add("z", Linear(torch.tensor([[1.0, -1.0], [0.0, 1.0]]).double(), torch.zeros(2).double()), "input")
    b.add("y", ReLU(), "z")
    net = b.build(b.add("out", Linear(torch.tensor([[1.0, -1.0]]).double(), torch.zeros(1).double()), "y"))
    positive = Property(torch.ones(1, 1).double(), torch.zeros(1).double(), ((0,),), "positive")
    found = micro_instances.box_minimum(
        net, positive, torch.tensor([0.0, 0.2]).double(), torch.tensor([1.0, 0.5]).double()
    )
    assert found.lower == pytest.approx(-0.5, abs=1e-6)
    assert found.upper == pytest.approx(-0.5, abs=1e-6)


def test_instances_are_what_they_claim() -> None:
    """All kinds of sets and networks, on both sides of 0, and each drawn the same again."""
    instances = [micro_instances.draw(seed) for seed in range(0, 72, 5)]
    assert len({i.kind for i in instances}) > 6
    assert len({i.body for i in instances}) == 8
    assert 0.2 < sum(i.distance > 0 for i in instances) / len(instances) < 0.9
    again = micro_instances.draw(10)
    assert torch.equal(again.query.clip, instances[2].query.clip)
    assert again.query.model.digest == instances[2].query.model.digest
    for instance in instances[:5]:
        level = micro_instances.whole_minimum(instance.query, "highs").upper
        assert level == pytest.approx(instance.distance, abs=1e-4)


def test_verdicts_equal_exact_optima() -> None:
    verdicts: Counter[str] = Counter()
    for seed in [*range(36), *range(40, 72, 8)]:
        comparison = micro_instances.compare(micro_instances.draw(seed), CONFIGURATION)
        assert not comparison.contradictions, f"instance {seed}: {comparison.contradictions}"
        verdicts[comparison.outcome.word] += 1
    assert verdicts["unknown"] == 0
    assert min(verdicts["verified"], verdicts["falsified"]) >= 8


@pytest.mark.slow
def test_verdict_equals_the_exact_optimum(instance_number: int) -> None:
    comparison = micro_instances.compare(micro_instances.draw(instance_number), CONFIGURATION)
    assert not comparison.contradictions
    assert comparison.outcome.word != "unknown"
