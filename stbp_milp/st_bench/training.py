"""The three networks of the demonstration and how they are trained: against the sets they are later verified on.

Plain training gives networks that a handful of pixels fool, and nothing to prove. Here every batch meets an
adversary that chooses a cover of some set (partly at random, so that it is not the same place every time) and climbs
the loss inside it; its budget grows during the first part of the training.

Adversarial training makes networks robust, not easy to prove so: their relaxations are loose long before attacks
succeed. The video network, which the benchmarks use, is therefore also trained for sparse weights and stable ReLUs
(Xiao, Tjeng, Shafiullah, Madry 2019, Training for Faster Adversarial Robustness Verification), as models that somebody
must sign off would be; no bound of this project takes part in the training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stbp_milp.data import stand_ins as data
from stbp_milp.sets import Choice, parse_set


class VolumeNetwork(nn.Module):
    """Convolution, average pooling, a residual block, max pooling; batch normalisation throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, 4, 3, stride=2, padding=1), nn.BatchNorm3d(4), nn.ReLU())
        self.shrink = nn.AvgPool3d((1, 2, 2))
        self.block = nn.Sequential(
            nn.Conv3d(4, 4, 3, padding=1),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.Conv3d(4, 4, 3, padding=1),
            nn.BatchNorm3d(4),
        )
        self.head = nn.Sequential(nn.MaxPool3d(2), nn.ReLU(), nn.Flatten(), nn.Linear(48, len(data.VOLUME_CLASSES)))

    def forward(self, clips: Tensor) -> Tensor:
        value = self.shrink(self.stem(clips))
        scores: Tensor = self.head(value + self.block(value))
        return scores


class SteeringNetwork(nn.Module):
    """Strided convolutions between two scalings: pixels to `[-1, 1]`, the angle to degrees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv3d(8, 12, (2, 3, 3), stride=(2, 2, 2), padding=(0, 1, 1)),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(288, 16),
            nn.ReLU(),
            nn.Linear(16, 1),
        )

    def forward(self, clips: Tensor) -> Tensor:
        angle: Tensor = self.layers((clips - 0.5) * 2.0) * data.STEERING_LIMIT
        return angle


def video_network() -> nn.Module:
    """1,312 ReLUs: what the benchmarks call network P."""
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv3d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, len(data.VIDEO_CLASSES)),
    )


_STABLE_WITHIN = 0.02  # radius that the stability term asks ReLUs to be stable in

Maker = Callable[[int, int], tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """A network and its training.

    Attributes:
        maker: draws `(clips, targets)` from `(count, seed)`.
        network: builds the untrained network.
        adversaries: sets in words, each with the largest radius of the training.
        steps: batches of fresh clips.
        clips: how many test clips are shipped.
        sparsity: weight of the sum of absolute weights in the loss.
        stability: weight of `-tanh(1 + l u)`, averaged over ReLUs with operands in [l, u] (Xiao et al. 2019, eq. 5).
    """

    name: str
    maker: Maker
    network: Callable[[], nn.Module]
    loss: Loss
    adversaries: tuple[tuple[str, float], ...]
    steps: int
    clips: int
    seed: int
    rate: float = 4e-3
    batch: int = 128
    sparsity: float = 0.0
    stability: float = 0.0


def _angle_loss(angle: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(angle / data.STEERING_LIMIT, target / data.STEERING_LIMIT, beta=0.05) * 4


RECIPES = (
    Recipe(
        "video",
        data.moving_shapes,
        video_network,
        F.cross_entropy,
        (("window:2", 0.1), ("any-frames:2", 0.1), ("patch:3x3@2", 0.2), ("everywhere", 0.03)),
        steps=1000,
        clips=20,
        seed=1,
        sparsity=1e-3,
        stability=0.1,
    ),
    Recipe(
        "volume",
        data.organs,
        VolumeNetwork,
        F.cross_entropy,
        (("window:2", 0.1), ("patch:3x3@2", 0.3), ("everywhere", 0.03), ("pixels-per-frame:1", 0.3)),
        steps=700,
        clips=10,
        seed=2,
    ),
    Recipe(
        "steering",
        data.roads,
        SteeringNetwork,
        _angle_loss,
        (("frames:3", 0.1), ("moving-patch:3x3@2", 0.5), ("everywhere", 0.02), ("pixels:5", 0.5)),
        steps=600,
        clips=10,
        seed=3,
    ),
)


def train(recipe: Recipe, advance: Callable[[float], None]) -> nn.Module:
    """The trained network in evaluation mode; `advance` gets the loss after every step."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    network = recipe.network()
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps, pct_start=0.1)
    voxels = recipe.maker(1, 0)[0].shape[2:]
    adversaries = [(parse_set(text, (voxels[0], voxels[1], voxels[2])), radius) for text, radius in recipe.adversaries]
    for step in range(recipe.steps):
        clips, targets = recipe.maker(recipe.batch, 1_000_003 * recipe.seed + step)
        choice, radius = adversaries[step % len(adversaries)]
        radius *= min(1.0, max(0.0, step / (0.5 * recipe.steps) - 0.1))
        network.eval()
        attacked = climb(network, recipe.loss, clips, targets, choice, radius, generator)
        # Batch statistics stay as they are in the second half: that is the network that is exported.
        network.train(2 * step < recipe.steps)
        optimiser.zero_grad()
        on_attacked, on_clean = network(torch.cat([attacked, clips])).chunk(2)
        value = recipe.loss(on_attacked, targets) + 0.5 * recipe.loss(on_clean, targets)
        ramp = min(1.0, 2 * step / recipe.steps)
        if recipe.sparsity:
            value = value + ramp * recipe.sparsity * _absolute_weights(network)
        if recipe.stability:
            value = value + ramp * recipe.stability * _instability(network, clips, ramp * _STABLE_WITHIN)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        advance(float(value.detach()))
    return network.eval()


def _absolute_weights(network: nn.Module) -> Tensor:
    weights = [parameter.abs().sum() for parameter in network.parameters() if parameter.dim() > 1]
    return torch.stack(weights).sum()


def _instability(network: nn.Module, clips: Tensor, radius: float) -> Tensor:
    """Mean `-tanh(1 + l u)` over the ReLUs of a sequential network, with intervals around every voxel +-radius."""
    assert isinstance(network, nn.Sequential)
    lower, upper = (clips - radius).clamp(min=0), (clips + radius).clamp(max=1)
    penalties = []
    for layer in network:
        if isinstance(layer, nn.ReLU):
            penalties.append(-torch.tanh(1 + lower * upper).mean())
        if isinstance(layer, nn.Conv3d | nn.Linear):
            centre, reach = layer((lower + upper) / 2), (upper - lower) / 2
            if isinstance(layer, nn.Conv3d):
                reach = F.conv3d(reach, layer.weight.abs(), None, layer.stride, layer.padding)
            else:
                reach = F.linear(reach, layer.weight.abs())
            lower, upper = centre - reach, centre + reach
        else:
            lower, upper = layer(lower), layer(upper)
    return torch.stack(penalties).sum()


def climb(
    network: nn.Module,
    loss: Loss,
    clips: Tensor,
    targets: Tensor,
    choice: Choice,
    radius: float,
    generator: torch.Generator,
    steps: int = 4,
) -> Tensor:
    """Clips `(N, C, T, H, W)` moved inside one cover each, towards a larger loss."""
    lower, upper = (clips - radius).clamp(min=0), (clips + radius).clamp(max=1)
    start = lower + torch.rand(clips.shape, generator=generator) * (upper - lower)
    slope = _slope(network, loss, start, targets)
    gain = torch.maximum(slope * (upper - clips), -slope * (clips - lower)).sum(1)  # (N, T, H, W)
    gain = gain * torch.rand(gain.shape, generator=generator) * torch.rand((*gain.shape[:2], 1, 1), generator=generator)
    cover = choice.best(gain.unsqueeze(0))[1].squeeze(0).unsqueeze(1)
    moved = torch.where(cover, start, clips)
    for step in range(steps):
        slope = _slope(network, loss, moved, targets)
        width = (upper - lower) * math.pow(0.5, step)
        moved = torch.where(cover, (moved + width * slope.sign()).clamp(lower, upper), clips)
    return moved


def _slope(network: nn.Module, loss: Loss, clips: Tensor, targets: Tensor) -> Tensor:
    clips = clips.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(loss(network(clips), targets), clips)
    return slope.detach()


def accuracy(network: nn.Module, clips: Tensor, targets: Tensor) -> str:
    """In words: the share of right classes, or the mean error of the angle."""
    with torch.no_grad():
        outputs = network(clips)
    if targets.is_floating_point():
        return f"mean error {float((outputs - targets).abs().mean()):.2f} degrees"
    return f"{float((outputs.argmax(1) == targets).float().mean()):.1%} right"
