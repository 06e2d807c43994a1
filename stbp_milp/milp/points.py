"""Conversion of clips to points of a program and back.

*Completing* a clip gives every column the value that follows from the forward pass; *extracting* reads the input
columns of a point and projects them onto the set.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from solvers import Highs, MixedIntegerProgram, SolveLimits
from stbp_milp.milp.encode import Encoded

_COVER_SECONDS = 5.0


def complete(encoded: Encoded, clip: np.ndarray) -> np.ndarray:
    """Returns the point `(columns,)` of a clip `(*shape)`, with NaN for the choice's binaries if no cover is found.

    The clip should lie in the region; otherwise the point violates rows, which is harmless for a solver's start.
    """
    clip = np.asarray(clip, dtype=float).reshape(-1)
    point = np.full(encoded.program.variables, np.nan)
    point[encoded.entry_columns] = clip[encoded.entries]
    if encoded.choice_columns.size:
        point[encoded.choice_columns] = _cover(encoded, clip)
    values, output = _forward(encoded, clip)
    for neurons in encoded.neurons:
        z = values[neurons.relu][neurons.neuron]
        y = np.maximum(z, 0.0)
        # An active neuron that kept its column has one for both; its pre-activation is written last.
        for columns, value in ((neurons.post, y), (neurons.pre, z), (neurons.binary, z > 0), (neurons.excess, y - z)):
            present = columns >= 0
            point[columns[present]] = value[present]
    if encoded.value_column >= 0:
        point[encoded.value_column] = (encoded.form @ output + encoded.offset).max()
    return point


def extract(encoded: Encoded, point: np.ndarray) -> np.ndarray:
    """Returns the clip `(*shape)` of a point, exactly in the box and changed only on the point's cover."""
    region = encoded.region
    clip = region.centre.copy()
    values = point[encoded.entry_columns]
    if region.choice is not None:
        cover = region.choice.cover @ np.round(point[encoded.choice_columns])
        covered = cover[encoded.entries % cover.size] > 0.5
        values = np.where(covered, values, region.centre[encoded.entries])
    clip[encoded.entries] = values
    inside: np.ndarray = np.clip(clip, region.lower, region.upper)
    return inside.reshape(region.shape)


def _forward(encoded: Encoded, clip: np.ndarray) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Computes all pre-activations, and the output."""
    sources: dict[int, np.ndarray] = {0: clip}
    operands: dict[int, np.ndarray] = {}
    value = clip
    for affine in encoded.maps:
        value = affine.bias + sum(matrix @ sources[source] for source, matrix in affine.weights.items())
        if affine.relu is not None:
            operands[affine.relu], sources[affine.relu] = value, np.maximum(value, 0.0)
    return operands, value


def _cover(encoded: Encoded, clip: np.ndarray) -> np.ndarray:
    """Returns the binaries of a member that covers every entry that the clip changes; NaN if there is none."""
    choice = encoded.region.choice
    assert choice is not None
    changed = (clip != encoded.region.centre).reshape(encoded.region.channels, -1).any(0)
    count = choice.cover.shape[1]
    program = MixedIntegerProgram(
        cost=-(choice.cover.T @ changed.astype(float)),
        rows=sp.csr_matrix(choice.rows),
        row_lower=choice.row_lower,
        row_upper=choice.row_upper,
        lower=np.zeros(count),
        upper=np.ones(count),
        integer=np.ones(count, dtype=bool),
    )
    solution = Highs().solve(program, SolveLimits(seconds=_COVER_SECONDS))
    if solution.point is None:
        return np.full(count, np.nan)
    chosen: np.ndarray = np.round(solution.point)
    covered = choice.cover @ chosen > 0.5
    return chosen if bool((covered | ~changed).all()) else np.full(count, np.nan)
