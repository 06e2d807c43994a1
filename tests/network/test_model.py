"""A model is its network and its original, checked against each other when loaded."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stbp_milp.errors import InputError
from stbp_milp.network import model as model_module
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Linear, Scale
from stbp_milp.network.model import load_model
from stbp_milp.network.torch_reader import read_module


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))


def test_module_predicts_in_eval_mode_and_stays_in_training() -> None:
    module = small().train()
    model = load_model(module, (1, 2, 2, 2))
    clips = np.random.default_rng(0).random((4, 1, 2, 2, 2), dtype=np.float32)
    scores = model.network(torch.from_numpy(clips).double()).numpy()
    np.testing.assert_allclose(model.predict(clips), scores, atol=1e-5)
    assert module.training
    assert int(module[1].num_batches_tracked) == 0
    assert model.network.dtype is torch.float64
    assert model.name == "Sequential"


def test_digest_tells_weights_and_graphs_apart() -> None:
    first = load_model(small(), (1, 2, 2, 2))
    changed = small()
    with torch.no_grad():
        changed[4].bias[0] += 1e-6
    assert load_model(small(), (1, 2, 2, 2)).digest == first.digest
    assert load_model(changed, (1, 2, 2, 2)).digest != first.digest
    assert load_model(nn.Sequential(*small()[:3], nn.ReLU(), *small()[3:]), (1, 2, 2, 2)).digest != first.digest


def test_module_needs_an_input_shape() -> None:
    with pytest.raises(InputError, match="give input_shape"):
        load_model(small())


def test_model_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_model(small(), (1, 2, 2, 2)).name = "other"  # type: ignore[misc]


def test_wrong_reading_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that adds 0.01 to score 1 of 2 must not get through."""

    def misread(module: nn.Module, input_shape: tuple[int, ...]) -> object:
        wrong = nn.Sequential(module, nn.Linear(2, 2))
        with torch.no_grad():
            wrong[1].weight.copy_(torch.eye(2))
            wrong[1].bias.copy_(torch.tensor([0.0, 0.01]))
        return read_module(wrong, input_shape)

    monkeypatch.setattr(model_module, "read_module", misread)
    with pytest.raises(InputError, match=r"disagrees with the original at output 1 .*difference 0\.01"):
        load_model(nn.Linear(3, 2), (3,))


def test_batch_norm_is_a_scale() -> None:
    network = load_model(small(), (1, 2, 2, 2)).network
    assert isinstance(network.nodes[2].layer, Scale)


@pytest.mark.parametrize("frames", [4, 8])
def test_published_video_networks_know_their_clips(data: Path, frames: int) -> None:
    path = data / "zoom_video" / f"zoomin_{frames}f.onnx"
    model = load_model(path)
    with np.load(data / "zoom_video" / f"zoomin_{frames}f_clips.npz") as file:
        clips, labels = file["clips"].astype(np.float32) / 255.0, file["labels"]
    assert model.network.input_shape == (1, frames, 32, 32)
    assert (model.network(torch.from_numpy(clips).double()).argmax(1).numpy() == labels).all()
    assert (model.predict(clips).argmax(1) == labels).all()
    assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_published_flat_network(data: Path) -> None:
    model = load_model(data / "vnncomp" / "mnist-net_256x2.onnx.gz")
    assert model.network.input_shape == (1, 1, 1, 784)  # the file says (1, 784, 1)
    assert model.name == "mnist-net_256x2"
    assert len(model.network.relus) == 2
    clips = np.random.default_rng(0).random((3, 1, 1, 1, 784), dtype=np.float32)
    scores = model.network(torch.from_numpy(clips).double()).numpy()
    np.testing.assert_allclose(model.predict(clips), scores, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("error", [0.0, 1e-6])
def test_a_reading_is_checked_as_sharply_at_every_scale(scale: float, error: float) -> None:
    """Relative to the numbers that went into a score: a weight that is off by a millionth is seen, rounding is not."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv3d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        module[3].weight.mul_(scale)
        module[3].bias.mul_(scale)
    model = load_model(module, (1, 2, 2, 2))
    last = model.network.nodes[-1]
    assert isinstance(last.layer, Linear)
    weight = last.layer.weight.clone()
    weight[1, 2] *= 1 + error
    changed = dataclasses.replace(last, layer=Linear(weight, last.layer.bias))
    read = dataclasses.replace(model, network=Network((*model.network.nodes[:-1], changed)))
    clips = np.random.default_rng(0).random((4, 1, 2, 2, 2), dtype=np.float32) * 0.5 + 0.5
    found = read.compared(clips)
    assert (found.disagreement is not None) == (error > 0)
    assert found.largest <= 1e-12 or error > 0


def test_a_score_that_cancels_is_not_asked_for_digits_that_it_does_not_have() -> None:
    """The order of a sum of large numbers decides the last digits of a small score; that is no misreading."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).double()
    with torch.no_grad():
        module[1].weight.mul_(1e9)
        module[3].weight[0] = 1e3
        module[3].weight[1] = -1e3
    model = load_model(module, (1, 4, 4, 4))
    assert model.compared(np.random.default_rng(0).random((8, 1, 4, 4, 4), dtype=np.float32)).disagreement is None
