"""Members on crops: grouping of members that share a crop, and the cropped network on their boxes.

Members whose positions lie in the same *cell* of a grid share the crop of all voxels that any of them moves: its
layers, its clean values and the batch. Coarse cells make larger crops, fine cells more of them; the cheapest grid is
found by an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from stbp_milp.bounds.crops import Region, crop_work, cropped, footprint
from stbp_milp.bounds.problem import Problem
from stbp_milp.bounds.rounding import Rounding
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Convolution, Linear
from stbp_milp.sets import Patch, PerturbationSet, VoxelBox

_FRAME_GRAINS, _PLACE_GRAINS = (1, 2, 4), (1, 2, 4, 8, 16)
_USUAL_GRAIN = (1, 4)  # estimated first: the grid that is taken if there is no time to compare
_ESTIMATED = 16  # number of crops from which the cost of all is estimated
# In multiplications: the fixed cost of a crop (some hundred small tensor operations), and of reading one weight.
_PER_CROP = 1e8
_PER_WEIGHT = 20.0


@dataclass(frozen=True, eq=False)
class Cell:
    """Members that share a crop.

    Attributes:
        members: indices of the members, (n,) int64.
        voxels: the box of the clip that holds all voxels that any member moves, and all that layers need which read the
            clip together with other nodes.
    """

    members: Tensor
    voxels: Region


def cells(network: Network, members: PerturbationSet, expired: Callable[[], bool] = lambda: False) -> list[Cell]:
    """Groups members (parts with one member each) into the cells that are cheapest to bound.

    Args:
        expired: ends the comparison of grids early, with the cheapest so far.
    """
    ranges = voxel_ranges(members).cpu().numpy()
    channels = network.input_shape[0]
    weights = sum(n.layer.weight.numel() for n in network.nodes if isinstance(n.layer, Convolution | Linear))
    best, least = [np.arange(len(ranges))], np.inf
    counts: set[int] = set()
    for frames, place in sorted(product(_FRAME_GRAINS, _PLACE_GRAINS), key=lambda grain: grain != _USUAL_GRAIN):
        if counts and expired():
            break
        groups = _by_place(ranges, (frames, place, place))
        if len(groups) in counts:
            continue
        counts.add(len(groups))
        sample = [groups[i] for i in np.unique(np.linspace(0, len(groups) - 1, _ESTIMATED).astype(int))]
        cost = 0.0
        for group in sample:
            crop = footprint(network, _box(ranges[group], channels, members.choice.voxels))
            cost += _PER_CROP + _PER_WEIGHT * weights + len(group) * crop_work(network, crop)
        cost *= len(ranges) / sum(map(len, sample))
        if cost < least:
            best, least = groups, cost
    device = members.choice.device
    boxes = [_grown(network, _box(ranges[group], channels, members.choice.voxels)) for group in best]
    return [Cell(torch.from_numpy(group).to(device), box) for group, box in zip(best, boxes, strict=True)]


def _grown(network: Network, voxels: Region) -> Region:
    """Returns the smallest box around these voxels whose footprint needs no voxel outside of it."""
    while (grown := footprint(network, voxels)[0]) != voxels:
        voxels = grown
    return voxels


def member_work(network: Network, members: PerturbationSet) -> float:
    """Returns the multiplications of a pass through the crop of one member, the middle one."""
    middle = torch.tensor([members.parts // 2], device=members.choice.device)
    ranges = voxel_ranges(members.select(middle)).cpu().numpy()
    return crop_work(network, footprint(network, _box(ranges, network.input_shape[0], members.choice.voxels)))


def cell_problem(problem: Problem, members: PerturbationSet, voxels: Region) -> Problem:
    """Returns the cropped network on the boxes of the members.

    Args:
        problem: the whole network around the members' clip.
        voxels: the voxels of a cell: a box of the clip that holds all voxels that any member moves.
    """
    regions = footprint(problem.network, voxels)
    voxels = regions[0]
    clean = tuple(region.of(value) for region, value in zip(regions, problem.clean, strict=True))
    frames, rows, columns = (slice(*ends) for ends in voxels.ranges[1:])
    moves = members.choice.union()[:, frames, rows, columns].unsqueeze(1)
    lower, upper = (voxels.of(x.unsqueeze(0)) for x in (members.lower, members.upper))
    centre = clean[0].expand(len(moves), *clean[0].shape[1:])
    boxes = VoxelBox(centre, torch.where(moves, lower, centre), torch.where(moves, upper, centre))
    rounding = problem.rounding
    if rounding is not None:  # a crop's sums have no more terms than the whole network's, and its values are the same
        errors = tuple(region.of(error) for region, error in zip(regions, rounding.errors, strict=True))
        rounding = Rounding(rounding.gamma, errors)
    return Problem(cropped(problem.network, regions), boxes, clean, rounding=rounding)


def cell_neurons(network: Network, voxels: Region) -> dict[int, Tensor]:
    """Returns, per nonlinear node, the flat indices `(n,)` of the crop's neurons in the whole network."""
    regions = footprint(network, voxels)
    shapes = {i: network.nodes[network.operand(i)].shape for i in network.nonlinear}
    return {
        i: regions[network.operand(i)].of(torch.arange(math.prod(shape)).view(1, *shape)).flatten()
        for i, shape in shapes.items()
    }


def crops_at_once(crop: Network, whole: Network) -> int:
    """Returns how many crops together take no more memory than the whole network, which fits; 1 at least."""
    sizes = [sum(math.prod(node.shape) for node in network.nodes) for network in (crop, whole)]
    return max(1, sizes[1] // sizes[0])


def voxel_indices(voxels: Region, device: torch.device) -> Tensor:
    """Returns the flat indices `(n,)` of a crop's inputs in the clip."""
    return voxels.of(torch.arange(math.prod(voxels.view), device=device).view(1, *voxels.view)).flatten()


def voxel_ranges(members: PerturbationSet) -> Tensor:
    """Returns, per part, the smallest box of voxels around what it can move: `(N, 3, 2)`, first and last plus one."""
    choice = members.choice
    if isinstance(choice, Patch):
        return torch.stack([choice.first, choice.last + torch.tensor(choice.size, device=choice.device)], -1)
    boxes = []
    for items in torch.split(
        torch.arange(choice.parts, device=choice.device), max(1, (1 << 25) // math.prod(choice.voxels))
    ):
        moves = choice.select(items).union()
        ends = []
        for axis in (1, 2, 3):
            on_axis = moves.any([a for a in (3, 2, 1) if a != axis]).to(torch.int8)
            ends.append(torch.stack([on_axis.argmax(1), on_axis.shape[1] - on_axis.flip(1).argmax(1)], -1))
        boxes.append(torch.stack(ends, 1))
    return torch.cat(boxes)


def _by_place(ranges: np.ndarray, grain: tuple[int, int, int]) -> list[np.ndarray]:
    """Groups members of equal size whose first voxels lie in the same cell."""
    starts, sizes = ranges[..., 0] // np.array(grain), ranges[..., 1] - ranges[..., 0]
    keys = np.concatenate([starts, sizes], 1)
    bases = np.cumprod([1, *(keys.max(0) + 1)[:-1]])
    of_member = keys @ bases
    order = np.argsort(of_member, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(of_member[order])) + 1)


def _box(ranges: np.ndarray, channels: int, voxels: Sequence[int]) -> Region:
    first, last = ranges[..., 0].min(0).tolist(), ranges[..., 1].max(0).tolist()
    return Region((channels, *voxels), ((0, channels), *zip(first, last, strict=True)))
