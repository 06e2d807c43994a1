"""A second implementation of the triangle relaxation, in cvxpy, from the layers and the set's text alone.

It shares no encoding with `stbp_milp.milp`: matrices are found by probing layers with unit vectors, and the convex hull
of the members is written out by the form of the set. Only the pre-activation bounds are given, as part of the question.
It is never a verdict, because the value that the solver reports is taken as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

import cvxpy
import numpy as np
import scipy.sparse as sp
import torch

from stbp_milp.errors import InputError
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Affine, Maximum, ReLU
from stbp_milp.network.operations import apply
from stbp_milp.query import Query

cp: Any = cvxpy  # its types name few of its functions

_PROBES = 1 << 22  # numbers of a layer's output that are held at once while it is probed

Boxes = Mapping[int, tuple[np.ndarray, np.ndarray]]


def least_margin(query: Query, boxes: Boxes, seconds: float) -> float:
    """The least margin over the relaxation, the least over clauses of the largest row; minus infinity out of time.

    Args:
        boxes: bounds `(size,)` of every ReLU's operand.
    """
    clip, constraints = _set(query)
    output = _network(query.model.network, clip, boxes, constraints)
    values = query.property.rows.numpy() @ output + query.property.offset.numpy()
    least = np.inf
    for clause in query.property.clauses:
        problem = cp.Problem(cp.Minimize(cp.max(values[list(clause)])), constraints)
        with np.errstate(invalid="ignore"):  # cvxpy multiplies its infinite bounds by 0 while it looks for signs
            problem.solve(solver=cp.HIGHS, time_limit=max(0.01, seconds / len(query.property.clauses)))
        if problem.status != cp.OPTIMAL:
            return -np.inf
        least = min(least, float(problem.value))
    return least


# --- the network ------------------------------------------------------------------------------------------


def _network(network: Network, clip: Any, boxes: Boxes, constraints: list[Any]) -> Any:
    """The output as an expression; every ReLU adds its triangle."""
    values = [clip]
    for position, node in enumerate(network.nodes[1:], start=1):
        if isinstance(node.layer, ReLU):
            values.append(_triangle(values[node.inputs[0]], *boxes[position], constraints))
            continue
        if not isinstance(node.layer, Affine):
            raise NotImplementedError(f"second opinion: no constraints for layer {type(node.layer).__name__}")
        shapes = [network.nodes[i].shape for i in node.inputs]
        total = apply(node.layer, [torch.zeros(1, *s, dtype=torch.float64) for s in shapes]).flatten().numpy()
        for operand, i in enumerate(node.inputs):
            if not (isinstance(node.layer, Maximum) and operand == 0):  # max(a, b) = b + relu(a - b)
                total = total + _probed(node.layer, operand, shapes) @ values[i]
        values.append(total)
    return values[-1]


def _triangle(operand: Any, lower: np.ndarray, upper: np.ndarray, constraints: list[Any]) -> Any:
    """`y` between `max(z, 0)` and the chord over `[lower, upper]`; decided neurons are `z` or 0."""
    active, open_ = lower >= 0, (lower < 0) & (upper > 0)
    own = np.flatnonzero(open_)
    value = sp.diags(active.astype(float)) @ operand
    if own.size:
        y, z = cp.Variable(own.size, nonneg=True), operand[own]
        slope = upper[own] / (upper[own] - lower[own])
        constraints += [y >= z, y <= cp.multiply(slope, z - lower[own]), z >= lower[own], z <= upper[own]]
        value = value + sp.csr_matrix((np.ones(own.size), (own, np.arange(own.size))), (lower.size, own.size)) @ y
    return value


def _probed(layer: object, operand: int, shapes: list[tuple[int, ...]]) -> sp.csr_matrix:
    """The layer's matrix for one operand, column by column."""
    zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
    constant = apply(layer, zeros).flatten(1)
    size, columns = zeros[operand].numel(), []
    for unit in torch.split(torch.arange(size), max(1, _PROBES // constant.numel())):
        probe = torch.zeros(len(unit), size, dtype=torch.float64)
        probe[torch.arange(len(unit)), unit] = 1.0
        points = [z.expand(len(unit), *z.shape[1:]) for z in zeros]
        points[operand] = probe.view(len(unit), *shapes[operand])
        columns.append(sp.csr_matrix((apply(layer, points).flatten(1) - constant).numpy()))
    return sp.vstack(columns).T.tocsr()


# --- the set ----------------------------------------------------------------------------------------------


def _set(query: Query) -> tuple[Any, list[Any]]:
    """The flat clip, and the convex hull of the members: voxels move as far as the weight of what covers them."""
    text, clip = query.set.text, query.clip.numpy()
    low, high = query.set.domain
    centre = clip.flatten()
    lower, upper = np.maximum(centre - query.set.epsilon, low), np.minimum(centre + query.set.epsilon, high)
    weights, constraints = _weights(text, (clip.shape[1], clip.shape[2], clip.shape[3]))
    x = cp.Variable(centre.size)
    cover = cp.hstack([weights] * clip.shape[0])
    constraints += [
        x - centre <= cp.multiply(upper - centre, cover),
        x - centre >= cp.multiply(lower - centre, cover),
    ]
    return x, constraints


def _weights(text: str, voxels: tuple[int, int, int]) -> tuple[Any, list[Any]]:
    """The weight `(T*H*W,)` of the covers that hold each voxel, and what the weights must keep to."""
    kind, (t, h, w) = text.split(":")[0], voxels
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    grid = np.arange(t * h * w).reshape(voxels)
    if kind == "everywhere":
        return _covered([grid.ravel()], grid.size, 1)
    if kind == "frames":
        return _covered([grid[sorted(set(numbers))].ravel()], grid.size, 1)
    if kind == "any-frames":
        return _covered([frame.ravel() for frame in grid], grid.size, numbers[0])
    if kind == "pixels":
        return _covered([np.array([v]) for v in grid.ravel()], grid.size, numbers[0])
    if kind == "pixels-per-frame":
        z = cp.Variable(grid.size)
        return z, [z >= 0, z <= 1, cp.sum(cp.reshape(z, (t, h * w), order="C"), axis=1) <= numbers[0]]
    if kind == "window":
        return _covered([grid[s : s + numbers[0]].ravel() for s in range(t - numbers[0] + 1)], grid.size, 1)
    if kind in ("patch", "patch-at"):
        *at, rows, columns, frames = numbers
        places = product(range(t - frames + 1), range(h - rows + 1), range(w - columns + 1))
        chosen = [tuple(at)] if at else list(places)
        blocks = [grid[s : s + frames, i : i + rows, j : j + columns].ravel() for s, i, j in chosen]
        return _covered(blocks, grid.size, 1)
    if kind == "moving-patch":
        return _moving(grid, *numbers)
    raise InputError(f"lp-cvxpy does not know the set {text!r}; leave the method out with --methods")


def _covered(blocks: list[np.ndarray], voxels: int, most: int) -> tuple[Any, list[Any]]:
    """At most `most` of the blocks, in the mean."""
    z = cp.Variable(len(blocks))
    rows, columns = np.concatenate(blocks), np.repeat(np.arange(len(blocks)), [b.size for b in blocks])
    cover = sp.csr_matrix((np.ones(rows.size), (rows, columns)), shape=(voxels, len(blocks)))
    return cover @ z, [z >= 0, z <= 1, cp.sum(z) <= most]


def _moving(grid: np.ndarray, rows: int, columns: int, frames: int) -> tuple[Any, list[Any]]:
    """One run of frames, and in each of its frames one place."""
    t, h, w = grid.shape
    starts = t - frames + 1
    run = cp.Variable(starts)
    constraints = [run >= 0, cp.sum(run) <= 1]
    weights = []
    for frame in range(t):
        places = product(range(h - rows + 1), range(w - columns + 1))
        blocks = [grid[0, i : i + rows, j : j + columns].ravel() for i, j in places]
        first, last = max(0, frame - frames + 1), min(starts - 1, frame)
        cover, own = _covered(blocks, h * w, 1)
        z = cover.args[1]
        constraints += [*own[:2], cp.sum(z) <= cp.sum(run[first : last + 1])]
        weights.append(cover)
    return cp.hstack(weights), constraints
