"""The first pieces of a search: the whole set, or its members one by one on small networks of their own.

Cheap bounds come before expensive ones: intervals above the first layer settle most members, backward bounds of hidden
layers settle most others, and optimised slopes on all layers are for the rest.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.bounded import Bounded
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.objective import ObjectiveBound, bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Preactivations, Problem, select_preactivations
from stbp_milp.branching.benefit import Benefit
from stbp_milp.branching.bounder import Bounder
from stbp_milp.branching.partition import Divided, Partition
from stbp_milp.branching.piece import Batch, Family, Piece
from stbp_milp.branching.views import CroppedView
from stbp_milp.errors import OutOfTimeError
from stbp_milp.search import Deadline
from stbp_milp.sets import InputSet, PerturbationSet, VoxelBox, concatenate

_TIGHTENED_AT_ONCE = 64  # pieces whose hidden bounds are improved together; fewer on the whole network
_MEMBERS_SHARE = 0.5  # the share of the remaining time for bounding members one by one; otherwise the set is split
_HIDDEN_SHARE = 0.5  # the share of the remaining time for bounds of hidden layers


@dataclass(frozen=True, eq=False, kw_only=True)
class Effort:
    """How much effort to spend on every member.

    Attributes:
        optimiser: how to optimise the slopes of items that the first bound leaves open.
        tighten: until when bounds of hidden layers are improved for items that are still open; None: not at all.
        keep: may the pieces be expanded? Otherwise only their bounds are kept.
    """

    optimiser: OptimiserOptions
    tighten: Deadline | None = None
    keep: bool = True


@dataclass(frozen=True, eq=False)
class Roots:
    """The first pieces of a search, already bounded.

    Attributes:
        partition: how members are put on smaller networks.
    """

    bounder: Bounder
    partition: Partition

    def pieces(self, family: Family, inputs: InputSet, method: str, effort: Effort, first_item: int = 0) -> list[Piece]:
        """Bounds one piece per part of `inputs` and open clause; returns them clause by clause.

        Args:
            first_item: in a family of members, the index of the member that is part 0 (the others follow).

        Raises:
            OutOfTimeError: time ran out before the first bound.
        """
        bounder = self.bounder
        items = [first_item + i if family.members is not None else 0 for i in range(inputs.parts)]
        problem = family.on(inputs, items)
        memory, expired = bounder.options.bounding.memory_bytes, bounder.deadline.expired
        with bounder.guarded():
            bounds = preactivations(problem, replace(bounder.options.bounding, deep="interval"))
            with bounder.passes.measured(bounder.work(problem, problem.parts * len(bounder.clauses))):
                found = bound_once(Bounded(problem, bounds), bounder.open_forms, memory_bytes=memory, expired=expired)
        bounder.counts["subproblems"] += problem.parts
        open_ = self._open(found)
        more = effort.optimiser.steps > 0 or bounder.options.bounding.deep != "interval"
        if more and len(open_) and not bounder.deadline.expired():
            # If time runs out, the first bounds are kept.
            with suppress(OutOfTimeError):
                bounds, found = self._improved(
                    problem, bounds, found, open_, bounder.options.bounding, effort.optimiser
                )
        if effort.tighten is not None:
            bounds, found = self._tightened(problem, bounds, found, effort.tighten)
        keep = effort.keep and not bounder.deadline.expired()
        pieces: list[Piece] = []
        # Trying every candidate is expensive on crops, because they belong to large networks.
        worst = found.lower.argmin(1) if isinstance(family.view, CroppedView) else None
        for row, clause in enumerate(bounder.clauses):
            one = _only_row(found, row)
            tried = one.lower[:, 0] if worst is None else one.lower[:, 0].where(worst == row, torch.inf)
            bounder.try_minimisers(family, problem, one, tried, method)
            index = torch.full((problem.parts,), clause, device=problem.device)
            batch = Batch(Bounded(problem, bounds), index, one.lower[:, 0], one.duals)
            pieces += bounder.pieces_of(family, items, batch, [0] * problem.parts, method, keep)
        return pieces

    def share(self) -> Deadline:
        """Returns the time limit for tightening first pieces."""
        deadline = self.bounder.deadline
        return deadline.within(self.bounder.options.tighten_share * deadline.remaining())

    def _open(self, found: ObjectiveBound) -> Tensor:
        """Returns the items that are not settled, those furthest from a proof first."""
        still = (~(found.lower > self.bounder.target).all(1)).nonzero().flatten()
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
        """Bounds the given items with more effort and leaves the others as they were."""
        bounder = self.bounder
        part = problem.select(items)
        half = bounder.deadline.within(_HIDDEN_SHARE * bounder.deadline.remaining()) if share is None else share

        def settled(lower: Tensor, items: Tensor) -> Tensor:
            return (lower > bounder.target).all(1)

        with bounder.guarded():
            known = select_preactivations(bounds, items)
            own = preactivations(part, bounding, known, expired=half.expired, same_sets=True)
            better = optimise(
                Bounded(part, own),
                bounder.open_forms,
                settled,
                optimiser,
                found.duals.select(items),
                expired=bounder.ascent_end(part, part.parts * len(bounder.clauses)),
                memory_bytes=bounder.options.bounding.memory_bytes,
            )
        updated = {
            k: Interval(b.lower.index_copy(0, items, own[k].lower), b.upper.index_copy(0, items, own[k].upper))
            for k, b in bounds.items()
        }
        return updated, found.updated(items, better)

    def _tightened(
        self, problem: Problem, bounds: dict[int, Interval], found: ObjectiveBound, share: Deadline
    ) -> tuple[dict[int, Interval], ObjectiveBound]:
        """Improves hidden layers' bounds by optimised slopes, for items that are not settled, while time allows."""
        options = self.bounder.options
        tight = replace(options.bounding, slope_steps=options.tighten_steps)
        whole = problem.network is self.bounder.whole.problem.network
        for items in torch.split(self._open(found), 4 if whole else _TIGHTENED_AT_ONCE):
            if share.expired() or not options.tighten_steps or not len(items):
                break
            try:
                bounds, found = self._improved(problem, bounds, found, items, tight, options.root, share)
            except OutOfTimeError:
                break
            self.bounder.counts["tightened"] += len(items)
        return bounds, found

    # --- members --------------------------------------------------------------------------------------------

    def member_pieces(
        self, members: PerturbationSet, method: str, grouping: Deadline | None = None
    ) -> list[Piece] | None:
        """Bounds pieces of sets with one member each, on smaller networks if those are cheaper.

        Returns None if there are too many members to be bounded one by one, on the whole network or in the time left.

        Args:
            grouping: the time limit for putting members into groups.

        Raises:
            OutOfTimeError: grouping ran out of time.
        """
        bounder = self.bounder
        divided = self.partition.divided(members, grouping or bounder.deadline)
        if not divided.small and members.parts > bounder.options.few_members:
            return None
        bounded = self._bounded(members, divided, method, Effort(optimiser=OptimiserOptions(steps=0), keep=False))
        if not bounded and members.parts and not bounder.over:
            return None
        bounder.counts["members bounded"] += len(bounded)
        open_ = [m for m, pieces in bounded.items() if any(p.lower <= bounder.target for p in pieces)]
        if open_ and not bounder.deadline.expired():
            # Members that one cheap pass does not settle get more effort. Those that are not reached in time keep their
            # first bounds; nothing will expand them.
            order = sorted(open_, key=lambda m: min(p.lower for p in bounded[m]))
            again = members.select(torch.tensor(order, device=members.clip.device))
            better: dict[int, list[Piece]] = {}
            with suppress(OutOfTimeError):
                divided = divided.again(again, bounder.deadline)
                better = self._bounded(again, divided, method, self._all())
            for m, pieces in better.items():
                bounded[order[m]] = [_better(*both) for both in zip(bounded[order[m]], pieces, strict=True)]
        found = self.partition.folded([piece for pieces in bounded.values() for piece in pieces])
        missing = next((m for m in range(members.parts) if m not in bounded), None)
        if missing is not None:
            # This piece stands for all members that were not reached in time: without its bound, nothing is proved.
            one = members.select(torch.tensor([missing], device=members.clip.device))
            clause = bounder.clauses[0]
            found.append(
                Piece(family=bounder.whole, item=0, inputs=one, clause=clause, lower=-torch.inf, method=method)
            )
        return found

    def promoted(self, pieces: list[Piece]) -> list[Piece]:
        """Bounds open pieces that splits of the set have reduced to one member as boxes, like first pieces."""
        result = list(pieces)
        for clause in {piece.clause for piece in pieces}:
            at = [i for i, piece in enumerate(pieces) if piece.clause == clause]
            roots = self.by(self.bounder.on([clause]))
            members = concatenate([pieces[i].inputs for i in at])  # type: ignore[type-var]
            assert isinstance(members, PerturbationSet)
            try:
                divided = roots.partition.divided(members, self.bounder.deadline)
            except OutOfTimeError:
                return result
            bounded = roots._bounded(members, divided, "split", roots._all())
            found = roots.partition.folded([own for (own,) in bounded.values()])
            for member, own in zip(bounded, found, strict=True):
                old = pieces[at[member]]
                result[at[member]] = replace(own, lower=max(own.lower, old.lower), splits=old.splits)
        return result

    def by(self, bounder: Bounder) -> Roots:
        """Returns the same for another bounder of the same query."""
        return Roots(bounder, self.partition.by(bounder))

    def _all(self) -> Effort:
        """Returns the full effort, for pieces that a cheap bound leaves open."""
        return Effort(optimiser=self.bounder.options.root, tighten=self.share())

    def _bounded(
        self, members: PerturbationSet, divided: Divided, method: str, effort: Effort
    ) -> dict[int, list[Piece]]:
        """Bounds members batch by batch while time allows; returns nothing if there is not enough time for all of them.

        In the first pass (not `effort.keep`) whole families are bounded at once if that pays.
        """
        bounded: dict[int, list[Piece]] = {}
        with suppress(OutOfTimeError):
            if not self._bound(bounded, members.parts, divided, method, effort):
                return {}
        return bounded

    def _bound(
        self, bounded: dict[int, list[Piece]], count: int, divided: Divided, method: str, effort: Effort
    ) -> bool:
        """Adds the pieces of `count` members to `bounded`, one after the other; returns False if time is too short.

        Raises:
            OutOfTimeError: time ran out; `bounded` holds complete members only.
        """
        bounder, keep, kept, benefit = self.bounder, effort.keep, 0, Benefit()

        def affordable() -> bool:
            return keep or benefit.affordable(count - len(bounded), _MEMBERS_SHARE * bounder.deadline.remaining())

        for items, family in divided.families(keep):
            if bounder.over:
                return True
            if not affordable():
                return False
            began = time.monotonic()
            if not keep and len(items) > 1 and benefit.pays(len(items)):
                together = self._together(family, method)
                benefit.tried(bool(together), time.monotonic() - began)
                bounded.update(zip(items.tolist(), together, strict=False))
                if together:
                    continue
            for at in torch.split(torch.arange(len(items), device=items.device), divided.at_once(family, keep)):
                began = time.monotonic()
                found = self.pieces(family, family.problem.inputs.select(at), method, effort, int(at[0]))
                for k, piece in enumerate(found):  # clause by clause, and within a clause member by member
                    bounded.setdefault(int(items[at[k % len(at)]]), []).append(piece)
                kept += sum(piece.memory for piece in found)
                if kept > bounder.options.open_memory or bounder.over:  # the search will end as soon as it begins
                    return True
                benefit.bounded(len(at), time.monotonic() - began)
                if not affordable():
                    return False
        return True

    def _together(self, family: Family, method: str) -> list[list[Piece]]:
        """Returns the pieces of all members of a family of boxes if bounding the box around them settles them all."""
        bounder, (lower, upper) = self.bounder, family.problem.inputs.hull()
        lower, upper = lower.amin(0, keepdim=True), upper.amax(0, keepdim=True)
        problem = replace(family.problem, inputs=VoxelBox(family.problem.inputs.centre[:1], lower, upper), ideal={})
        with bounder.guarded():
            bounds = preactivations(problem, replace(bounder.options.bounding, deep="interval"))
            found = bound_once(Bounded(problem, bounds), bounder.open_forms)
        if not bool((found.lower > bounder.target).all()):
            return []
        bounder.counts["groups settled"] += 1
        light = replace(family, problem=bounder.whole.problem)
        proved = list(zip(bounder.clauses, found.lower[0].tolist(), strict=True))
        inputs = family.problem.inputs
        return [
            [
                Piece(family=light, item=int(item), inputs=inputs.select(item), clause=clause, lower=low, method=method)
                for clause, low in proved
            ]
            for item in torch.split(torch.arange(family.problem.parts, device=lower.device), 1)
        ]


def _better(first: Piece, second: Piece) -> Piece:
    """Returns a member's piece after more effort, with the better of its two bounds."""
    return replace(second, lower=max(first.lower, second.lower))


def _only_row(found: ObjectiveBound, row: int) -> ObjectiveBound:
    at = torch.tensor([row], device=found.lower.device)
    return ObjectiveBound(found.lower[:, at], found.form[:, at], {}, found.duals.rows(at))
