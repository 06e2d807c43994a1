"""Members on crops: which of them share one, and the cropped network on their boxes.

Members whose places lie in the same *cell* of a grid share the crop of all voxels that any of them moves: its layers,
its clean values, and the batch. Coarse cells make larger crops, fine cells more of them; what costs least is estimated.
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
_USUAL_GRAIN = (1, 4)  # the first that is estimated: what is left where there is no time to compare
_ESTIMATED = 16  # crops whose cost stands for that of all
# In multiplications: some hundred small tensor operations on a crop, and reading one weight for a batch.
_PER_CROP = 1e8
_PER_WEIGHT = 20.0


@dataclass(frozen=True, eq=False)
class Cell:
    """Members that share a crop.

    Attributes:
        members: (n,) int64, which.
        voxels: the box of the clip that holds all that any of them moves, and all that layers which read the clip
            beside others need of it.
    """

    members: Tensor
    voxels: Region


def cells(network: Network, members: PerturbationSet, expired: Callable[[], bool] = lambda: False) -> list[Cell]:
    """Members (sets with one member each) in the cells that are cheapest to bound.

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
    """The smallest box around these voxels that is the input's whole part in its own footprint."""
    while (grown := footprint(network, voxels)[0]) != voxels:
        voxels = grown
    return voxels


def member_work(network: Network, members: PerturbationSet) -> float:
    """Multiplications of a pass through the crop of one member, the one in the middle."""
    middle = torch.tensor([members.parts // 2], device=members.choice.device)
    ranges = voxel_ranges(members.select(middle)).cpu().numpy()
    return crop_work(network, footprint(network, _box(ranges, network.input_shape[0], members.choice.voxels)))


def cell_problem(problem: Problem, members: PerturbationSet, voxels: Region) -> Problem:
    """The cropped network on the boxes of members.

    Args:
        problem: the whole network around the members' clip.
        voxels: a cell's: a box of the clip that holds all that any of them moves.
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
    if rounding is not None:  # a crop's sums have no more terms, and its values are the whole network's
        errors = tuple(region.of(error) for region, error in zip(regions, rounding.errors, strict=True))
        rounding = Rounding(rounding.gamma, errors)
    return Problem(cropped(problem.network, regions), boxes, clean, rounding=rounding)


def cell_neurons(network: Network, voxels: Region) -> dict[int, Tensor]:
    """By ReLU: where the neurons of its crop lie in the whole one, flat indices `(n,)`."""
    regions = footprint(network, voxels)
    shapes = {relu: network.nodes[relu].shape for relu in network.relus}
    return {
        relu: regions[relu].of(torch.arange(math.prod(shape)).view(1, *shape)).flatten()
        for relu, shape in shapes.items()
    }


def crops_at_once(crop: Network, whole: Network) -> int:
    """How many crops together take no more memory than the whole network, which there is room for; 1 at least."""
    sizes = [sum(math.prod(node.shape) for node in network.nodes) for network in (crop, whole)]
    return max(1, sizes[1] // sizes[0])


def voxel_indices(voxels: Region, device: torch.device) -> Tensor:
    """Where a crop's inputs lie in the clip: flat indices `(n,)`."""
    return voxels.of(torch.arange(math.prod(voxels.view), device=device).view(1, *voxels.view)).flatten()


def voxel_ranges(members: PerturbationSet) -> Tensor:
    """The smallest box of voxels around what every part can move: `(N, 3, 2)`, from first to last plus one."""
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
    """Members of one size whose first voxels lie in one cell, cell by cell."""
    starts, sizes = ranges[..., 0] // np.array(grain), ranges[..., 1] - ranges[..., 0]
    keys = np.concatenate([starts, sizes], 1)
    bases = np.cumprod([1, *(keys.max(0) + 1)[:-1]])
    of_member = keys @ bases
    order = np.argsort(of_member, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(of_member[order])) + 1)


def _box(ranges: np.ndarray, channels: int, voxels: Sequence[int]) -> Region:
    first, last = ranges[..., 0].min(0).tolist(), ranges[..., 1].max(0).tolist()
    return Region((channels, *voxels), ((0, channels), *zip(first, last, strict=True)))
