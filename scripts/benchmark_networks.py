"""The networks of the benchmark: P and Q, trained by the project's own data maker; untrained large ones by name.

P and Q are trained against attacks alone (no sparsity, no stability term), as the networks were that the figures of
other verifiers come from. They are kept under build/benchmark and made again where they are missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from stbp_milp.data import stand_ins as data
from stbp_milp.network.model import Model, load_model
from stbp_milp.st_bench.export import TEST_SEED, write_clips, write_network
from stbp_milp.st_bench.training import Recipe, accuracy, train, video_network

FOLDER = Path("build/benchmark")
Q_SHAPE = (3, 8, 32, 32)


def network_q() -> nn.Module:
    """12,832 ReLUs."""
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Conv3d(8, 16, 3, stride=(1, 2, 2), padding=1),
        nn.BatchNorm3d(16),
        nn.ReLU(),
        nn.AvgPool3d(2),
        nn.Conv3d(16, 16, 3, padding=1),
        nn.BatchNorm3d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, len(data.VIDEO_CLASSES)),
    )


def colour_shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    return data.moving_shapes(count, seed, Q_SHAPE)


ADVERSARIES = (("window:2", 0.1), ("any-frames:2", 0.1), ("patch:3x3@2", 0.2), ("everywhere", 0.03))
RECIPES = {
    "P": Recipe("P", data.moving_shapes, video_network, F.cross_entropy, ADVERSARIES, steps=1000, clips=20, seed=1),
    "Q": Recipe("Q", colour_shapes, network_q, F.cross_entropy, ADVERSARIES, steps=500, clips=20, seed=1, batch=48),
}


def trained(name: str, console: Console) -> tuple[Model, Tensor, Tensor]:
    """Network P or Q, 20 clips `(20, C, T, H, W)` in float64 that it gets right, and their labels."""
    path = FOLDER / f"{name}.onnx"
    if not path.exists():
        recipe = RECIPES[name]
        steps = iter(track(range(recipe.steps), description=f"training {name}", console=console))
        network = train(recipe, lambda loss: next(steps, None))  # type: ignore[arg-type,return-value]
        clips, labels = recipe.maker(500, TEST_SEED)
        console.print(f"{name}: {accuracy(network, clips, labels)} on 500 test clips")
        with torch.no_grad():
            right = (network(clips).argmax(1) == labels).nonzero().flatten()[: recipe.clips]
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_clips(clips[right], labels[right], FOLDER / f"{name}_clips.npz")
        write_network(network, clips[:2], path)
    content = np.load(FOLDER / f"{name}_clips.npz")
    return load_model(path), torch.from_numpy(content["clips"]).double(), torch.from_numpy(content["labels"])


# --- large networks, untrained: their time and memory is what counts --------------------------------------------


def c3d() -> nn.Module:
    """Like C3D (Tran et al. 2015) on 3x16x112x112: 8 convolutions, 5 poolings, 3 linear layers, 78 M parameters."""
    widths = (64, 128, 256, 256, 512, 512, 512, 512)
    layers: list[nn.Module] = []
    before = 3
    for i, width in enumerate(widths):
        layers += [nn.Conv3d(before, width, 3, padding=1), nn.ReLU()]
        before = width
        if i == 0:
            layers.append(nn.MaxPool3d((1, 2, 2), (1, 2, 2)))
        elif i in (1, 3, 5):
            layers.append(nn.MaxPool3d(2, 2))
        elif i == 7:
            layers.append(nn.MaxPool3d(2, 2, padding=(0, 1, 1)))
    layers += [nn.Flatten(), nn.Linear(8192, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 101)]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv3d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.Conv3d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm3d(width),
        )
        same = before == width and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv3d(before, width, 1, stride, bias=False), nn.BatchNorm3d(width))
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.relu(self.path(x) + self.shortcut(x))
        return value


def r3d() -> nn.Module:
    """Like R3D-18 (Tran et al. 2018) on 3x16x112x112: a stem and 8 residual blocks, 33 M parameters."""
    layers: list[nn.Module] = [
        nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
        nn.BatchNorm3d(64),
        nn.ReLU(),
    ]
    before = 64
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers.append(_Block(before, width, stride))
        before = width
    layers += [nn.AvgPool3d((2, 7, 7)), nn.Flatten(), nn.Linear(512, 101)]
    return nn.Sequential(*layers)


LARGE = {"C3D-like": c3d, "R3D-18-like": r3d}
