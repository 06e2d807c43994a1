"""Verdicts on smooth micro networks near the boundary, against a grid over the two voxels that a patch moves.

Between neighbours of the grid the margin changes by at most the largest slope that the grid saw, times the step; what
the margin is shifted by exceeds four times that, so the grid knows the true answer. On demand:

    python -m pytest -m slow -n 2 tests/branching/test_curved_verdicts.py --instances 200
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from stbp_milp.network.model import load_model
from stbp_milp.properties import same_class
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification
from stbp_milp.verdict import Falsified
from stbp_milp.verify import verify
from tests import enumeration, micro_instances

STEPS = 301
CONFIGURATION = Configuration(timeout=20.0, threads=1)


def draw(seed: int) -> tuple[Query, str, str]:
    """A query, what its answer is, and the body of its network."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    body = micro_instances.CURVED[seed % len(micro_instances.CURVED)]
    clip = enumeration.random_clip(seed, 1, (3, 4, 4))
    epsilon = float(random.choice([0.1, 0.3, 0.8]))
    module = nn.Sequential(micro_instances.body(body, 1), nn.Flatten(), nn.LazyLinear(3)).eval()
    with torch.no_grad():
        module(clip.float().unsqueeze(0))
        for parameter in module.parameters():
            parameter.mul_(2.0)
    asked = SetSpecification("patch-at:1,1,1:1x2@1", epsilon)
    perturbation = asked.build(clip)
    axis = torch.linspace(0, 1, STEPS, dtype=torch.float64)
    clips = clip.repeat(STEPS * STEPS, 1, 1, 1, 1)
    low, high = (side.reshape(clip.shape)[0, 1, 1, 1:3] for side in (perturbation.lower, perturbation.upper))
    clips[:, 0, 1, 1, 1:3] = low + torch.cartesian_prod(axis, axis) * (high - low)
    label = int(random.integers(3))
    property = same_class(label, 3)

    def margins() -> torch.Tensor:
        network = load_model(module, clip.shape).network
        with torch.no_grad():
            return torch.cat([property.margin(network(some)) for some in torch.split(clips, 4096)]).view(STEPS, STEPS)

    values = margins()
    steepest = max(float(values.diff(dim=axis).abs().max()) for axis in (0, 1))
    level, spread = float(values.min()), float(values.max() - values.min())
    distance = max(0.02 * spread, 4 * steepest, 1e-4) * (1 if random.random() < 0.5 else -1)
    with torch.no_grad():
        module[-1].bias[label] += distance - level
    return (
        Query(load_model(module, clip.shape), clip, asked, property),
        "verified" if distance > 0 else "falsified",
        body,
    )


def check(seed: int) -> str:
    query, expected, body = draw(seed)
    outcome = verify(query, CONFIGURATION)
    assert outcome.word in (expected, "unknown"), f"instance {seed}, {body}"
    if isinstance(outcome.verdict, Falsified):
        found = outcome.verdict.counterexample.clip.double().unsqueeze(0)
        assert bool(query.set.build(query.clip).contains(found).all())
    return outcome.word


def test_verdicts_equal_those_of_a_grid() -> None:
    words = Counter(check(seed) for seed in range(8))
    assert words["unknown"] == 0
    assert min(words["verified"], words["falsified"]) >= 2


@pytest.mark.slow
def test_verdict_equals_that_of_a_grid(instance_number: int) -> None:
    assert check(instance_number) != "unknown"
