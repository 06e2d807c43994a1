"""Where the search starts: the whole set, or its members one by one on small networks of their own.

Those are matrices of the neurons that neighbours reach, or crops of every layer where the network is too large to be
written down as matrices.

A quick bound comes before an expensive one: intervals above the first layer settle most members; backward bounds of
hidden layers most others; optimised slopes, on all layers, what is left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.cells import (
    cell_neurons,
    cell_problem,
    cells,
    crops_at_once,
    member_work,
    voxel_indices,
)
from stbp_milp.bounds.duals import Duals
from stbp_milp.bounds.fold import fold
from stbp_milp.bounds.footprint import Group, Restrictor, grouped, whole_entries
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.objective import ObjectiveBound, bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Preactivations, Problem, select_preactivations
from stbp_milp.branching.benefit import Benefit
from stbp_milp.branching.expand import Expander
from stbp_milp.branching.piece import Batch, Family, Piece, stack
from stbp_milp.errors import OutOfTimeError
from stbp_milp.network.normal_form import normal_form
from stbp_milp.search import Deadline
from stbp_milp.sets import InputSet, PerturbationSet, VoxelBox, concatenate

_DENSE_PAYS = 12  # products of dense matrices are about so much faster, a multiplication, than small convolutions
_WHOLE_AT_ONCE = 8  # members bounded together on the whole network: between two looks at the clock
_AT_ONCE = 64  # and on a smaller one
_MEMBERS_SHARE = 0.5  # of the time left, that bounding members one by one may take before the set is split instead
_HIDDEN_SHARE = 0.5  # of the time left, that bounds of hidden layers may take before what they are for
_GRIDS_SHARE = 0.05  # and the comparison of grids for crops
_GROUPING_RATE = 8e8  # multiplications of members' crops that putting them in groups takes a second for
_OPEN_BYTES = 64  # for a neuron of every piece that a batch of members may become


@dataclass(frozen=True, eq=False)
class Roots:
    """The first pieces of a search, already bounded."""

    expander: Expander

    def pieces(
        self,
        family: Family,
        inputs: InputSet,
        method: str,
        optimiser: OptimiserOptions,
        tighten: Deadline | None = None,
        first_item: int = 0,
        keep: bool = True,
    ) -> list[Piece]:
        """One piece for every part of `inputs` and clause, clause by clause.

        Args:
            tighten: until when bounds of hidden layers may be improved for parts that are not settled; None: not at
                all.
            first_item: in a family of members, which one part 0 is (the others follow).
            keep: may the pieces be expanded? Otherwise they are forgotten but for their bounds.

        Raises:
            OutOfTimeError: the time was over before the first bound.
        """
        expander = self.expander
        items = [first_item + i if family.members is not None else 0 for i in range(inputs.parts)]
        problem = family.on(inputs, items)
        memory, expired = expander.options.bounding.memory_bytes, expander.deadline.expired
        with expander.guarded():
            bounds = preactivations(problem, replace(expander.options.bounding, deep="interval"))
            with expander.passes.measured(expander.work(problem, problem.parts * expander.rows.shape[0])):
                found = bound_once(
                    problem, bounds, expander.rows, expander.offset, memory_bytes=memory, expired=expired
                )
        expander.counts["subproblems"] += problem.parts
        open_ = self._open(found)
        more = optimiser.steps > 0 or expander.options.bounding.deep != "interval"
        if more and len(open_) and not expander.deadline.expired():
            # What time leaves unfinished keeps its first bound.
            with suppress(OutOfTimeError):
                bounds, found = self._improved(problem, bounds, found, open_, expander.options.bounding, optimiser)
        if tighten is not None:
            bounds, found = self._tightened(problem, bounds, found, tighten)
        keep = keep and not expander.deadline.expired()
        pieces: list[Piece] = []
        worst = found.lower.argmin(1) if self._on_crops(family) else None  # a run of every candidate is dear
        for clause in range(expander.rows.shape[0]):
            one = _only_row(found, clause)
            tried = one.lower[:, 0] if worst is None else one.lower[:, 0].where(worst == clause, torch.inf)
            expander.try_minimisers(family, problem, one, tried, method)
            index = torch.full((problem.parts,), clause, device=problem.device)
            batch = Batch(problem, bounds, {}, index, one.lower[:, 0], one.duals)
            pieces += expander.pieces_of(family, items, batch, [0] * problem.parts, method, keep)
        return pieces

    def share(self) -> Deadline:
        """The time that tightening first pieces may take."""
        deadline = self.expander.deadline
        return deadline.within(self.expander.options.tighten_share * deadline.remaining())

    def _open(self, found: ObjectiveBound) -> Tensor:
        """The items that are not settled, those furthest from proof first."""
        still = (~(found.lower > self.expander.target).all(1)).nonzero().flatten()
        return still[found.lower[still].amin(1).argsort()]

    def _improved(
        self,
        problem: Problem,
        bounds: Preactivations,
        found: ObjectiveBound,
        items: Tensor,
        bounding: BoundingOptions,
        optimiser: OptimiserOptions,
        share: Deadline | None = None,
    ) -> tuple[dict[int, Interval], ObjectiveBound]:
        """The items bounded with more effort, the others as they were."""
        expander = self.expander
        part = problem.select(items)
        half = expander.deadline.within(_HIDDEN_SHARE * expander.deadline.remaining()) if share is None else share

        def settled(lower: Tensor, items: Tensor) -> Tensor:
            return (lower > expander.target).all(1)

        with expander.guarded():
            known = select_preactivations(bounds, items)
            own = preactivations(part, bounding, known, expired=half.expired, same_sets=True)
            better = optimise(
                part,
                own,
                expander.rows,
                expander.offset,
                settled,
                optimiser,
                found.duals.select(items),
                expired=expander.ascent_end(part, part.parts * expander.rows.shape[0]),
                memory_bytes=expander.options.bounding.memory_bytes,
            )
        updated = {
            k: Interval(b.lower.index_copy(0, items, own[k].lower), b.upper.index_copy(0, items, own[k].upper))
            for k, b in bounds.items()
        }
        return updated, found.updated(items, better)

    def _tightened(
        self, problem: Problem, bounds: dict[int, Interval], found: ObjectiveBound, share: Deadline
    ) -> tuple[dict[int, Interval], ObjectiveBound]:
        """Better bounds of hidden layers, by optimised slopes, for parts that are not settled, while time allows."""
        options = self.expander.options
        tight = replace(options.bounding, slope_steps=options.tighten_steps)
        whole = problem.network is self.expander.whole.problem.network
        for items in torch.split(self._open(found), 4 if whole else _AT_ONCE):
            if share.expired() or not options.tighten_steps or not len(items):
                break
            try:
                bounds, found = self._improved(problem, bounds, found, items, tight, options.root, share)
            except OutOfTimeError:
                break
            self.expander.counts["tightened"] += len(items)
        return bounds, found

    # --- members --------------------------------------------------------------------------------------------

    def member_pieces(
        self, members: PerturbationSet, method: str, grouping: Deadline | None = None
    ) -> list[Piece] | None:
        """Pieces of sets with one member each, on restricted networks where those are cheaper, or on crops.

        None where members are too many to be bounded one by one: on the whole network, or in the time that is left.

        Args:
            grouping: until when members may be put in groups.

        Raises:
            OutOfTimeError: that was not enough.
        """
        groups = self._groups(members, grouping or self.expander.deadline)
        on_whole = groups is None and self.expander.stages is not None
        if on_whole and members.parts > self.expander.options.few_members:
            return None
        bounded = self._members_bounded(members, groups, method, OptimiserOptions(steps=0), None, keep=False)
        if not bounded and members.parts and not self._over():
            return None
        self.expander.counts["members bounded"] += len(bounded)
        open_ = [m for m, pieces in bounded.items() if any(p.lower <= self.expander.target for p in pieces)]
        if open_ and not self.expander.deadline.expired():
            # More effort for those that one cheap pass does not settle. Where time ends before all of them are
            # reached, the others keep their first bounds; nothing will expand them.
            order = sorted(open_, key=lambda m: min(p.lower for p in bounded[m]))
            hard = torch.tensor(order, device=members.clip.device)
            again = members.select(hard)
            better: dict[int, list[Piece]] = {}
            with suppress(OutOfTimeError):
                groups = groups and self._groups(again, self.expander.deadline)
                better = self._members_bounded(
                    again, groups, method, self.expander.options.root, self.share(), keep=True
                )
            for m, pieces in better.items():
                bounded[order[m]] = [_better(*both) for both in zip(bounded[order[m]], pieces, strict=True)]
        found = self._folded([piece for pieces in bounded.values() for piece in pieces])
        missing = next((m for m in range(members.parts) if m not in bounded), None)
        if missing is not None:
            # Stands for all members that time did not reach: without a bound, nothing is proved.
            one = members.select(torch.tensor([missing], device=members.clip.device))
            found.append(Piece(self.expander.whole, 0, one, {}, {}, 0, -torch.inf, Duals(), 0, 1.0, 0, method))
        return found

    def _folded(self, pieces: list[Piece]) -> list[Piece]:
        """Open pieces on networks of what is undecided, where those are small."""
        if self.expander.stages is None:  # crops are networks of deviations, which have no matrices of values
            return pieces
        families: dict[int, list[int]] = {}
        for i, piece in enumerate(pieces):
            if piece.lower <= self.expander.target and piece.bounds:
                families.setdefault(piece.group, []).append(i)
        result = list(pieces)
        most = self.expander.options.family_memory // 64
        for own in families.values():
            if self.expander.deadline.expired():
                break
            family = pieces[own[0]].family
            known = stack([pieces[i] for i in own]).bounds
            folded = None
            with suppress(OutOfTimeError):
                expired = self.expander.deadline.expired
                whole = family.voxels is None
                stages = self.expander.stages if whole else normal_form(family.problem.network, expired)
                folded = fold(family.problem, stages, known, most, expired)
            if folded is None:
                continue
            new = replace(family, problem=folded.problem, folded=True, neurons=family.left(folded.neurons))
            for i in own:
                bounds, duals = folded.bounds(pieces[i].bounds), folded.duals(pieces[i].duals)
                result[i] = replace(pieces[i], family=new, bounds=bounds, duals=duals)
        return result

    def _groups(self, members: PerturbationSet, until: Deadline) -> list[Group] | None:
        """Members in groups with a restricted network each; None where the whole network is cheaper.

        Raises:
            OutOfTimeError: there was no time for it.
        """
        stages, options = self.expander.stages, self.expander.options
        if stages is None:
            return None
        work = 2 * members.parts * member_work(self.expander.whole.problem.network, members)
        if work > _GROUPING_RATE * until.remaining():
            raise OutOfTimeError("members are too many to be put in groups in the time there is")
        groups = grouped(stages, members, options.family_memory // 8, until.expired)
        dearest = max(group.entries for group in groups)
        return None if dearest > _DENSE_PAYS * whole_entries(stages) else groups

    def _members_bounded(
        self,
        members: PerturbationSet,
        groups: list[Group] | None,
        method: str,
        optimiser: OptimiserOptions,
        tighten: Deadline | None,
        keep: bool,
    ) -> dict[int, list[Piece]]:
        """The pieces of every member that time allows, batch by batch; none where it would be too little.

        The first time (not `keep`) whole families are bounded at once where that pays.
        """
        bounded: dict[int, list[Piece]] = {}
        with suppress(OutOfTimeError):
            if not self._bound_members(bounded, members, groups, method, optimiser, tighten, keep):
                return {}
        return bounded

    def _bound_members(
        self,
        bounded: dict[int, list[Piece]],
        members: PerturbationSet,
        groups: list[Group] | None,
        method: str,
        optimiser: OptimiserOptions,
        tighten: Deadline | None,
        keep: bool,
    ) -> bool:
        """Adds to `bounded` the pieces of one member after the other; False where time would not allow all of them.

        Raises:
            OutOfTimeError: the time is over; `bounded` holds whole members only.
        """
        kept, benefit = 0, Benefit()
        for items, family in self._families(members, groups, keep):
            if self._over():
                return True
            left = members.parts - len(bounded)
            if not keep and not benefit.affordable(left, _MEMBERS_SHARE * self.expander.deadline.remaining()):
                return False
            began = time.monotonic()
            if not keep and len(items) > 1 and benefit.pays(len(items)):
                together = self._together(family, method)
                benefit.tried(bool(together), time.monotonic() - began)
                bounded.update(zip(items.tolist(), together, strict=False))
                if together:
                    continue
            for at in torch.split(torch.arange(len(items), device=items.device), self._at_once(family, keep)):
                began = time.monotonic()
                inputs = family.problem.inputs.select(at)
                found = self.pieces(family, inputs, method, optimiser, tighten, int(at[0]), keep)
                for k, piece in enumerate(found):  # clause by clause, within a clause member by member
                    bounded.setdefault(int(items[at[k % len(at)]]), []).append(piece)
                kept += sum(piece.memory for piece in found)
                full = kept > self.expander.options.open_memory  # the search will not go on, see there
                if full or self._over():
                    return True
                benefit.bounded(len(at), time.monotonic() - began)
                if not keep and not self._affordable(benefit, members.parts - len(bounded)):
                    return False
        return True

    def _affordable(self, benefit: Benefit, members: int) -> bool:
        return benefit.affordable(members, _MEMBERS_SHARE * self.expander.deadline.remaining())

    def _over(self) -> bool:
        return self.expander.deadline.expired() or self.expander.witness.found

    def _together(self, family: Family, method: str) -> list[list[Piece]]:
        """The pieces of all members of a family of boxes, if one bound of the box around them settles them all."""
        expander, (lower, upper) = self.expander, family.problem.inputs.hull()
        lower, upper = lower.amin(0, keepdim=True), upper.amax(0, keepdim=True)
        problem = replace(family.problem, inputs=VoxelBox(family.problem.inputs.centre[:1], lower, upper), ideal={})
        with expander.guarded():
            bounds = preactivations(problem, replace(expander.options.bounding, deep="interval"))
            found = bound_once(problem, bounds, expander.rows, expander.offset)
        if not bool((found.lower > expander.target).all()):
            return []
        expander.counts["groups settled"] += 1
        light = replace(family, problem=expander.whole.problem)
        clauses = list(enumerate(found.lower[0].tolist()))
        return [
            [Piece(light, i, inputs, {}, {}, clause, bound, Duals(), 0, 1.0, 0, method) for clause, bound in clauses]
            for i, inputs in enumerate(
                map(
                    family.problem.inputs.select,
                    torch.split(torch.arange(family.problem.parts, device=lower.device), 1),
                )
            )
        ]

    def promoted(self, pieces: list[Piece]) -> list[Piece]:
        """Open pieces of one member each, left over from splits of the set, as boxes, like first pieces."""
        result = list(pieces)
        for clause in {piece.clause for piece in pieces}:
            at = [i for i, piece in enumerate(pieces) if piece.clause == clause]
            row = torch.tensor([clause], device=self.expander.rows.device)
            alone = replace(self.expander, rows=self.expander.rows[row], offset=self.expander.offset[row])
            roots = Roots(alone)
            members = concatenate([pieces[i].inputs for i in at])  # type: ignore[type-var]
            assert isinstance(members, PerturbationSet)
            try:
                groups = roots._groups(members, alone.deadline)
            except OutOfTimeError:
                return result
            bounded = roots._members_bounded(members, groups, "split", alone.options.root, roots.share(), keep=True)
            found = roots._folded([own for (own,) in bounded.values()])
            for member, own in zip(bounded, found, strict=True):
                old = pieces[at[member]]
                result[at[member]] = replace(own, clause=clause, lower=max(own.lower, old.lower), splits=old.splits)
        return result

    def _at_once(self, family: Family, keep: bool) -> int:
        """How many members of a family are bounded together."""
        if family.voxels is None:
            return max(1, min(_WHOLE_AT_ONCE, self.expander.options.at_once // self.expander.rows.shape[0]))
        if not self._on_crops(family):
            return _AT_ONCE
        crop = family.problem.network
        most = crops_at_once(crop, self.expander.whole.problem.network)
        if keep:  # every clause of every member keeps bounds of its own
            each = _OPEN_BYTES * self.expander.rows.shape[0] * sum(math.prod(node.shape) for node in crop.nodes)
            most = min(most, self.expander.options.open_memory // each)
        return max(1, min(_AT_ONCE, most))

    def _on_crops(self, family: Family) -> bool:
        return self.expander.stages is None and family.voxels is not None

    def _families(
        self, members: PerturbationSet, groups: list[Group] | None, keep: bool
    ) -> Iterator[tuple[Tensor, Family]]:
        """Which members, and the family they are bounded in: on crops without stages, all on the whole network
        without groups.

        `keep`: the networks stay alive; those that memory has no room for are left out, for the whole network.
        """
        whole, options = self.expander.whole, self.expander.options
        if self.expander.stages is None:
            deadline = self.expander.deadline
            for cell in cells(
                whole.problem.network, members, deadline.within(_GRIDS_SHARE * deadline.remaining()).expired
            ):
                own = members.select(cell.members)
                problem = cell_problem(whole.problem, own, cell.voxels)
                voxels = voxel_indices(cell.voxels, members.clip.device)
                neurons = {
                    relu: (relu, at.to(members.clip.device))
                    for relu, at in cell_neurons(whole.problem.network, cell.voxels).items()
                }
                yield cell.members, Family(problem, whole.whole, voxels, own, neurons=neurons)
            return
        rest = [torch.arange(members.parts, device=members.clip.device)]
        if groups is not None and self.expander.stages is not None:
            restrict = Restrictor(self.expander.stages, whole.problem.with_inputs(members))
            rest, kept = [], 0
            for group in groups:
                kept += 8 * group.entries
                if keep and kept > options.family_memory:
                    rest.append(group.members)
                    continue
                own = members.select(group.members)
                problem = restrict(group)
                relus = (stage.relu for stage in self.expander.stages if stage.relu is not None)
                neurons = {
                    relu: (here, group.neurons[relu]) for relu, here in zip(relus, problem.network.relus, strict=True)
                }
                yield group.members, self._family(problem, group.neurons[0], own, keep, neurons)
        if rest:
            # A member is a box, and the support of a box is cheap.
            items = torch.cat(rest)
            own = members.select(items)
            boxes = VoxelBox(own.centre.expand(own.parts, *own.clip.shape), *own.hull())
            yield items, self._family(whole.problem.with_inputs(boxes), None, own, keep)

    def _family(
        self,
        problem: Problem,
        voxels: Tensor | None,
        members: PerturbationSet,
        keep: bool,
        neurons: Mapping[int, tuple[int, Tensor]] | None = None,
    ) -> Family:
        """`keep`: with ideal relaxations, where the network is small enough for them."""
        if keep and self.expander.stages is not None:
            problem = problem.idealised(preactivations(problem, BoundingOptions("interval")))
        return Family(problem, self.expander.whole.whole, voxels, members, neurons=neurons)


def _better(first: Piece, second: Piece) -> Piece:
    """A member's piece after more effort; a first bound that was better holds still."""
    return replace(second, lower=max(first.lower, second.lower))


def _only_row(found: ObjectiveBound, row: int) -> ObjectiveBound:
    at = torch.tensor([row], device=found.lower.device)
    return ObjectiveBound(found.lower[:, at], found.form[:, at], {}, found.duals.rows(at))
