"""Members on networks of their own: of the neurons that they reach, as matrices, or crops of every layer.

Matrices where the whole network is small enough to be written down so; crops where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from stbp_milp.bounds.cells import cell_neurons, cell_problem, cells, crops_at_once, member_work, voxel_indices
from stbp_milp.bounds.fold import fold
from stbp_milp.bounds.footprint import MemberGroup, Restrictor, grouped, whole_entries
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.branching.bounder import Bounder
from stbp_milp.branching.piece import Family, Piece, stack
from stbp_milp.branching.views import CroppedView, FoldedView, RestrictedView, View, WholeView
from stbp_milp.errors import OutOfTimeError
from stbp_milp.network.normal_form import AffineMap, normal_form
from stbp_milp.search import Deadline
from stbp_milp.sets import PerturbationSet, VoxelBox

_WHOLE_AT_ONCE = 8  # members bounded together on the whole network: between two looks at the clock
_AT_ONCE = 64  # and on a smaller one
_GRIDS_SHARE = 0.05  # of the time left, that the comparison of grids for crops may take
_GROUPING_RATE = 8e8  # multiplications of members' crops that putting them in groups takes a second for
_OPEN_BYTES = 64  # for a neuron of every piece that a batch of members may become


class Divided(Protocol):
    """Members, divided into families that share a network."""

    @property
    def small(self) -> bool:
        """Are those networks smaller than the whole one, so that many members can be bounded one by one?"""

    def families(self, keep: bool) -> Iterator[tuple[Tensor, Family]]:
        """Which members, and their family.

        Args:
            keep: the networks stay alive; those that memory has no room for are left out, for the whole network.
        """

    def at_once(self, family: Family, keep: bool) -> int:
        """How many members of a family are bounded together."""

    def again(self, members: PerturbationSet, until: Deadline) -> Divided:
        """Some of the same members, divided anew.

        Raises:
            OutOfTimeError: there was no time for it.
        """


class Partition(Protocol):
    """A way of putting members on networks of their own."""

    def by(self, bounder: Bounder) -> Partition:
        """The same for another bounder of the same query."""

    def divided(self, members: PerturbationSet, until: Deadline) -> Divided:
        """The members (a set of one member each) in families.

        Raises:
            OutOfTimeError: there was no time for it.
        """

    def folded(self, pieces: list[Piece]) -> list[Piece]:
        """The pieces; open ones on networks of what is undecided, where those are small."""


@dataclass(frozen=True, eq=False)
class OnMatrices:
    """For a network whose normal form is known."""

    bounder: Bounder
    maps: Sequence[AffineMap]

    def by(self, bounder: Bounder) -> Partition:
        return replace(self, bounder=bounder)

    def divided(self, members: PerturbationSet, until: Deadline) -> Divided:
        work = 2 * members.parts * member_work(self.bounder.whole.problem.network, members)
        if work > _GROUPING_RATE * until.remaining():
            raise OutOfTimeError("members are too many to be put in groups in the time there is")
        groups = grouped(self.maps, members, self.bounder.options.family_memory // 8, until.expired)
        dearest = max(group.entries for group in groups)
        if dearest > self.bounder.options.dense_pays * whole_entries(self.maps):
            return _OnWhole(self.bounder, members)
        return _Restricted(self, members, groups)

    def folded(self, pieces: list[Piece]) -> list[Piece]:
        bounder = self.bounder
        families: dict[int, list[int]] = {}
        for i, piece in enumerate(pieces):
            if piece.lower <= bounder.target and piece.bounds:
                families.setdefault(piece.group, []).append(i)
        result = list(pieces)
        for own in families.values():
            if bounder.deadline.expired():
                break
            family = pieces[own[0]].family
            known = stack([pieces[i] for i in own]).bounded.bounds
            folded = None
            with suppress(OutOfTimeError):
                expired = bounder.deadline.expired
                whole = isinstance(family.view, WholeView)
                maps = self.maps if whole else normal_form(family.problem.network, expired)
                folded = fold(family.problem, maps, known, bounder.options.family_memory // 64, expired)
            if folded is None:
                continue
            new = replace(family, problem=folded.problem, view=FoldedView(family.view, folded.neurons))
            for i in own:
                bounds, duals = folded.bounds(pieces[i].bounds), folded.duals(pieces[i].duals)
                result[i] = replace(pieces[i], family=new, bounds=bounds, duals=duals)
        return result


@dataclass(frozen=True, eq=False)
class OnCrops:
    """For a network that is too large to be written down as matrices."""

    bounder: Bounder

    def by(self, bounder: Bounder) -> Partition:
        return replace(self, bounder=bounder)

    def divided(self, members: PerturbationSet, until: Deadline) -> Divided:
        return _Cropped(self.bounder, members)

    def folded(self, pieces: list[Piece]) -> list[Piece]:
        return pieces  # crops are networks of deviations, which have no matrices of values


@dataclass(frozen=True, eq=False)
class _OnWhole:
    """All members on the whole network."""

    bounder: Bounder
    members: PerturbationSet
    small: bool = False

    def families(self, keep: bool) -> Iterator[tuple[Tensor, Family]]:
        yield _boxes(self.bounder, self.members, torch.arange(self.members.parts, device=_device(self.members)), keep)

    def at_once(self, family: Family, keep: bool) -> int:
        return max(1, min(_WHOLE_AT_ONCE, self.bounder.options.at_once // len(self.bounder.clauses)))

    def again(self, members: PerturbationSet, until: Deadline) -> Divided:
        return replace(self, members=members)


@dataclass(frozen=True, eq=False)
class _Restricted:
    """Groups of members on what they reach, as matrices."""

    partition: OnMatrices
    members: PerturbationSet
    groups: Sequence[MemberGroup]
    small: bool = True

    def families(self, keep: bool) -> Iterator[tuple[Tensor, Family]]:
        bounder, maps, members = self.partition.bounder, self.partition.maps, self.members
        restrict = Restrictor(maps, bounder.whole.problem.with_inputs(members))
        relus = [affine.relu for affine in maps if affine.relu is not None]
        left_out, kept = [], 0
        for group in self.groups:
            kept += 8 * group.entries
            if keep and kept > bounder.options.family_memory:
                left_out.append(group.members)
                continue
            problem = restrict(group)
            neurons = {
                relu: (here, group.neurons[relu]) for relu, here in zip(relus, problem.network.relus, strict=True)
            }
            view = RestrictedView(bounder.whole.whole.clip, group.neurons[0], neurons)
            yield group.members, _family(bounder, problem, view, members.select(group.members), keep)
        if left_out:
            yield _boxes(bounder, members, torch.cat(left_out), keep)

    def at_once(self, family: Family, keep: bool) -> int:
        if isinstance(family.view, WholeView):
            return _OnWhole(self.partition.bounder, self.members).at_once(family, keep)
        return _AT_ONCE

    def again(self, members: PerturbationSet, until: Deadline) -> Divided:
        return self.partition.divided(members, until)


@dataclass(frozen=True, eq=False)
class _Cropped:
    """Members that share a cell of the grid, on crops of every layer."""

    bounder: Bounder
    members: PerturbationSet
    small: bool = True

    def families(self, keep: bool) -> Iterator[tuple[Tensor, Family]]:
        whole, members, deadline = self.bounder.whole, self.members, self.bounder.deadline
        network, device = whole.problem.network, _device(members)
        comparing = deadline.within(_GRIDS_SHARE * deadline.remaining())
        for cell in cells(network, members, comparing.expired):
            own = members.select(cell.members)
            problem = cell_problem(whole.problem, own, cell.voxels)
            neurons = {relu: (relu, at.to(device)) for relu, at in cell_neurons(network, cell.voxels).items()}
            view = CroppedView(whole.whole.clip, voxel_indices(cell.voxels, device), neurons)
            yield cell.members, Family(problem=problem, whole=whole.whole, view=view, members=own)

    def at_once(self, family: Family, keep: bool) -> int:
        crop, options = family.problem.network, self.bounder.options
        most = min(_AT_ONCE, crops_at_once(crop, self.bounder.whole.problem.network))
        if keep:  # every clause of every member keeps bounds of its own
            each = _OPEN_BYTES * len(self.bounder.clauses) * sum(math.prod(node.shape) for node in crop.nodes)
            most = min(most, options.open_memory // each)
        return max(1, most)

    def again(self, members: PerturbationSet, until: Deadline) -> Divided:
        return replace(self, members=members)


def _boxes(bounder: Bounder, members: PerturbationSet, items: Tensor, keep: bool) -> tuple[Tensor, Family]:
    """Members on the whole network, as boxes: the support of a box is cheap."""
    own = members.select(items)
    boxes = VoxelBox(own.centre.expand(own.parts, *own.clip.shape), *own.hull())
    return items, _family(bounder, bounder.whole.problem.with_inputs(boxes), WholeView(), own, keep)


def _family(bounder: Bounder, problem: Problem, view: View, members: PerturbationSet, keep: bool) -> Family:
    """A family on matrices; `keep`: with ideal relaxations, where the network is small enough for them."""
    if keep:
        problem = problem.idealised(preactivations(problem, BoundingOptions("interval")))
    return Family(problem=problem, whole=bounder.whole.whole, view=view, members=members)


def _device(members: PerturbationSet) -> torch.device:
    return members.clip.device
