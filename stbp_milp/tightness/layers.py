"""How wide every method's pre-activation bounds are, relative to the exact width, layer by layer.

The *exact width* of a neuron is the largest minus the smallest value of its pre-activation over the set, both attained
by points that a MILP found and proved to be optimal. Neurons are a seeded sample of those that STBP's intervals leave
undecided (in the first layer: of all that can move), because passes and programs only treat such neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from solvers import LinearRelaxation, SolveLimits, Termination
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.errors import SoundnessError
from stbp_milp.milp import InputRegion, encode, minimum, relax
from stbp_milp.network.normal_form import AffineMap, normal_form
from stbp_milp.tightness.bounding import Request, alpha_bounds, flat_boxes, whole_box, whole_set

_MOVES = 1e-9  # a neuron that moves less is too narrow for a ratio of widths
_TOLERANCE = 1e-6  # relative to 1 + |bound|: by how much an attained value may lie outside a bound

Boxes = Mapping[int, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class LayerWidths:
    """One method on one layer.

    Attributes:
        layer: 1 for the first ReLU of the network.
        neurons: number of neurons whose exact width was found in time.
        mean_width, exact_width: means over these neurons, in the unit of the pre-activation.
        ratio: the ratio of the two means; 1 is exact.
    """

    layer: int
    method: str
    neurons: int
    mean_width: float
    exact_width: float
    ratio: float


def layer_widths(request: Request, sample: int) -> list[LayerWidths]:
    """Measures the widths of all methods on all layers, as far as time allows.

    Args:
        sample: number of neurons per layer.

    Raises:
        SoundnessError: a neuron attains a value outside its bounds.
    """
    query = request.query
    maps, region = normal_form(query.model.network), InputRegion.of(query.set.build(query.clip))
    problem = whole_set(query)
    boxes = _bounds(problem, whole_box(query), request)
    random = np.random.default_rng(request.seed)
    result: list[LayerWidths] = []
    hidden = [affine for affine in maps if affine.relu is not None]
    for layer, affine in enumerate(hidden, 1):
        assert affine.relu is not None
        lower, upper = boxes["stbp-interval"][affine.relu]
        first = set(affine.weights) <= {0}
        candidates = np.flatnonzero(upper - lower > _MOVES if first else (lower < 0) & (upper > 0))
        neurons = np.sort(random.permutation(candidates)[:sample])
        exact = _exact(problem, maps, layer - 1, neurons, region, boxes["stbp-alpha"], request)
        known = [neuron for neuron in neurons if neuron in exact]
        if not known:
            continue
        true = np.array([exact[neuron] for neuron in known])
        own = {name: (b[affine.relu][0][known], b[affine.relu][1][known]) for name, b in boxes.items()}
        own["lp"] = _relaxed(maps, layer - 1, np.array(known), region, boxes["stbp-alpha"], request)
        for name, (low, high) in own.items():
            _check(name, layer, low, high, true)
            width, truth = float((high - low).mean()), float((true[:, 1] - true[:, 0]).mean())
            if truth > _MOVES:
                result.append(LayerWidths(layer, name, len(known), width, truth, width / truth))
    return result


def _bounds(problem: Problem, box: Problem, request: Request) -> dict[str, Boxes]:
    expired = request.deadline.within(0.3 * request.deadline.remaining()).expired
    of: Callable[..., dict[int, Interval]] = preactivations
    plain, tight = alpha_bounds(problem, replace(request, deadline=request.deadline.within(60)))
    return {
        "box-interval": flat_boxes(of(box, BoundingOptions("interval"))),
        "stbp-interval": flat_boxes(of(problem, BoundingOptions("interval"))),
        "box-backward": flat_boxes(of(box, BoundingOptions(), expired=expired)),
        "stbp-backward": flat_boxes(plain),
        "stbp-alpha": flat_boxes(tight),
    }


def _exact(
    problem: Problem,
    maps: tuple[AffineMap, ...],
    at: int,
    neurons: np.ndarray,
    region: InputRegion,
    boxes: Boxes,
    request: Request,
) -> dict[int, tuple[float, float]]:
    """Computes the least and the largest value of every neuron of map `at` that the MILP settles in time."""
    affine = maps[at]
    assert affine.relu is not None
    operand = problem.network.nodes[affine.relu].inputs[0]
    found = {}
    for done, neuron in enumerate(neurons):
        row = {source: matrix[[neuron]] for source, matrix in affine.weights.items()}
        short = (*maps[:at], AffineMap(None, row, affine.bias[[neuron]]))
        left = request.deadline.remaining() / (2 * (len(neurons) - done) * (len(maps) - at))
        ends = []
        for sign in (1.0, -1.0):
            encoded = encode(short, region, boxes, np.array([sign]), 0.0)
            result = minimum(encoded, "auto", SolveLimits(left, threads=request.threads, seed=request.seed))
            if result.termination is not Termination.OPTIMAL or result.candidate is None:
                break
            with torch.no_grad():
                value = problem.network.values(torch.from_numpy(result.candidate).unsqueeze(0))[operand]
            ends.append(float(value.flatten()[neuron]))
        if len(ends) == 2:
            found[int(neuron)] = (ends[0], ends[1])
    return found


def _relaxed(
    maps: tuple[AffineMap, ...], at: int, neurons: np.ndarray, region: InputRegion, boxes: Boxes, request: Request
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds the neurons of map `at` by the triangle relaxation, intersected with the bounds that it is built on."""
    affine = maps[at]
    assert affine.relu is not None
    low, high = (side[neurons].copy() for side in boxes[affine.relu])
    relaxed = relax(maps, region, boxes, at, neurons)
    if not relaxed.program.variables:
        return low, high
    solver = LinearRelaxation(relaxed.program, request.seed)
    for i in range(neurons.size):
        cost, constant = relaxed.targets.matrix[[i]].toarray()[0], float(relaxed.targets.constant[i])
        low[i] = max(low[i], solver.minimum(cost, request.deadline.remaining()) + constant)
        high[i] = min(high[i], constant - solver.minimum(-cost, request.deadline.remaining()))
    return low, high


def _check(name: str, layer: int, low: np.ndarray, high: np.ndarray, true: np.ndarray) -> None:
    excess = np.maximum(low - true[:, 0], true[:, 1] - high) - _TOLERANCE * (1 + np.abs(true).max(1))
    if (excess > 0).any():
        raise SoundnessError(
            f"a neuron of ReLU layer {layer} attains a value {excess.max():.3g} outside {name}'s bounds"
        )
