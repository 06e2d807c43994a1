"""The procedural clips that networks are trained on, and the adversary of their training."""

from __future__ import annotations

import pytest
import torch

from stbp_milp.data.stand_ins import STEERING_SHAPE, VIDEO_SHAPE, VOLUME_SHAPE, moving_shapes, organs, roads
from stbp_milp.sets import parse_set
from stbp_milp.st_bench.adversary import Adversary, climb
from stbp_milp.st_bench.training import Maker


@pytest.mark.parametrize(
    ("maker", "shape"), [(moving_shapes, VIDEO_SHAPE), (organs, VOLUME_SHAPE), (roads, STEERING_SHAPE)]
)
def test_makers_are_deterministic(maker: Maker, shape: tuple[int, ...]) -> None:
    first, targets = maker(6, 3)
    again, same_targets = maker(6, 3)
    other, _ = maker(6, 4)
    assert first.shape == (6, *shape)
    assert torch.equal(first, again)
    assert torch.equal(targets, same_targets)
    assert not torch.equal(first, other)
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1


def test_single_frames_do_not_tell_the_motion() -> None:
    """Frame by frame, all four classes have the same mean picture up to chance; over time they differ."""
    made, labels = moving_shapes(4000, 5)
    means = torch.stack([made[labels == c].mean(0) for c in range(4)])  # (4, 1, T, H, W)
    assert float((means - means.mean(0)).abs().max()) < 0.06
    change = (made[:, 0, 1:, :, 1:] * made[:, 0, :-1, :, :-1]).mean((1, 2, 3))  # correlates with moving right
    back = (made[:, 0, 1:, :, :-1] * made[:, 0, :-1, :, 1:]).mean((1, 2, 3))
    right = change > back
    assert float(right[labels == 1].float().mean()) > 0.95
    assert float(right[labels == 0].float().mean()) < 0.05


@pytest.mark.parametrize("text", ["window:2", "patch:3x3@2", "pixels-per-frame:1"])
def test_training_adversary_stays_in_the_set(text: str) -> None:
    made, labels = moving_shapes(4, 0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(made[0].numel(), 4))
    choice = parse_set(text, (8, 16, 16))
    generator = torch.Generator().manual_seed(0)
    moved = climb(network, torch.nn.functional.cross_entropy, made, labels, Adversary(choice, 0.1), generator)
    changed = (moved != made).any(1).float()
    assert torch.equal(choice.total(changed.unsqueeze(0)).squeeze(0), changed.sum((1, 2, 3)))
    assert float((moved - made).abs().max()) <= 0.1 + 1e-6
    assert float(changed.sum()) > 0
