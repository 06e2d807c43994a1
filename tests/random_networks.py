"""Random small networks of every shape that a graph can have, as micro-instances.

Branches that begin at the input and meet again, ReLUs of the input and of ReLUs, maxima and pooling, shared and
repeated operands, layers of one neuron, constants, scores that do not depend on the input, networks without a ReLU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Add, Concatenate, Convolution, Layer, Linear, Permute, ReLU, Reshape, Scale, Select
from stbp_milp.network.model import Model
from stbp_milp.network.views import Axes
from stbp_milp.properties import Property, same_class, within_tolerance
from stbp_milp.query import Query
from stbp_milp.sets import SetSpecification
from tests import enumeration
from tests.micro_instances import KINDS, Instance, draw_set, margin, whole_minimum

_MOST_RELUS = 60  # neurons; exact methods solve every instance


class _Drawing:
    """A network while it is drawn: `nodes` are those that later layers may read."""

    def __init__(self, random: np.random.Generator, shape: tuple[int, ...]) -> None:
        self.random, self.builder, self.nodes = random, NetworkBuilder(shape), ["input"]
        self.relus = self.count = 0

    def weights(self, *shape: int) -> Tensor:
        values = torch.from_numpy(np.asarray(self.random.normal(size=shape)))
        return values / math.sqrt(max(1, math.prod(shape[1:])))

    def pick(self) -> str:
        return self.nodes[int(self.random.integers(len(self.nodes)))]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.builder.shape(name)

    def new(self, layer: Layer, *inputs: str) -> str:
        """A node that no later layer picks."""
        self.count += 1
        return self.builder.add(f"layer {self.count}", layer, *inputs)

    def add(self, layer: Layer, *inputs: str) -> None:
        self.nodes.append(self.new(layer, *inputs))

    def maximum(self, first: str, second: str) -> None:
        if self.fits(first):
            self.count += 1
            self.nodes.append(self.builder.maximum(f"maximum {self.count}", first, second))

    def fits(self, name: str) -> bool:
        """Is there room for a ReLU of the node?"""
        self.relus += (size := math.prod(self.shape(name)))
        if self.relus > _MOST_RELUS:
            self.relus -= size
            return False
        return True

    def partner(self, name: str) -> str:
        """A node of the same shape, often the same one."""
        same = [other for other in self.nodes if self.shape(other) == self.shape(name)]
        return same[int(self.random.integers(len(same)))]


def _convolution(drawing: _Drawing) -> None:
    name, random = drawing.pick(), drawing.random
    channels, *sizes = drawing.shape(name)
    kernel = [int(random.integers(1, min(2, n) + 1)) for n in sizes]
    stride = tuple(int(random.integers(1, 3)) for _ in sizes)
    padding = tuple((int(random.integers(0, 2)), 0) for _ in sizes)
    outputs = int(random.integers(1, 3))
    weight = drawing.weights(outputs, channels, *kernel)
    drawing.add(Convolution(weight, 0.3 * drawing.weights(outputs), stride, padding, (1, 1, 1)), name)


def _scale(drawing: _Drawing) -> None:
    name = drawing.pick()
    shape = (drawing.shape(name)[0], 1, 1, 1)
    factor = drawing.weights(*shape) * float(drawing.random.choice([0.0, 1.0, 2.0], p=[0.1, 0.6, 0.3]))
    drawing.add(Scale(factor, 0.5 * drawing.weights(*shape)), name)


def _relu(drawing: _Drawing) -> None:
    if drawing.fits(name := drawing.pick()):
        drawing.add(ReLU(), name)


def _sum(drawing: _Drawing) -> None:
    first = drawing.pick()
    second = drawing.partner(first)
    drawing.add(Add(tuple(float(c) for c in drawing.random.choice([1.0, -1.0, 0.5, 0.0], 2))), first, second)


def _maximum(drawing: _Drawing) -> None:
    first = drawing.pick()
    drawing.maximum(first, drawing.partner(first))


def _select(drawing: _Drawing) -> None:
    name = drawing.pick()
    axis = int(drawing.random.integers(1, 4))
    size = drawing.shape(name)[axis]
    index = np.sort(drawing.random.integers(0, size, int(drawing.random.integers(1, size + 1))))
    drawing.add(Select(axis, torch.from_numpy(index)), name)


def _pad(drawing: _Drawing) -> None:
    """Places of an axis in any order, with zeros between them."""
    name = drawing.pick()
    axis = int(drawing.random.integers(0, 4))
    size = drawing.shape(name)[axis]
    index = drawing.random.integers(-1, size, int(drawing.random.integers(1, size + 2)))
    drawing.add(Select(axis, torch.from_numpy(index), padded=True), name)


def _permute(drawing: _Drawing) -> None:
    drawing.add(Permute(tuple(int(axis) for axis in drawing.random.permutation(4))), drawing.pick())


def _join(drawing: _Drawing) -> None:
    """Two nodes that are alike but for one axis, or one node twice."""
    first = drawing.pick()
    axis = int(drawing.random.integers(0, 4))
    own = drawing.shape(first)
    fitting = [
        name
        for name in drawing.nodes
        if all(a == b or i == axis for i, (a, b) in enumerate(zip(drawing.shape(name), own, strict=True)))
    ]
    second = fitting[int(drawing.random.integers(len(fitting)))]
    drawing.add(Concatenate(axis, (own[axis], drawing.shape(second)[axis])), first, second)


def _pool(drawing: _Drawing) -> None:
    """Pairwise maxima of neighbours along an axis."""
    name = drawing.pick()
    axis = int(drawing.random.integers(1, 4))
    size = drawing.shape(name)[axis]
    first, second = (torch.arange(start, size - 1 + start) for start in (0, 1))
    if size > 1:
        drawing.maximum(drawing.new(Select(axis, first), name), drawing.new(Select(axis, second), name))


_STEPS: tuple[Callable[[_Drawing], None], ...] = (
    _convolution,
    _convolution,
    _convolution,
    _relu,
    _relu,
    _relu,
    _sum,
    _maximum,
    _select,
    _pool,
    _scale,
    _pad,
    _permute,
    _join,
)


def _heads(drawing: _Drawing, outputs: int) -> str:
    """Some nodes, flat, through dense layers (with and without a ReLU), added up: scores."""
    random = drawing.random
    scores = []
    for _ in range(int(random.integers(1, 4))):
        # The last nodes more often: those are the deep ones.
        name = drawing.nodes[-1 - int(len(drawing.nodes) * random.random() ** 2)]
        size = math.prod(drawing.shape(name))
        flat = drawing.new(Reshape((size,)), name)
        if random.random() < 0.5:
            width = int(random.integers(1, 5))
            flat = drawing.new(Linear(drawing.weights(width, size), 0.3 * drawing.weights(width)), flat)
            if drawing.fits(flat):
                flat = drawing.new(ReLU(), flat)
            size = width
        weight = drawing.weights(outputs, size)
        if random.random() < 0.15:
            weight[int(random.integers(outputs))] = 0.0  # a score that nothing of this branch moves
        if random.random() < 0.07:
            weight = torch.zeros_like(weight)
        scores.append(drawing.new(Linear(weight, drawing.weights(outputs)), flat))
    if len(scores) == 1 and random.random() < 0.5:
        return scores[0]
    return drawing.new(Add((1.0,) * len(scores)), *scores)


def network(seed: int, shape: tuple[int, ...], outputs: int) -> Network:
    """Network number `seed` for clips `(C, T, H, W)`."""
    random = np.random.default_rng(seed)
    drawing = _Drawing(random, shape)
    steps = [s for s in _STEPS if s not in (_relu, _maximum, _pool)] if random.random() < 0.06 else _STEPS
    for _ in range(int(random.integers(1, 9))):
        steps[int(random.integers(len(steps)))](drawing)
    return drawing.builder.build(_heads(drawing, outputs))


def model(net: Network) -> Model:
    """The network as its own original, in float32."""

    def predict(clips: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            scores: np.ndarray = net.single(torch.from_numpy(np.ascontiguousarray(clips))).numpy()
        return scores

    return Model(net, predict, "random", "0" * 64, "a random network", Axes.of(net.input_shape))


def draw(seed: int) -> Instance:
    """Instance number `seed`: kinds of sets go round; the level is near 0 on a random side."""
    random = np.random.default_rng([seed, 1])
    kind = KINDS[seed % len(KINDS)]
    voxels = (int(random.integers(2, 4)), int(random.integers(2, 4)), int(random.integers(2, 4)))
    channels, outputs = int(random.integers(1, 3)), int(random.integers(1, 4))
    clip = enumeration.random_clip(seed, channels, voxels)
    specification = SetSpecification(draw_set(kind, voxels, random), float(random.choice([0.05, 0.3, 1.0])))
    original = model(network(seed, (channels, *voxels), outputs))
    with torch.no_grad():
        scores = original.network(clip.unsqueeze(0))[0]
    asked = within_tolerance(scores, 1.0) if outputs == 1 else same_class(int(scores.argmax()), outputs)
    query = Query(original, clip, specification, asked)
    level = whole_minimum(query, "scip").lower
    distance = max(1e-3, 0.02 * (margin(query, clip) - level)) * float(random.choice([-1.0, 1.0]))
    shifted = Property(asked.rows, asked.offset + distance - level, asked.clauses, asked.text)
    return Instance(seed, kind, "random", Query(original, clip, specification, shifted), distance)
