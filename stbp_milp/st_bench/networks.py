"""The networks of ST-Bench, untrained: S of 1 to 2 thousand ReLUs, M of 10 to 30 thousand, L for scale.

The order in which layers are created must not change: initial weights come from torch's generator, and the shipped
networks must be reproducible.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from stbp_milp.data import stand_ins as data

Shape = tuple[int, int, int, int]
C3D_WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)


# --- activity ---------------------------------------------------------------------------------------------------


def video_network() -> nn.Module:
    """1,312 ReLUs on 1x8x16x16: what the benchmarks call network P."""
    return two_convolutions(3, 2, 256, len(data.VIDEO_CLASSES))


def two_convolutions(kernel: int, stride: int, features: int, outputs: int) -> nn.Sequential:
    """Of one channel, to 4 and 8, then 32 hidden neurons.

    Args:
        kernel, stride: of the first convolution.
        features: what the linear layers read.
    """
    return nn.Sequential(
        nn.Conv3d(1, 4, kernel, stride=stride, padding=1),
        nn.ReLU(),
        nn.Conv3d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 32),
        nn.ReLU(),
        nn.Linear(32, outputs),
    )


def network_q() -> nn.Module:
    """12,832 ReLUs on 3x8x32x32: what the benchmarks call network Q."""
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


# --- medical ----------------------------------------------------------------------------------------------------


class VolumeNetwork(nn.Module):
    """Convolution, average pooling, a residual block, max pooling; batch normalisation throughout.

    Args:
        width: channels.
        shrink: window of the average pooling.
        features: what the linear layer reads.
    """

    def __init__(self, width: int = 4, shrink: tuple[int, int, int] = (1, 2, 2), features: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, width, 3, stride=2, padding=1), nn.BatchNorm3d(width), nn.ReLU())
        self.shrink = nn.AvgPool3d(shrink)
        self.block = nn.Sequential(
            nn.Conv3d(width, width, 3, padding=1),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.Conv3d(width, width, 3, padding=1),
            nn.BatchNorm3d(width),
        )
        self.head = nn.Sequential(
            nn.MaxPool3d(2), nn.ReLU(), nn.Flatten(), nn.Linear(features, len(data.VOLUME_CLASSES))
        )

    def forward(self, clips: Tensor) -> Tensor:
        value = self.shrink(self.stem(clips))
        scores: Tensor = self.head(value + self.block(value))
        return scores


def volume_network_m() -> nn.Module:
    """Of 1x28x28x28 volumes."""
    return VolumeNetwork(8, (2, 2, 2), 216)


# --- driving ----------------------------------------------------------------------------------------------------


class SteeringNetwork(nn.Module):
    """Layers between two scalings: pixels to `[-1, 1]`, the angle to degrees."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, clips: Tensor) -> Tensor:
        angle: Tensor = self.layers((clips - 0.5) * 2.0) * data.STEERING_LIMIT
        return angle


def steering_network() -> nn.Module:
    """Strided convolutions on 3x4x16x24."""
    return SteeringNetwork(_strided((8, 12), (2, 3, 3), (0, 1, 1), 288, 16))


def steering_network_m() -> nn.Module:
    """Strided convolutions on 3x8x32x48."""
    return SteeringNetwork(_strided((8, 16), (3, 3, 3), (1, 1, 1), 3072, 32))


def _strided(
    widths: tuple[int, int],
    kernel: tuple[int, int, int],
    padding: tuple[int, int, int],
    features: int,
    hidden: int,
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(3, widths[0], 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv3d(*widths, kernel, stride=(2, 2, 2), padding=padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 1),
    )


# --- for scale --------------------------------------------------------------------------------------------------


def c3d(
    shape: Shape = (3, 16, 112, 112), outputs: int = 101, widths: Sequence[int] = C3D_WIDTHS, hidden: int = 4096
) -> nn.Sequential:
    """Like C3D (Tran et al. 2015): 8 convolutions, 5 poolings, 3 linear layers; 78 M parameters as it is.

    Args:
        shape: of a clip; at least 16 frames of at least 16x16 pixels.
    """
    layers: list[nn.Module] = []
    before = shape[0]
    for i, width in enumerate(widths):
        layers += [nn.Conv3d(before, width, 3, padding=1), nn.ReLU()]
        before = width
        if i == 0:
            layers.append(nn.MaxPool3d((1, 2, 2), (1, 2, 2)))
        elif i in (1, 3, 5):
            layers.append(nn.MaxPool3d(2, 2))
        elif i == 7:
            layers.append(nn.MaxPool3d(2, 2, padding=(0, 1, 1)))
    features = before * (shape[1] // 16) * (shape[2] // 32 + 1) * (shape[3] // 32 + 1)
    layers += [nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


def small_c3d(shape: Shape, outputs: int) -> nn.Sequential:
    """C3D with an eighth of the channels and 128 hidden neurons."""
    return c3d(shape, outputs, [width // 8 for width in C3D_WIDTHS], 128)


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


def r3d(width: int = 64, blocks: int = 2, outputs: int = 101) -> nn.Sequential:
    """Like R3D-18 (Tran et al. 2018) on 3x16x112x112: a stem and residual blocks; 33 M parameters as it is.

    Args:
        width: channels of the stem; the last blocks have eight times as many.
        blocks: of each of the four resolutions.
    """
    layers: list[nn.Module] = [
        nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(),
    ]
    before = width
    for stage in range(4):
        for block in range(blocks):
            layers.append(_Block(before, width << stage, 2 if stage and not block else 1))
            before = width << stage
    layers += [nn.AvgPool3d((2, 7, 7)), nn.Flatten(), nn.Linear(before, outputs)]
    return nn.Sequential(*layers)
