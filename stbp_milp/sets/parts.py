"""Division of a set into a given number of parts, so that several workers can share it.

The parts depend only on the set and the number, not on the machine: part 3 of 8 is the same everywhere.
Law: the members of the set are exactly the members of its parts.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from stbp_milp.sets.blocks import Blocks
from stbp_milp.sets.perturbation import PerturbationSet


def divide(whole: PerturbationSet, count: int) -> list[PerturbationSet]:
    """Divides a set of one part into at most `count` parts; fewer if it has fewer members.

    The part with the most members is split again and again until there are enough.
    """
    parts = [whole]
    while len(parts) < count:
        members = [float(part.choice.members()[0]) for part in parts]
        at = members.index(max(members))
        if members[at] <= 1:
            break
        parts[at : at + 1] = _halves(parts[at])
    return parts


def _halves(part: PerturbationSet) -> list[PerturbationSet]:
    if isinstance(part.choice, Blocks) and (halved := _halved_blocks(part.choice)) is not None:
        return [replace(part, choice=choice) for choice in halved]
    level = part.clip.new_zeros(1, *part.clip.shape)
    children, _ = part.split(level)
    return [children.select(torch.tensor([i])) for i in range(children.parts)]


def _halved_blocks(choice: Blocks) -> tuple[Blocks, Blocks] | None:
    """Halves the free blocks of a group that may take only one more; None if there is no such group.

    Splitting by "this block or not" would leave nearly all members in one part.
    """
    free = choice.allowed[0] & ~choice.forced[0]  # (groups, blocks)
    one_left = choice.budget - choice.forced[0].sum(-1) == 1
    sizes = torch.where(one_left, free.sum(-1), 0)
    group = int(sizes.argmax())
    if int(sizes[group]) < 2:
        return None
    blocks = free[group].nonzero().flatten()
    halves = []
    for dropped in blocks.tensor_split(2):
        allowed = choice.allowed.clone()
        allowed[0, group, dropped] = False
        halves.append(replace(choice, allowed=allowed))
    return halves[0], halves[1]
