"""Small torch modules that the readers must reproduce, each with its input shape (without the batch axis)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Forward(nn.Module):
    """A module given by its forward function and the children that it uses."""

    def __init__(self, forward: Callable[..., Tensor], **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


class Normalise(nn.Module):
    """`(x - mean) / deviation` with registered buffers that hold the batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 2, 1, 1))
        self.register_buffer("deviation", 1.0 + torch.rand(2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def _residual(self: nn.Module, x: Tensor) -> Tensor:
    h = self.relu(self.first(x))
    h = self.second(h)
    h += x
    return torch.flatten(self.relu(h), 1)


def _in_place(self: nn.Module, x: Tensor) -> Tensor:
    h = self.first(x)
    later = h  # the same tensor: what relu_ does to it shows here
    return (torch.relu_(h) - 2.0 * later).flatten(1)


def _functional(self: nn.Module, x: Tensor) -> Tensor:
    h = F.relu(F.conv3d(x, self.first.weight, self.first.bias, stride=(1, 2, 1), padding=1))
    h = F.max_pool3d(h, 2, stride=1)
    h = F.dropout(h, 0.5, self.training)
    h = F.avg_pool3d(h, kernel_size=h.shape[2:])
    return F.linear(h.view(h.size(0), -1), self.last.weight)


def _sizes(self: nn.Module, x: Tensor) -> Tensor:
    n, c, t, h, w = x.shape
    return self.last(x.reshape(n, c * t, h * w).mean(-1, keepdim=True).squeeze(2))


def _spread(self: nn.Module, x: Tensor) -> Tensor:
    """A channel mean added back to every voxel: broadcasting between two nodes."""
    return (x - x.mean((2, 3), keepdim=True)).flatten(1)


def _constants(self: nn.Module, x: Tensor) -> Tensor:
    return torch.sub(3.0 - x * 2 / 5, -x, alpha=0.5).flatten(1) + torch.arange(8.0)


def _joined(self: nn.Module, x: Tensor) -> Tensor:
    a, b = x.split([1, 2], 1)
    c, d = x.chunk(2, 3)
    parts = torch.cat([a, b, x[:, -2:], torch.ones(1, 1, 4, 6, dtype=x.dtype).expand(len(x), -1, -1, -1)], 1)
    stacked = torch.stack([c, d], 2).unbind(2)[1]
    return torch.cat(
        [parts.flatten(1), stacked.flatten(1), x.select(2, -1).flatten(1), x[:, :, ::2].roll(1, 3).flatten(1)], 1
    )


def _shaped(self: nn.Module, x: Tensor) -> Tensor:
    rows = self.rows(x.permute(0, 2, 3, 1)) + torch.arange(3.0, dtype=x.dtype)
    columns = torch.matmul(torch.arange(8.0, dtype=x.dtype).reshape(2, 4), x)
    return torch.cat(
        [rows.flatten(1), columns.flatten(1), x.sum((1, 3)), x.amax(1).flatten(1), x.cumsum(2).mean(3).flatten(1)], 1
    )


def _frames(self: nn.Module, x: Tensor) -> Tensor:
    n, c, t, h, w = x.shape
    y = x.transpose(1, 2).reshape(n * t, c, h, w)
    y = F.max_pool2d(F.relu(self.image(y)), 2)
    y = self.head(y.mean((2, 3)))
    return y.view(n, t, -1).mean(1)


def _padded(self: nn.Module, x: Tensor) -> Tensor:
    ways = [F.pad(x, (1, 2, 0, 1), mode=mode) for mode in ("reflect", "replicate", "circular")]
    ways += [F.pad(x, (1, 0, -1, 2)), F.pad(x, (2, 1), value=0.5)]
    return torch.cat([way.flatten(1) for way in ways], 1)


def _resized(self: nn.Module, x: Tensor) -> Tensor:
    ways = [
        F.interpolate(x, scale_factor=2.0),
        F.interpolate(x, size=(5, 3), mode="bilinear"),
        F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=True),
        F.interpolate(x, scale_factor=(1.5, 0.5)),
    ]
    return torch.cat([way.flatten(1) for way in ways], 1)


def _kinked(self: nn.Module, x: Tensor) -> Tensor:
    ways = [
        F.leaky_relu(x, 0.1), self.prelu(x), F.relu6(5 * x), F.hardtanh(x, -0.3, 0.4), F.hardsigmoid(4 * x), x.abs(),
        x.clamp(min=-0.2), x.clamp(max=0.1), torch.minimum(x, -x), torch.maximum(x, torch.tensor(0.2)),
    ]  # fmt: skip
    return torch.cat(ways, 1).flatten(1)


def _maximum(self: nn.Module, x: Tensor) -> Tensor:
    return torch.maximum(self.first(x), self.second(x))


def _trained_norm(norm: nn.Module) -> nn.Module:
    """Batch normalisation with statistics unlike the initial ones."""
    for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
        tensor.uniform_(-1.0, 1.0)
    norm.running_var.uniform_(0.5, 2.0)
    return norm


def _gated(self: nn.Module, x: Tensor) -> Tensor:
    h = F.silu(self.first(x)) * torch.sigmoid(self.gate(x))
    return (h / (1.0 + h.square().sum(1, keepdim=True)).sqrt()).exp().reciprocal() - 2.0 / (1.0 + h**2)


def _attention(self: nn.Module, x: Tensor) -> Tensor:
    h = self.norm(x)
    h = x + self.heads(h, h, h, need_weights=False)[0]
    return (h + F.gelu(self.inner(h)) * F.gelu(h, approximate="tanh")).flatten(1)


def _stacks(self: nn.Module, x: Tensor) -> Tensor:
    stack = torch.arange(24.0, dtype=x.dtype).reshape(2, 3, 4) / 32.0
    return (torch.matmul(x, stack) + x @ x.transpose(2, 3) @ x[..., :1]).flatten(1)


def _recurrent(self: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([own(x)[0][:, -1] for own in (self.lstm, self.gru, self.plain)], 1)


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """The module of this name with seeded weights, in eval mode."""
    torch.manual_seed(0)
    make, shape = MODULES[name]
    return make().eval(), shape


def _flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten())


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 2), (3,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Dropout(), nn.Linear(5, 2)), (4,)),
    "conv1d": (lambda: _flat(nn.Conv1d(2, 4, 3, stride=2, padding=1, groups=2)), (2, 7)),
    "conv2d": (lambda: _flat(nn.Conv2d(2, 3, (3, 2), dilation=(1, 2), bias=False)), (2, 5, 6)),
    "conv3d": (lambda: _flat(nn.Conv3d(1, 2, (2, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))), (1, 3, 5, 6)),
    "conv_same": (lambda: _flat(nn.Conv2d(1, 2, (4, 3), padding="same", dilation=(1, 2))), (1, 5, 6)),
    "conv_valid": (lambda: _flat(nn.Conv1d(1, 2, 3, padding="valid")), (1, 5)),
    "norm1d": (lambda: nn.Sequential(nn.Linear(3, 4), _trained_norm(nn.BatchNorm1d(4))), (3,)),
    "norm2d": (lambda: _flat(nn.ReLU(), _trained_norm(nn.BatchNorm2d(2))), (2, 3, 4)),
    "norm3d": (lambda: _flat(nn.Conv3d(1, 2, 2), _trained_norm(nn.BatchNorm3d(2)), nn.ReLU()), (1, 2, 3, 4)),
    "norm_alone": (lambda: _trained_norm(nn.BatchNorm1d(3)), (3,)),
    "avgpool1d": (lambda: _flat(nn.AvgPool1d(3, 2, padding=1)), (2, 6)),
    "avgpool2d_inner": (lambda: _flat(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)), (2, 5, 6)),
    "avgpool2d_ceil": (lambda: _flat(nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)), (2, 6, 8)),
    "avgpool2d_ceil_inner": (
        lambda: _flat(nn.AvgPool2d(2, 3, padding=1, ceil_mode=True, count_include_pad=False)),
        (1, 6, 5),
    ),
    "avgpool3d": (lambda: _flat(nn.AvgPool3d((1, 2, 2))), (2, 3, 4, 6)),
    "maxpool1d": (lambda: _flat(nn.MaxPool1d(3, 1, padding=1)), (2, 5)),
    "maxpool2d": (lambda: _flat(nn.MaxPool2d(2)), (2, 4, 5)),
    "maxpool2d_padding": (lambda: _flat(nn.MaxPool2d(3, 2, padding=1)), (2, 5, 6)),
    "maxpool2d_dilation": (lambda: _flat(nn.MaxPool2d(2, 1, padding=1, dilation=2)), (1, 5, 6)),
    "maxpool2d_ceil": (lambda: _flat(nn.MaxPool2d(3, 2, ceil_mode=True)), (1, 6, 8)),
    "maxpool3d": (lambda: _flat(nn.MaxPool3d((1, 2, 2), padding=(0, 1, 0), ceil_mode=True)), (1, 2, 4, 5)),
    "adaptive_avg": (lambda: _flat(nn.AdaptiveAvgPool3d(1)), (2, 2, 3, 4)),
    "adaptive_avg_divisor": (lambda: _flat(nn.AdaptiveAvgPool2d((2, None))), (2, 4, 3)),
    "adaptive_max": (lambda: _flat(nn.AdaptiveMaxPool2d(1)), (2, 2, 3)),
    "residual": (
        lambda: Forward(
            _residual, first=nn.Conv3d(2, 2, 3, padding=1), second=nn.Conv3d(2, 2, 1), relu=nn.ReLU(inplace=True)
        ),
        (2, 2, 3, 3),
    ),
    "in_place": (lambda: Forward(_in_place, first=nn.Conv1d(1, 2, 2)), (1, 5)),
    "functional": (
        lambda: Forward(_functional, first=nn.Conv3d(1, 2, 3), last=nn.Linear(2, 3, bias=False)),
        (1, 3, 4, 5),
    ),
    "sizes": (lambda: Forward(_sizes, last=nn.Linear(6, 2)), (2, 3, 2, 2)),
    "normalise": (lambda: _flat(Normalise(), nn.Sequential(nn.Identity(), nn.ReLU())), (2, 3, 3)),
    "spread": (lambda: Forward(_spread), (2, 2, 3)),
    "constants": (lambda: Forward(_constants), (2, 4)),
    "conv_transpose": (
        lambda: _flat(nn.ConvTranspose2d(2, 4, (3, 2), (2, 1), (1, 0), (1, 0), groups=2, dilation=(1, 2))),
        (2, 3, 4),
    ),
    "conv_transpose3d": (lambda: _flat(nn.ConvTranspose3d(2, 1, 2, 2, bias=False)), (2, 2, 2, 3)),
    "conv_circular": (lambda: _flat(nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular")), (1, 5)),
    "adaptive_uneven": (lambda: _flat(nn.AdaptiveAvgPool2d((2, 3)), nn.AdaptiveMaxPool2d((2, 2))), (2, 5, 4)),
    "joined": (lambda: Forward(_joined), (3, 4, 6)),
    "shaped": (lambda: Forward(_shaped, rows=nn.Linear(2, 3)), (2, 4, 5)),
    "frames": (lambda: Forward(_frames, image=nn.Conv2d(2, 3, 3), head=nn.Linear(3, 2)), (2, 3, 6, 5)),
    "padded": (lambda: Forward(_padded), (2, 3, 4)),
    "resized": (lambda: Forward(_resized), (2, 4, 6)),
    "kinked": (lambda: Forward(_kinked, prelu=nn.PReLU(2)), (2, 3, 4)),
    "gated": (lambda: Forward(_gated, first=nn.Linear(3, 4), gate=nn.Linear(3, 4)), (3,)),
    "curves": (
        lambda: _flat(
            nn.Tanh(),
            nn.ELU(0.7),
            nn.SELU(),
            nn.Softplus(2.0),
            nn.LogSoftmax(2),
            nn.CELU(0.6),
            nn.LogSigmoid(),
            nn.Mish(),
            nn.Hardswish(),
            nn.Sigmoid(),
            nn.Softmax(1),
        ),
        (2, 3, 2),
    ),
    "norms": (
        lambda: _flat(
            nn.GroupNorm(2, 4), nn.InstanceNorm3d(4, affine=True), nn.LayerNorm((2, 3)), nn.GroupNorm(4, 4), nn.GELU()
        ),
        (4, 2, 2, 3),
    ),
    "attention": (
        lambda: Forward(
            _attention,
            heads=nn.MultiheadAttention(4, 2, batch_first=True),
            norm=nn.LayerNorm(4),
            inner=nn.Linear(4, 4),
        ),
        (3, 4),
    ),
    "stacks": (lambda: Forward(_stacks), (2, 3, 3)),
    "recurrent": (
        lambda: Forward(
            _recurrent,
            lstm=nn.LSTM(3, 2, batch_first=True),
            gru=nn.GRU(3, 2, batch_first=True),
            plain=nn.RNN(3, 2, 2, batch_first=True),
        ),
        (3, 3),
    ),
    "softmax_long": (lambda: nn.Sequential(nn.Linear(3, 1100), nn.Softmax(1), nn.Linear(1100, 2)), (3,)),
    "maximum": (lambda: Forward(_maximum, first=nn.Linear(3, 2), second=nn.Linear(3, 2)), (3,)),
}
# What torch's older exporter, or onnxruntime after it, refuses: dilation with padding="same", sizes that are computed;
# and what it writes down for a batch of two clips, constants and frames in place of the batch. It keeps LSTM and GRU
# whole, which have no rule, and moves the batch axis of an attention.
NOT_EXPORTED = {
    "conv_same",
    "adaptive_avg_divisor",
    "functional",
    "adaptive_uneven",
    "joined",
    "frames",
    "attention",
    "recurrent",
}
