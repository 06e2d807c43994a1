"""Inputs of any rank are clips: the same numbers, the same scores; what could be two clips is refused.

By hand: the image (2, 3, 4) is the clip (2, 1, 3, 4); the series (2, 5) has 5 frames of one pixel; (7,) is a row. With
its channels last, (4, 5, 6, 1) is a clip of one channel and four frames, and value (t, i, j, 0) is voxel (0, t, i, j).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stbp_milp.errors import InputError
from stbp_milp.network.graph import NetworkBuilder
from stbp_milp.network.layers import Convolution, Input, Reshape, Select
from stbp_milp.network.model import load_model
from stbp_milp.network.views import LAYOUTS, Axes, as_clip, clip_shape, convolved_layouts, on_clips, undecided
from stbp_milp.question import DataFormat
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
    ("shape", "own", "fits"),
    [
        ((1, 3, 4, 5), (3, 4, 5), True),
        ((1, 3, 4, 5), (3, 1, 4, 5), True),
        ((1, 1, 1, 7), (1, 1, 1, 7), True),
        ((1, 1, 4, 5), (1, 1, 4, 5), True),
        ((4, 5, 6, 1), (1, 4, 5, 6), False),  # channels last
        ((1, 3, 5, 4), (3, 1, 4, 5), False),
        ((1, 1, 1, 12), (3, 1, 4, 1), False),
    ],
)
def test_only_axes_of_length_one_in_front_are_moved(shape: tuple[int, ...], own: tuple[int, ...], fits: bool) -> None:
    array = torch.arange(float(np.prod(shape))).reshape(shape)
    found = as_clip(array, Axes.of(own))
    assert found.shape == (Axes.of(own).clip if fits else shape)
    assert torch.equal(found.flatten(), array.flatten())


@each_module
def test_every_rank_is_verified(name: str) -> None:
    module, shape = MODULES[name]
    torch.manual_seed(0)
    tiny = verify_clip(module, torch.rand(shape), "everywhere", 1e-4)
    assert tiny.word == "verified"
    layout = "CHW" if name == "image" else None  # two channels may be two frames
    assert (
        verify_clip(module, torch.full(shape, 0.5), "pixels:1", 0.0, data=DataFormat(layout=layout)).word == "verified"
    )


# --- layouts ----------------------------------------------------------------------------------------------

_LENGTHS = {"C": 2, "T": 3, "H": 4, "W": 5}


def _sums(count: int) -> nn.Module:
    """Two scores that see every input with a weight of its own."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(count, 2)).double()
    with torch.no_grad():
        module[1].weight.copy_(torch.linspace(-1, 1, 2 * count).reshape(2, count))
    return module


class Grey(nn.Module):
    """Inputs with one channel, wherever its axis is: tools that keep channels last move it by a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x.reshape(-1, 1, 4, 3, 5) * 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_moves_values_to_their_axes(layout: str) -> None:
    shape = tuple(_LENGTHS[axis] for axis in layout)
    module = _sums(int(np.prod(shape)))
    model = load_model(module, shape, layout.lower())
    lengths = tuple(_LENGTHS[axis] if axis in layout else 1 for axis in "CTHW")
    assert model.network.input_shape == model.axes.clip == lengths
    clips = torch.rand((2, *lengths), dtype=torch.float64)
    own = torch.einsum(f"ncthw->n{layout.lower()}{''.join(set('cthw') - set(layout.lower()))}", clips)
    with torch.no_grad():
        expected = module(own.reshape(2, *shape)).numpy()
    np.testing.assert_allclose(model.predict(clips.numpy()), expected, rtol=1e-6)
    np.testing.assert_allclose(model.network(clips).numpy(), expected, rtol=1e-6)
    array = model.axes.to_model(clips[0])
    assert array.shape == shape
    assert torch.equal(model.axes.from_model(array), clips[0])
    assert torch.equal(as_clip(array, model.axes), clips[0])
    assert torch.equal(as_clip(clips[0], model.axes), clips[0])


@pytest.mark.parametrize(
    ("module", "shape", "settled"),
    [
        (MODULES["video"][0], (1, 2, 3, 4), ("CTHW",)),
        (Grey(), (4, 3, 5, 1), ("THWC",)),
        (Grey(), (4, 1, 3, 5), ("TCHW",)),
        (Grey(), (4, 3, 5), ("THW",)),
        (MODULES["image"][0], (2, 3, 4), ("CHW",)),
        (MODULES["series"][0], (2, 5), ("CT",)),
        (MODULES["flat"][0], (7,), ()),
        (_sums(24), (1, 2, 3, 4), ()),
    ],
)
def test_a_convolution_says_where_the_channels_are(
    module: nn.Module, shape: tuple[int, ...], settled: tuple[str, ...]
) -> None:
    assert load_model(module, shape).axes.convolved == settled


def test_a_transposition_that_the_layout_undoes_is_gone() -> None:
    """Channels last, (3, 4, 5, 2), that the network itself moves to the front before it convolves."""
    axes, size = Axes.of((3, 4, 5, 2), "THWC"), 120
    order = axes.from_model(torch.arange(size).reshape(axes.shape)).flatten()
    builder = NetworkBuilder(axes.shape)
    moved = builder.add("moved", Select(0, order), builder.add("row", Reshape((size,)), "input"))
    clip = builder.add("clip", Reshape(axes.clip), moved)
    convolution = Convolution(torch.ones(1, 2, 2, 2, 2), torch.zeros(1), (1, 1, 1), ((0, 0),) * 3, (1, 1, 1))
    builder.add("flat", Reshape((24,)), builder.add("convolved", convolution, clip))
    network = builder.build("flat")
    assert convolved_layouts(network) == ("THWC",)
    seen = on_clips(network, axes)
    assert [type(node.layer) for node in seen.nodes] == [Input, Convolution, Reshape]
    clips = torch.rand(2, *axes.clip)
    assert torch.equal(seen(clips), network(axes.to_model(clips)))


PATCH, FRAMES, PIXELS = "patch:1x1@1", "frames:0", "pixels:2"


@pytest.mark.parametrize(
    ("module", "shape", "set_text", "named"),
    [
        (Grey(), (4, 3, 5, 1), FRAMES, "THWC"),
        (Grey(), (4, 1, 3, 5), PATCH, "TCHW"),
        (Grey(), (4, 3, 5), PIXELS, "THW"),
        (_sums(60), (4, 3, 5, 1), FRAMES, "THWC"),
        (_sums(60), (4, 1, 3, 5), PATCH, "TCHW"),
        (_sums(81), (3, 3, 3, 3), FRAMES, "TCHW"),
        (_sums(120), (5, 2, 4, 3), FRAMES, "TCHW"),
        (_sums(60), (4, 3, 5), PIXELS, "THW"),
        (_sums(75), (5, 5, 3), PIXELS, "HWC"),
        (MODULES["image"][0], (2, 3, 4), FRAMES, "THW"),
        (_sums(12), (3, 4), PIXELS, "TC"),
        (_sums(7), (7, 1), FRAMES, "TC"),
    ],
)
def test_two_clips_that_one_input_can_be_are_not_guessed(
    module: nn.Module, shape: tuple[int, ...], set_text: str, named: str
) -> None:
    clip = torch.full(shape, 0.5)
    with pytest.raises(InputError, match=named):
        verify_clip(module, clip, set_text, 0.0)
    assert undecided(Axes.of(shape), "everywhere") is None
    assert verify_clip(module, clip, set_text, 0.0, data=DataFormat(layout=named)).word == "verified"


@pytest.mark.parametrize(
    ("module", "shape", "set_text"),
    [
        (MODULES["video"][0], (1, 2, 3, 4), FRAMES),
        (nn.Sequential(nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(8, 2)), (3, 3, 3), PATCH),
        (MODULES["series"][0], (2, 5), FRAMES),
        (_sums(36), (1, 4, 3, 3), FRAMES),
        (_sums(7), (7,), PIXELS),
    ],
)
def test_what_only_one_clip_can_be_needs_no_name(module: nn.Module, shape: tuple[int, ...], set_text: str) -> None:
    assert verify_clip(module, torch.full(shape, 0.5), set_text, 0.0).word == "verified"


def test_the_layout_decides_which_values_a_frame_is() -> None:
    """Of a clip with 3 frames and 3 channels, class 0 leads by value 1 in memory."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(9, 2, bias=False)).double()
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].weight[0, 1] = 1.0  # axes (0, 1): frame 0 and channel 1, or channel 0 and frame 1
    clip = torch.full((3, 3, 1, 1), 0.5)
    words = {
        (layout, frame): verify_clip(module, clip, f"frames:{frame}", 0.75, data=DataFormat(layout=layout)).word
        for layout in ("CTHW", "TCHW")
        for frame in (0, 1)
    }
    assert words[("TCHW", 1)] == words[("CTHW", 0)] == "verified"
    assert words[("TCHW", 0)] == words[("CTHW", 1)] == "falsified"


@pytest.mark.parametrize(
    ("layout", "says"), [("XYZ", "CTHW, TCHW"), ("CHW", "names 3 axes"), ("", "not understood"), (4, "not understood")]
)
def test_layouts_that_cannot_be_meant(layout: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_model(_sums(24), (1, 2, 3, 4), layout)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "shape", "layout", "fits"),
    [
        (nn.Conv3d(3, 2, 2), (3, 3, 3, 3), "CTHW", True),
        (nn.Conv3d(3, 2, 2), (3, 3, 3, 3), "THWC", False),
        (nn.Conv3d(3, 2, 2), (3, 3, 3, 3), "TCHW", False),
        (nn.Conv2d(3, 2, 2), (3, 3, 3), "CHW", True),
        (nn.Conv2d(3, 2, 2), (3, 3, 3), "THW", True),  # frames as the channels of an image
        (nn.Conv2d(3, 2, 2), (3, 3, 3), "HWC", False),
        (nn.Conv1d(3, 2, 2), (3, 3), "TC", False),
    ],
)
def test_a_layout_must_not_contradict_the_first_convolution(
    layer: nn.Module, shape: tuple[int, ...], layout: str, fits: bool
) -> None:
    module = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(2)).eval()
    module(torch.zeros(1, *shape))
    if fits:
        assert load_model(module, shape, layout).axes.layout == layout
        return
    with pytest.raises(InputError, match="contradicts the first convolution"):
        load_model(module, shape, layout)


def test_more_than_four_axes_have_no_names() -> None:
    with pytest.raises(InputError, match="so many axes"):
        verify_clip(_sums(24), torch.full((1, 1, 2, 3, 4), 0.5), FRAMES, 0.0)
    with pytest.raises(InputError, match="have none"):
        load_model(_sums(24), (1, 1, 2, 3, 4), "CTHW")
