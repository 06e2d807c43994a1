"""Networks of a few neurons on clips of 2x2x2 voxels, every layer among them, and an oracle for their minima."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from stbp_milp.milp import InputRegion
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Add, Convolution, Layer, Linear, ReLU, Reshape, Scale, Select
from stbp_milp.network.normal_form import normal_form
from stbp_milp.network.operations import apply
from stbp_milp.sets import Blocks, Choice, MovingPatch, Patch, PerturbationSet

VOXELS = (2, 2, 2)
CHOICES: dict[str, Choice] = {
    "everywhere": Patch.of(VOXELS, VOXELS),
    "frame 1": Blocks.frames((1,), VOXELS),
    "any frame": Blocks.of("frames", 1, VOXELS),
    "any 2 pixels": Blocks.of("pixels", 2, VOXELS),
    "a pixel per frame": Blocks.of("pixels per frame", 1, VOXELS),
    "patch": Patch.of((2, 1, 2), VOXELS),
    "moving patch": MovingPatch.of((2, 1, 1), VOXELS),
}
NETWORKS = ["affine", "two layers", "three layers", "residual", "maximum", "select and scale", "pooled", "dead"]


class _Random:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def dense(self, out: int, inner: int) -> Linear:
        return Linear(self(out, inner), self(out))

    def convolution(self, out: int, inner: int, kernel: int, padding: int = 0) -> Convolution:
        return Convolution(
            self(out, inner, kernel, kernel, kernel), self(out), (1,) * 3, ((padding, padding),) * 3, (1,) * 3
        )


def network(kind: str, seed: int = 0, hidden: int = 2) -> Network:
    """A network with 2 outputs; `hidden` scales its width (2: at most 6 ReLUs where the oracle is used)."""
    r = _Random(seed)
    channels = 2 if kind == "pooled" else 1
    b = NetworkBuilder((channels, *VOXELS))

    def add(layer: Layer, *inputs: str) -> str:
        name = f"n{next(counter)}"
        return b.add(name, layer, *inputs)

    counter = itertools.count()
    flat = add(Reshape((8,)), "input") if channels == 1 else "input"
    if kind == "affine":
        out = add(r.dense(2, 8), flat)
    elif kind in ("two layers", "three layers"):
        h = add(ReLU(), add(r.dense(hidden, 8), flat))
        for _ in range(1 if kind == "two layers" else 2):
            h = add(ReLU(), add(r.dense(hidden, hidden), h))
        out = add(r.dense(2, hidden), h)
    elif kind == "residual":
        first = add(ReLU(), add(r.convolution(1, 1, 2), "input"))
        skip = add(r.convolution(1, 1, 2), "input")
        both = add(ReLU(), add(Add((1.0, -0.5)), first, skip))
        out = add(r.dense(2, 1), add(Reshape((1,)), both))
    elif kind == "maximum":
        left, right = add(r.dense(hidden, 8), flat), add(ReLU(), add(r.dense(hidden, 8), flat))
        out = add(r.dense(2, hidden), b.maximum("larger", left, right))
    elif kind == "select and scale":
        h = add(r.dense(3, 8), flat)
        h = add(Scale(r(3), r(3)), h)
        h = add(ReLU(), add(Select(0, torch.tensor([2, 0, 2])), h))
        out = add(r.dense(2, 3), h)
    elif kind == "pooled":
        mean = Convolution(
            torch.full((2, 1, 1, 2, 2), 0.25, dtype=torch.float64),
            r(2) * 0,
            (1, 2, 2),
            ((0, 0),) * 3,
            (1,) * 3,
            groups=2,
        )
        h = add(ReLU(), add(Scale(r(2, 1, 1, 1), r(2, 1, 1, 1)), add(mean, "input")))
        out = add(r.dense(2, 4), add(Reshape((4,)), h))
    elif kind == "dead":
        # relu(-relu(.)) is 0 with the upper bound 0 exactly; relu(3) is a constant.
        h = add(
            ReLU(), add(Scale(-torch.ones(hidden), torch.zeros(hidden)), add(ReLU(), add(r.dense(hidden, 8), flat)))
        )
        three = add(ReLU(), add(Linear(torch.zeros(hidden, 8).double(), torch.full((hidden,), 3.0).double()), flat))
        out = add(
            r.dense(2, hidden), add(Add((1.0, 1.0)), add(Add((1.0, 1.0)), h, three), add(r.dense(hidden, 8), flat))
        )
    else:
        raise ValueError(kind)
    return b.build(out)


def around(net: Network, choice: str, seed: int, radius: float = 0.4) -> PerturbationSet:
    generator = torch.Generator().manual_seed(seed)
    clip = torch.rand(net.input_shape, generator=generator, dtype=torch.float64)
    lower, upper = (clip - radius).clamp(0, 1), (clip + radius).clamp(0, 1)
    return PerturbationSet(clip, lower, upper, CHOICES[choice])


def interval_boxes(net: Network, region: InputRegion) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Plain interval arithmetic on the normal form."""
    values = {0: (region.lower, region.upper)}
    boxes = {}
    for affine in normal_form(net):
        lower, upper = affine.bias.copy(), affine.bias.copy()
        for source, matrix in affine.weights.items():
            low, high = values[source]
            positive, negative = matrix.maximum(0), matrix.minimum(0)
            lower, upper = lower + positive @ low + negative @ high, upper + positive @ high + negative @ low
        if affine.relu is not None:
            boxes[affine.relu] = (lower, upper)
            values[affine.relu] = (np.maximum(lower, 0), np.maximum(upper, 0))
    return boxes


def margin(net: Network, form: np.ndarray, offset: float, clip: np.ndarray) -> float:
    output = net(torch.from_numpy(clip)[None])[0].numpy()
    return float(form @ output + offset)


def brute_force(net: Network, inputs: PerturbationSet, form: np.ndarray, offset: float) -> float:
    """The minimum over all members and all ReLU phases, one linear program each.

    With the phases given the network is affine: its values at the origin and the unit vectors say all.
    """
    size = int(np.prod(net.input_shape))
    probes = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().reshape(-1, *net.input_shape)
    relus = [int(np.prod(net.nodes[i].shape)) for i in net.relus]
    covers = _covers(inputs)
    best = math.inf
    for pattern in itertools.product((0.0, 1.0), repeat=sum(relus)):
        values, operands, at = [probes], [], 0
        for node in net.nodes[1:]:
            if isinstance(node.layer, ReLU):
                count = int(np.prod(node.shape))
                mask = torch.tensor(pattern[at : at + count]).double().reshape(node.shape)
                at += count
                operands.append(values[node.inputs[0]].reshape(size + 1, -1))
                values.append(values[node.inputs[0]] * mask)
            else:
                values.append(apply(node.layer, [values[i] for i in node.inputs]))
        output = values[-1].numpy() @ form + offset
        cost, constant = output[1:] - output[0], output[0]
        rows, sides = np.zeros((0, size)), np.zeros(0)
        if operands:
            z = torch.cat(operands, 1).numpy()
            sign = np.where(np.array(pattern) > 0, -1.0, 1.0)  # active: -z <= 0, inactive: z <= 0
            rows, sides = ((z[1:] - z[0]) * sign).T, -z[0] * sign
        for low, high in covers:
            answer = linprog(cost, rows, sides, bounds=np.column_stack([low, high]))
            if answer.status == 0:
                best = min(best, answer.fun + constant)
    return best


def _covers(inputs: PerturbationSet) -> list[tuple[np.ndarray, np.ndarray]]:
    """The box of every member."""
    program = inputs.choice.program(0)
    boxes = {}
    for bits in itertools.product((0.0, 1.0), repeat=program.cover.shape[1]):
        activity = program.rows @ np.array(bits)
        if ((activity >= program.row_lower) & (activity <= program.row_upper)).all():
            cover = torch.from_numpy(program.cover @ np.array(bits) > 0.5).reshape(inputs.choice.voxels)
            low, high = torch.where(cover, inputs.lower, inputs.clip), torch.where(cover, inputs.upper, inputs.clip)
            boxes[tuple(cover.flatten().tolist())] = (low.flatten().numpy(), high.flatten().numpy())
    return list(boxes.values())
