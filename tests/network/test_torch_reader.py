"""`read_module` equals the module, for every small module; what has no rule is named.

By hand: the network read from `relu(x - 1)` maps 3 to 2 and 0 to 0.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from stbp_milp.errors import InputError, UnsupportedLayerError
from stbp_milp.network.layers import Convolution, ReLU
from stbp_milp.network.torch_reader import read_module
from tests.network.small_modules import MODULES, Forward, build

DOUBLE = {"rtol": 1e-10, "atol": 1e-10}


def agree(module: nn.Module, shape: tuple[int, ...], clips: int = 3) -> None:
    network = read_module(module, shape)
    x = torch.randn(clips, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert network.input_shape == shape
    with torch.no_grad():
        torch.testing.assert_close(network(x), copy.deepcopy(module).double().eval()(x.clone()), **DOUBLE)


def test_by_hand() -> None:
    network = read_module(Forward(lambda self, x: F.relu(x - 1.0)), (1,))
    assert network(torch.tensor([[3.0], [0.0]])).tolist() == [[2.0], [0.0]]


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", MODULES)
def test_network_equals_the_module(name: str) -> None:
    agree(*build(name))


@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.booleans())
def test_max_pool(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> None:
    assume(padding <= kernel // 2)
    assume(size + 2 * padding >= dilation * (kernel - 1) + 1)
    pool = nn.Sequential(
        nn.MaxPool2d((kernel, 1), (stride, 1), (padding, 0), (dilation, 1), ceil_mode=ceil), nn.Flatten()
    )
    assume(bool(torch.isfinite(pool(torch.zeros(1, 2, size, 2))).all()))  # else a window covers padding alone
    agree(pool, (2, size, 2))


@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.booleans())
def test_average_pool(size: int, kernel: int, stride: int, padding: int, ceil: bool, count: bool) -> None:
    assume(padding <= kernel // 2)
    assume(size + 2 * padding >= kernel)
    pool = nn.AvgPool2d((kernel, 1), (stride, 1), (padding, 0), ceil_mode=ceil, count_include_pad=count)
    agree(nn.Sequential(pool, nn.Flatten()), (2, size, 2))


def test_max_pool_window_in_the_padding_alone() -> None:
    with pytest.raises(InputError, match="lies in the padding alone"):
        read_module(nn.MaxPool1d(2, padding=1, dilation=2), (1, 1))


def test_no_relu_where_a_window_has_one_voxel() -> None:
    network = read_module(nn.Sequential(nn.MaxPool2d((1, 2)), nn.Flatten()), (1, 3, 4))
    assert [network.nodes[i].shape for i in network.relus] == [(1, 3, 2)]


def test_module_is_left_as_it_was() -> None:
    module = nn.Sequential(nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.Dropout(), nn.Flatten()).train()
    before = copy.deepcopy(module.state_dict())
    network = read_module(module, (1, 4))
    assert all(child.training for child in module.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    x = torch.ones(1, 1, 4, dtype=torch.float64)
    first = network(x)
    with torch.no_grad():
        module[0].weight.zero_()
    assert torch.equal(network(x), first)


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


UNSUPPORTED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "module": (nn.Sequential(nn.Linear(2, 2), nn.Softshrink(), nn.Softshrink()), (2,), r"Softshrink \(6 nodes, .*'1'"),
    "function": (Forward(lambda self, x: torch.sin(x)), (2,), r"sin \(node 'sin'\)"),
    "method": (Forward(lambda self, x: x.atan()), (2,), r"atan \(node 'atan'\)"),
    "power": (Forward(lambda self, x: x**2.5), (2,), "the exponent is 2.5"),
    "batch_mean": (Forward(lambda self, x: x - x.mean(0)), (2,), "batch axis"),
    "batch_statistics": (nn.BatchNorm1d(2, track_running_stats=False), (2,), "cannot follow BatchNorm1d"),
    "branches": (Branches(), (2,), "cannot follow Branches"),
    "indices": (nn.MaxPool1d(2, return_indices=True), (1, 4), "indices"),
    "random": (Forward(lambda self, x: x + torch.rand_like(x)), (2,), "rand_like"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported(name: str) -> None:
    module, shape, message = UNSUPPORTED[name]
    with pytest.raises(UnsupportedLayerError, match=message):
        read_module(module, shape)


def test_unsupported_lists_what_is_supported() -> None:
    with pytest.raises(UnsupportedLayerError, match="Supported are: convolutions"):
        read_module(Forward(lambda self, x: torch.sin(x)), (2,))


def test_division_by_zero() -> None:
    with pytest.raises(InputError, match="zero"):
        read_module(Forward(lambda self, x: x / 0.0), (2,))


def test_two_outputs() -> None:
    with pytest.raises(InputError, match="returns 2 tensors"):
        read_module(Forward(lambda self, x: (x, x)), (2,))


def test_repeated_module_gets_the_name_of_each_place() -> None:
    shared = nn.Linear(2, 2)
    network = read_module(nn.Sequential(shared, nn.ReLU(), shared), (2,))
    assert [node.name for node in network.nodes] == ["input", "0", "1", "2"]
    assert isinstance(network.nodes[2].layer, ReLU)


def test_parametrised_weights_are_those_the_module_computes() -> None:
    """In float32, that is: the same formula in float64 would give other weights than the ones that predict."""
    torch.manual_seed(0)
    convolution = nn.utils.parametrizations.weight_norm(nn.Conv3d(1, 2, 2))
    network = read_module(nn.Sequential(convolution, nn.Flatten()), (1, 2, 3, 3))
    layer = network.nodes[1].layer
    assert isinstance(layer, Convolution)
    assert torch.equal(layer.weight.float(), convolution.weight)
