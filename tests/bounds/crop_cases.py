"""Networks with room for crops: strides, dilations, groups, pooling, blocks, reshapes, on clips of 2x4x9x8."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stbp_milp.network.graph import Network
from stbp_milp.network.model import load_model
from stbp_milp.network.torch_reader import read_module
from stbp_milp.properties import same_class
from stbp_milp.query import Query
from stbp_milp.sets import PerturbationSet, SetSpecification
from tests import enumeration

VOXELS = (4, 9, 8)
CHANNELS = 2


class Blocks(nn.Module):
    """A stem, a block with a plain shortcut, one that halves with a convolution beside it: as in R3D."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(CHANNELS, 3, (1, 3, 3), (1, 2, 1), (0, 1, 1), bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm3d(n) for n in (3, 3, 4, 4))
        self.first = nn.Conv3d(3, 3, (1, 3, 3), padding=(0, 1, 1))
        self.second = nn.Conv3d(3, 4, 3, (2, 1, 2), 1)
        self.beside = nn.Conv3d(3, 4, 1, (2, 1, 2), bias=False)
        for norm in self.norms:
            for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
                tensor.uniform_(-1.0, 1.0)
            norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.stem(x)))
        x = F.relu(self.norms[1](self.first(x)) + x)
        return F.relu(self.norms[2](self.second(x)) + self.norms[3](self.beside(x)))


class Centred(nn.Module):
    """Frames as channels, and the mean over rows taken off: a reshape between shapes and a broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(CHANNELS, 2, (1, 2, 2)), nn.Conv2d(8, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        return F.relu(self.second(x.flatten(1, 2) - 0.5 * x.flatten(1, 2).mean(2, keepdim=True)))


class Joined(nn.Module):
    """Branches side by side as in DenseNet and ShuffleNet: concatenations, slices, a shuffle of channels, padding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(CHANNELS, 2, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(2, 2, 3)
        self.third = nn.Conv3d(6, 2, (1, 2, 2), 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.first(x), 0.2)
        z = F.pad(self.second(F.pad(y, (1, 1, 1, 1, 1, 1), mode="replicate")), (0, 0, 1, -1))
        both = F.channel_shuffle(torch.cat([x, F.hardtanh(z), y[:, :, :, :].flip(4)], 1), 2)
        return F.relu(self.third(both))


class FramesAlone(nn.Module):
    """An image network on every frame, then the frames side by side: frames in place of the batch, axes moved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv2d(CHANNELS, 3, 3, 2), nn.ConvTranspose2d(3, 2, 2, 2)
        self.mixed = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).flatten(0, 1)
        y = F.relu6(self.up(F.relu(self.first(frames))))
        y = F.interpolate(y, scale_factor=(0.5, 2.0), mode="bilinear")
        return F.relu(self.mixed(y.unflatten(0, (-1, 4)).permute(0, 2, 3, 4, 1)))


class Excited(nn.Module):
    """Swish, a convolution gated by another, and a gate of the whole clip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(CHANNELS, 2, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(2, 2, 3)
        self.local, self.gate = nn.Conv3d(2, 2, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x))
        x = self.second(x) * torch.sigmoid(self.local(x))
        return F.relu(x) * torch.sigmoid(self.gate(x.mean((2, 3, 4))))[:, :, None, None, None]


def body(name: str) -> nn.Module:
    c, relu = CHANNELS, nn.ReLU
    bodies: dict[str, list[nn.Module]] = {
        "strided": [nn.Conv3d(c, 3, 3, 2, 1), relu(), nn.Conv3d(3, 2, (1, 3, 2), (1, 2, 1), (0, 1, 0)), relu()],
        "dilated groups": [
            nn.Conv3d(c, 4, (2, 3, 3), dilation=(1, 2, 1), padding=(1, 2, 0), groups=2),
            relu(),
            nn.Conv3d(4, 4, (1, 1, 2), stride=(2, 3, 3), padding=(0, 1, 1), groups=4),
            relu(),
        ],
        "max pooling": [
            nn.Conv3d(c, 2, (1, 3, 3), padding=(0, 1, 1)),
            relu(),
            nn.MaxPool3d((1, 3, 2), (1, 2, 2), (0, 1, 1)),
            nn.Conv3d(2, 2, 3, padding=1),
            relu(),
        ],
        "dilated max pooling": [
            nn.Conv3d(c, 2, 1),
            nn.MaxPool3d((1, 2, 2), 1, (0, 1, 0), (1, 2, 1)),
            nn.Conv3d(2, 1, (2, 3, 1)),
            relu(),
        ],
        "average pooling": [
            nn.Conv3d(c, 2, (1, 2, 2)),
            relu(),
            nn.AvgPool3d((1, 3, 3), 2, (0, 1, 1), count_include_pad=False),
            nn.Conv3d(2, 2, (1, 2, 2)),
            relu(),
        ],
        "blocks": [Blocks()],
        "centred": [Centred()],
        "joined": [Joined()],
        "frames alone": [FramesAlone()],
        "excited": [Excited()],
        "flat norm": [
            nn.Conv3d(c, 2, (2, 3, 3), 2),
            nn.Flatten(),
            nn.LazyBatchNorm1d(),
            relu(),
            nn.LazyLinear(5),
            relu(),
        ],
    }
    return nn.Sequential(*bodies[name])


NAMES = (
    "strided",
    "dilated groups",
    "max pooling",
    "dilated max pooling",
    "average pooling",
    "blocks",
    "centred",
    "joined",
    "frames alone",
    "excited",
    "flat norm",
)


def built(name: str, seed: int) -> nn.Module:
    """The network with three scores, random weights, norms with statistics of random clips."""
    torch.manual_seed(seed)
    module = nn.Sequential(body(name), nn.Flatten(), nn.LazyLinear(3))
    with torch.no_grad():
        module(torch.randn(8, CHANNELS, *VOXELS))
    return module.eval()


def room(name: str, seed: int, text: str = "patch:2x1@1", epsilon: float = 0.3) -> tuple[Network, PerturbationSet]:
    clip = enumeration.random_clip(seed, CHANNELS, VOXELS)
    return read_module(built(name, seed), tuple(clip.shape)), SetSpecification(text, epsilon).build(clip)


def query(name: str, seed: int, text: str, epsilon: float, share: float) -> Query:
    """Does the predicted class stay? Its lead is `share` times what random clips of the set take off it."""
    clip = enumeration.random_clip(seed, CHANNELS, VOXELS)
    module, asked = built(name, seed), SetSpecification(text, epsilon)
    clips = asked.build(clip).sample(200, torch.Generator().manual_seed(seed)).float()
    last, leads = module[-1], same_class(0, 3)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias -= module(clip.float().unsqueeze(0))[0]
        last.bias[0] += share * float(-leads.margin(module(clips)).min())
    return Query(load_model(module, tuple(clip.shape)), clip, asked, leads)
