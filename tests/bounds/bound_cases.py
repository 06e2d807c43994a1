"""Small networks and sets for the laws of bounds, and clips that bounds must hold on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.graph import Network
from stbp_milp.network.torch_reader import read_module
from stbp_milp.sets import InputSet, PerturbationSet, SetSpecification, VoxelBox, concatenate
from tests import enumeration, micro_instances

BODIES = micro_instances.BODIES
CURVED = micro_instances.CURVED


def case(body: str, text: str, seed: int, epsilon: float = 0.3) -> tuple[Network, PerturbationSet]:
    """A network of this body with three scores, in float64, and a set around a random clip of 1x3x4x4."""
    torch.manual_seed(seed)
    clip = enumeration.random_clip(seed, 1, (3, 4, 4))
    module = nn.Sequential(micro_instances.body(body, 1), nn.Flatten(), nn.LazyLinear(3)).eval()
    with torch.no_grad():
        module(clip.float().unsqueeze(0))
        for parameter in module.parameters():
            parameter.mul_(2.0)
    return read_module(module, tuple(clip.shape)), SetSpecification(text, epsilon).build(clip)


def split(perturbation: PerturbationSet, times: int, seed: int) -> PerturbationSet:
    """Parts of the set after some rounds of splits, all of the last round."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(times):
        forms = torch.randn(perturbation.parts, *perturbation.clip.shape, generator=generator, dtype=torch.float64)
        children, _ = perturbation.split(forms)
        perturbation = children if children.parts else perturbation
    return perturbation


def single_members(perturbation: PerturbationSet) -> PerturbationSet:
    """All members, or the first ones of large sets, as parts of their own."""
    choice, alone = perturbation.choice, []
    for _ in range(60):
        members = choice.members()
        alone += [choice.select(torch.tensor([i])) for i in (members == 1).nonzero().flatten().tolist()]
        choice = choice.select((members > 1).nonzero().flatten()[:4])
        if not choice.parts or len(alone) >= 12:
            break
        choice, _ = choice.split(torch.zeros(choice.parts, *choice.voxels, dtype=torch.float64))
    base = perturbation
    return concatenate([PerturbationSet(base.clip, base.lower, base.upper, c) for c in alone])


def hull_box(perturbation: PerturbationSet) -> VoxelBox:
    """The set without its choice: all clips between the corners of its hull."""
    lower, upper = perturbation.hull()
    return VoxelBox(perturbation.centre.expand_as(lower), lower, upper)


def random_forms(inputs: InputSet, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (inputs.parts, count, *inputs.centre.shape[1:])
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def members_of(inputs: InputSet, seed: int, count: int = 12) -> Tensor:
    """Inputs of every set, `(N, count, *shape)`: its centre, corners, and points between the centre and a corner."""
    corners = inputs.maximiser(random_forms(inputs, count, seed))
    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.rand(corners.shape, generator=generator, dtype=torch.float64)
    weight[:, : count // 2] = 1.0
    weight[:, -1] = 0.0
    centre = inputs.centre.unsqueeze(1)
    return centre + weight * (corners - centre)


def operands(problem: Problem, points: Tensor) -> dict[int, Tensor]:
    """The operand of every nonlinear node on points `(N, count, *shape)`: `(N, count, *shape of the operand)`."""
    network = problem.network
    found: dict[int, list[Tensor]] = {relu: [] for relu in network.nonlinear}
    for i, own in enumerate(points):
        one = problem.select(torch.tensor([i])).network
        # A network with matrices of its own for each item takes one clip at a time.
        values = [one.values(point.unsqueeze(0)) for point in own]
        for relu in network.nonlinear:
            found[relu].append(torch.cat([v[network.nodes[relu].inputs[0]] for v in values]))
    return {relu: torch.stack(parts) for relu, parts in found.items()}


def escape(bounds: dict[int, Interval], seen: dict[int, Tensor]) -> float:
    """By how much the values leave the bounds; negative or 0 if they do not."""
    worst = -torch.inf
    for relu, interval in bounds.items():
        low, high = interval.lower.unsqueeze(1) - seen[relu], seen[relu] - interval.upper.unsqueeze(1)
        worst = max(worst, float(low.max()), float(high.max()))
    return worst
