"""Optimisation-based bound tightening: two small linear programs per neuron bound its pre-activation.

It goes layer by layer: the relaxation of a layer uses the bounds, and the stable neurons, found below it. First-layer
pre-activations are affine in the input, where bounds by the support function are already exact; they are skipped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from solvers import LinearRelaxation
from stbp_milp.errors import SoundnessError
from stbp_milp.milp.encode import SLACK, Accuracy, Boxes, Phases, Relaxed, relax
from stbp_milp.milp.region import InputRegion
from stbp_milp.network.normal_form import AffineMap

_LOG = logging.getLogger(__name__)
_DIFFERENCE = 2.0**-50  # relative error of a few sums


@dataclass(frozen=True, eq=False)
class Tightened:
    """Bounds, each at least as tight as before."""

    boxes: Mapping[int, tuple[np.ndarray, np.ndarray]]  # ReLU node position -> (lower, upper), each (size,)
    improved: int  # neurons whose box shrank
    stabilised: int  # neurons that were unstable and became stable
    finished: bool  # False: time ran out first
    empty: bool  # the fixed phases leave no input


def tighten(
    maps: tuple[AffineMap, ...],
    region: InputRegion,
    boxes: Boxes,
    seconds: float,
    phases: Phases | None = None,
    accuracy: Accuracy | None = None,
) -> Tightened:
    """Tightens the bounds of unstable neurons from the second layer on, until all are done or time runs out.

    Args:
        maps: the network's normal form.
        region: the inputs.
        boxes: pre-activation bounds `(size,)`, valid on the region (and the phases).
        seconds: wall-clock limit.
        phases, accuracy: as in `encode`.

    Raises:
        SoundnessError: a relaxation contradicts the bounds although no phase was fixed.
    """
    deadline = time.monotonic() + seconds
    split = any(bool(np.any(phase)) for phase in (phases or {}).values())
    current = {
        relu: (np.array(lower, dtype=float), np.array(upper, dtype=float)) for relu, (lower, upper) in boxes.items()
    }
    improved, stabilised, empty = 0, 0, False
    for target, affine in enumerate(maps):
        if affine.relu is None or set(affine.weights) <= {0}:
            continue
        if time.monotonic() >= deadline:
            break
        lower, upper = current[affine.relu]
        rows = np.flatnonzero((lower < 0) & (upper > 0))
        if not rows.size:
            continue
        relaxed = relax(maps, region, current, target, rows, phases, accuracy)
        empty = empty or relaxed.empty
        new_lower, new_upper = _bounds(relaxed, lower[rows], upper[rows], deadline)
        crossed = new_lower > new_upper
        if crossed.any():
            if not split:
                _check(new_lower, new_upper, affine.relu)
            empty = empty or split
            new_lower, new_upper = np.where(crossed, lower[rows], new_lower), np.where(crossed, upper[rows], new_upper)
        improved += int(((new_lower > lower[rows]) | (new_upper < upper[rows])).sum())
        stabilised += int(((new_lower >= 0) | (new_upper <= 0)).sum())
        lower[rows], upper[rows] = new_lower, new_upper
    finished = time.monotonic() < deadline
    _LOG.debug("tightened %d neurons, %d became stable, finished: %s", improved, stabilised, finished)
    return Tightened(current, improved, stabilised, finished, empty)


def _check(lower: np.ndarray, upper: np.ndarray, relu: int) -> None:
    """Raises SoundnessError if bounds cross by more than solvers may err although no phase was fixed."""
    gap = float((lower - upper).max())
    if gap > SLACK * (1 + float(np.abs(lower[lower > upper]).max())):
        raise SoundnessError(
            f"a relaxation puts a neuron of ReLU node {relu} {gap:.3g} outside bounds found before although no phase "
            "was fixed; two bounding methods contradict each other"
        )


def _bounds(relaxed: Relaxed, lower: np.ndarray, upper: np.ndarray, deadline: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns every target's bounds, intersected with the known ones; both hold, since the new ones are dual bounds."""
    lower, upper = lower.copy(), upper.copy()
    if relaxed.empty:
        return lower, upper
    relaxation = LinearRelaxation(relaxed.program)
    for i in range(lower.size):
        cost = relaxed.targets.matrix[[i]].toarray()[0]
        constant = float(relaxed.targets.constant[i])
        # The side nearer to zero comes first: if the neuron turns out stable, the other side hardly matters.
        for sign in (1.0, -1.0) if -lower[i] <= upper[i] else (-1.0, 1.0):
            left = deadline - time.monotonic()
            if left <= 0:
                return lower, upper
            least = relaxation.minimum(sign * cost, left)
            bound = least + sign * constant - relaxed.targets.error[i] - _DIFFERENCE * (abs(least) + abs(constant))
            if sign > 0:
                lower[i] = max(lower[i], bound)
            else:
                upper[i] = min(upper[i], -bound)
            if lower[i] >= 0 or upper[i] <= 0:
                break
    return lower, upper
