"""Members on smaller networks of their own: matrices of the neurons that they reach, or crops of every layer.

Matrices are used if the whole network is small enough to be written down as matrices, crops otherwise.
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

_WHOLE_AT_ONCE = 8  # members bounded together on the whole network, between two checks of the clock
_AT_ONCE = 64  # the same on smaller networks
_GRIDS_SHARE = 0.05  # the share of the remaining time that the comparison of grids for crops may take
_GROUPING_RATE = 8e8  # grouping takes one second per so many multiplications of the members' crops
_OPEN_BYTES = 64  # bytes per neuron of every piece that a batch of members may become


class Divided(Protocol):
    """Members, divided into families that each share a network."""

    @property
    def small(self) -> bool:
        """Are these networks smaller than the whole one, so that many members can be bounded one by one?"""

    def families(self, keep: bool) -> Iterator[tuple[Tensor, Family]]:
        """Yields families with the indices of their members.

        Args:
            keep: do the networks stay alive? Members whose networks do not fit into memory then use the whole network.
        """

    def at_once(self, family: Family, keep: bool) -> int:
        """Returns how many members of a family are bounded together."""

    def again(self, members: PerturbationSet, until: Deadline) -> Divided:
        """Divides some of the same members anew.

        Raises:
            OutOfTimeError: there was no time for it.
        """


class Partition(Protocol):
    """A way of putting members on smaller networks."""

    def by(self, bounder: Bounder) -> Partition:
        """Returns the same partition for another bounder of the same query."""

    def divided(self, members: PerturbationSet, until: Deadline) -> Divided:
        """Divides the members (parts with one member each) into families.

        Raises:
            OutOfTimeError: there was no time for it.
        """

    def folded(self, pieces: list[Piece]) -> list[Piece]:
        """Returns the pieces, with open ones on folded networks if those are small."""


@dataclass(frozen=True, eq=False)
class OnMatrices:
    """The partition for a network whose normal form is known."""

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
    """The partition for a network that is too large to be written down as matrices."""

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
    """Groups of members on restricted networks of matrices."""

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
    """Members that share a cell of a grid, on crops of every layer."""

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
        if keep:  # every clause of every member keeps its own bounds
            each = _OPEN_BYTES * len(self.bounder.clauses) * sum(math.prod(node.shape) for node in crop.nodes)
            most = min(most, options.open_memory // each)
        return max(1, most)

    def again(self, members: PerturbationSet, until: Deadline) -> Divided:
        return replace(self, members=members)


def _boxes(bounder: Bounder, members: PerturbationSet, items: Tensor, keep: bool) -> tuple[Tensor, Family]:
    """Puts members on the whole network, as boxes, whose support functions are cheap."""
    own = members.select(items)
    boxes = VoxelBox(own.centre.expand(own.parts, *own.clip.shape), *own.hull())
    return items, _family(bounder, bounder.whole.problem.with_inputs(boxes), WholeView(), own, keep)


def _family(bounder: Bounder, problem: Problem, view: View, members: PerturbationSet, keep: bool) -> Family:
    """Makes a family of boxes; with `keep`, it gets ideal relaxations if it is small enough for them."""
    if keep:
        problem = problem.idealised(preactivations(problem, BoundingOptions("interval")))
    return Family(problem=problem, whole=bounder.whole.whole, view=view, members=members)


def _device(members: PerturbationSet) -> torch.device:
    return members.clip.device
