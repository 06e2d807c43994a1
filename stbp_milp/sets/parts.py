"""A set in a given number of parts, so that several workers can share it.

The parts depend on the set and the number alone, not on the machine: whoever asks for part 3 of 8 gets the same one.
Law: the members of the set are exactly the members of its parts.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from stbp_milp.sets.blocks import Blocks
from stbp_milp.sets.perturbation import PerturbationSet


def divide(whole: PerturbationSet, count: int) -> list[PerturbationSet]:
    """At most `count` parts of a set of one part; fewer where it has fewer members.

    The part with the most members is split until there are enough.
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
    """The one free block of a group lies in one half of its blocks or in the other; None where no group has just one.

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
