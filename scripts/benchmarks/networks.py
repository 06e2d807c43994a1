"""The networks of the benchmark: P and Q, trained by the project's own data maker; untrained large ones by name.

P and Q are trained against attacks alone (no sparsity, no stability term), as the networks were that the figures of
other verifiers come from. They are kept under build/benchmark and made again where they are missing.
"""

from __future__ import annotations

from collections.abc import Callable
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
from stbp_milp.st_bench.networks import c3d, network_q, r3d, video_network
from stbp_milp.st_bench.training import Recipe, accuracy, train

FOLDER = Path("build/benchmark")
Q_SHAPE = (3, 8, 32, 32)


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
        network = train(recipe, lambda loss: next(steps, None))  # type: ignore[arg-type]
        clips, labels = recipe.maker(500, TEST_SEED)
        console.print(f"{name}: {accuracy(network, clips, labels)} on 500 test clips")
        with torch.no_grad():
            right = (network(clips).argmax(1) == labels).nonzero().flatten()[: recipe.clips]
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_clips(clips[right], labels[right], FOLDER / f"{name}_clips.npz")
        write_network(network, clips[:2], path)
    content = np.load(FOLDER / f"{name}_clips.npz")
    return load_model(path), torch.from_numpy(content["clips"]).double(), torch.from_numpy(content["labels"])


# Untrained: their time and memory is what counts.
LARGE: dict[str, Callable[[], nn.Module]] = {"C3D-like": c3d, "R3D-18-like": r3d}
