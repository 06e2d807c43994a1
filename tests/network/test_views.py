"""Inputs of any rank are clips: the same numbers in the same order, the same scores.

By hand: the image (2, 3, 4) is the clip (2, 1, 3, 4); the series (2, 5) has 5 frames of one pixel; (7,) is a row.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stbp_milp.network.model import load_model
from stbp_milp.network.views import as_clip, clip_shape, on_clips
from stbp_milp.verify import verify_clip

MODULES = {
    "flat": (nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2)), (7,)),
    "column": (nn.Sequential(nn.Flatten(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 2)), (7, 1)),
    "series": (nn.Sequential(nn.Conv1d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)), (2, 5)),
    "image": (nn.Sequential(nn.Conv2d(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (2, 3, 4)),
    "video": (nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (1, 2, 3, 4)),
}
each_module = pytest.mark.parametrize("name", MODULES)


@pytest.mark.parametrize(
    ("shape", "clip"),
    [
        ((7,), (1, 1, 1, 7)),
        ((784, 1), (1, 1, 1, 784)),
        ((2, 5), (2, 5, 1, 1)),
        ((2, 3, 4), (2, 1, 3, 4)),
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ((1, 1, 2, 3, 4), (1, 1, 1, 24)),
    ],
)
def test_by_hand(shape: tuple[int, ...], clip: tuple[int, ...]) -> None:
    assert clip_shape(shape) == clip


@each_module
def test_network_and_original_agree_on_clips(name: str) -> None:
    module, shape = MODULES[name]
    model = load_model(module, shape)
    assert model.network.input_shape == clip_shape(shape)
    inputs = np.random.default_rng(1).random((3, *shape), dtype=np.float32)
    clips = inputs.reshape(3, *clip_shape(shape))
    with torch.no_grad():
        expected = module(torch.from_numpy(inputs)).numpy()
    np.testing.assert_array_equal(model.predict(clips), expected)
    np.testing.assert_allclose(model.network(torch.from_numpy(clips).double()).numpy(), expected, atol=1e-5)


def test_a_network_of_clips_stays_as_it_is() -> None:
    network = load_model(*MODULES["video"]).network
    assert on_clips(network) is network


@pytest.mark.parametrize(
    ("shape", "wanted", "fits"),
    [
        ((1, 3, 4, 5), (3, 1, 4, 5), True),
        ((1, 1, 1, 7), (1, 1, 1, 7), True),
        ((1, 1, 4, 5), (1, 1, 4, 5), True),
        ((4, 5, 6, 1), (1, 4, 5, 6), False),  # channels last
        ((1, 3, 5, 4), (3, 1, 4, 5), False),
        ((1, 1, 1, 12), (3, 1, 4, 1), False),
    ],
)
def test_only_axes_of_length_one_in_front_are_moved(
    shape: tuple[int, ...], wanted: tuple[int, ...], fits: bool
) -> None:
    array = torch.arange(float(np.prod(shape))).reshape(shape)
    found = as_clip(array, wanted)
    assert found.shape == (wanted if fits else shape)
    assert torch.equal(found.flatten(), array.flatten())


@each_module
def test_every_rank_is_verified(name: str) -> None:
    module, shape = MODULES[name]
    torch.manual_seed(0)
    tiny = verify_clip(module, torch.rand(shape), "everywhere", 1e-4)
    assert tiny.word == "verified"
    assert verify_clip(module, torch.full(shape, 0.5), "pixels:1", 0.0).word == "verified"
