"""Expansion of pieces: splits by the set or by a ReLU, bounds of the children, and the MILP for small pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stbp_milp.bounds.ascent import fast_convolutions
from stbp_milp.bounds.bounded import Bounded
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.objective import ObjectiveBound
from stbp_milp.bounds.preactivation import preactivations
from stbp_milp.branching.benefit import Realised, gain
from stbp_milp.branching.bounder import Bounder
from stbp_milp.branching.choose import Choice, choose, split_phase
from stbp_milp.branching.piece import Batch, Piece, stack
from stbp_milp.branching.roots import Roots
from stbp_milp.errors import OutOfTimeError
from stbp_milp.search import Deadline, Expansion
from stbp_milp.sets import PerturbationSet, VoxelBox

_FEW_INPUTS = 12  # moving inputs of a box that is halved rather than split by a neuron
_LOOK_AHEAD_SHARE = 0.1  # the share of the remaining time that one look-ahead may take

Program = Callable[[Piece, Deadline], float]
"""Solves one piece exactly and returns a proved lower bound of its clause; candidates go to the witness."""

Timed = Callable[[str], AbstractContextManager[None]]
"""Returns a context that measures the time of the stage with this name."""


@dataclass(eq=False, kw_only=True)
class Expander:
    """Splits pieces of one query.

    Attributes:
        roots: bounds pieces that splits of a set have reduced to one member.
        program: the MILP; None if no solver may be used, or if the network is too large to be written down.
        realised: the actual gains of earlier splits.
    """

    bounder: Bounder
    roots: Roots
    program: Program | None
    timed: Timed
    realised: Realised = field(default_factory=Realised)

    # --- expansion ------------------------------------------------------------------------------------------

    def __call__(self, pieces: list[Piece]) -> Expansion[Piece]:
        """Returns children of the pieces (all of one family), and unchanged those pieces that time does not reach."""
        try:
            return self._expanded(pieces)
        finally:  # whatever happened, no split of theirs is pending any more
            self.realised.forget(piece.serial for piece in pieces)

    def _expanded(self, pieces: list[Piece]) -> Expansion[Piece]:
        children: list[Piece] = []
        given_up: list[Piece] = []
        with self.timed("milp"):
            solved, pieces = self._solve_small(pieces)
        children += solved
        by_set: list[Piece] = []
        by_relu = pieces
        try:
            with self.timed("split"):
                by_set, by_relu = self._sides(pieces)
                if by_set:
                    children += self._split_set(by_set)
                    by_set = []
            if by_relu and not self.bounder.witness.found:
                with self.timed("relu search"):
                    split, given_up = self._split_relus(by_relu)
                children += split
                by_relu = []
        except OutOfTimeError:
            children += by_set + by_relu
        return Expansion(children, given_up, self.bounder.witness.found)

    def _sides(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Decides which pieces to split by the set and which by a ReLU.

        A set with few members is split first, because its members are then boxes, and a box of few inputs below smooth
        functions is halved: that tightens all of them, and with few inputs few halvings do. For a set with many members
        a look-ahead compares both splits, corrected by the actual gains of earlier ones.
        """
        by_set = [p for p in pieces if 1 < p.members <= self.bounder.options.few_members or _few_inputs(p)]
        many = [p for p in pieces if p.members > max(1, self.bounder.options.few_members)]
        by_relu = [p for p in pieces if not p.members > 1 and not _few_inputs(p)]
        if many:
            batch = stack(many)
            found = self.bounder.bound(batch)
            relu = self._choose(batch, found)
            with self.bounder.guarded():
                parts, parents = self._parts(batch, found)
            chosen = batch.select(parents)
            children = replace(chosen, bounded=replace(chosen.bounded, problem=batch.problem.with_inputs(parts)))
            lower = self.bounder.bound(children).lower[:, 0]
            worse = lower.new_full((len(many),), torch.inf).scatter_reduce(0, parents, lower, "amin")
            bounds = (found.lower[:, 0].tolist(), worse.tolist(), relu.lower.tolist())
            for piece, exists, own, *sides in zip(many, relu.exists.tolist(), *bounds, strict=True):
                ahead = (gain(own, side, self.bounder.target) for side in sides)
                relu_wins = exists and self.realised.choose(piece.serial, *ahead) == "relu"
                (by_relu if relu_wins else by_set).append(piece)
        return by_set, by_relu

    @staticmethod
    def _parts(batch: Batch, found: ObjectiveBound) -> tuple[PerturbationSet | VoxelBox, Tensor]:
        """Splits the sets of the batch; returns the parts and their parents."""
        inputs = batch.problem.inputs
        assert isinstance(inputs, PerturbationSet | VoxelBox)
        return inputs.split(-found.form[:, 0])

    def _split_set(self, pieces: list[Piece]) -> list[Piece]:
        batch = stack(pieces)
        found = self.bounder.bound(batch)
        with self.bounder.guarded():
            parts, parents = self._parts(batch, found)
            kept = batch.select(parents)
            problem = kept.problem.with_inputs(parts)
            bounds = preactivations(problem, self.bounder.options.bounding, kept.bounded.bounds, expired=self._half())
        self.bounder.counts["set splits"] += len(pieces)
        child = replace(kept, bounded=replace(kept.bounded, problem=problem, bounds=bounds))
        of_children = [pieces[i] for i in parents.tolist()]
        children = self.bounder.children(pieces[0].family, child, of_children, 0, "split")
        self._came_out(of_children, children)
        single = [
            c
            for c in children
            if c.members == 1
            and not c.phases
            and c.lower <= self.bounder.target
            and isinstance(c.inputs, PerturbationSet)
        ]
        if not single or self.bounder.witness.found:
            return children
        return [c for c in children if c not in single] + self.roots.promoted(single)

    def _solve_small(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Solves pieces with few undecided ReLUs by the MILP; returns settled pieces, and the others with its bound."""
        solved: list[Piece] = []
        remaining: list[Piece] = []
        for piece in pieces:
            small = piece.unstable <= min(self.bounder.options.program_limit, piece.tried // 2)
            if self.bounder.witness.found or self.program is None or not small or self.bounder.deadline.expired():
                remaining.append(piece)
                continue
            lower = self.program(piece, self.bounder.deadline.within(self.bounder.options.program_seconds))
            self.bounder.counts["programs"] += 1
            piece = replace(piece, lower=max(piece.lower, lower), tried=piece.unstable, method="milp")
            (solved if piece.lower > self.bounder.target else remaining).append(piece)
        return solved, remaining

    def _split_relus(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Returns children of the pieces, and the pieces that have no ReLU left to split."""
        batch = stack(pieces)
        light = batch.single()
        with fast_convolutions(light.problem.network):
            choice = self._choose(light, self.bounder.bound(light))
        stuck = [p for p, splittable in zip(pieces, choice.exists.tolist(), strict=True) if not splittable]
        closed, stuck = self._finish(stuck)
        at = choice.exists.nonzero().flatten()
        if not len(at):
            return closed, stuck
        batch, relu, neuron = batch.select(at), choice.relu[at], choice.neuron[at]
        both = joined(split_phase(batch, relu, neuron, 1.0), split_phase(batch, relu, neuron, -1.0))
        bounds = both.bounded.bounds
        if not both.problem.ideal:  # otherwise bounds of hidden layers are already better than those of one pass
            # Layers up to the first split neuron keep their bounds.
            with self.bounder.guarded():
                first = int(relu.min()) + 1
                bounds = preactivations(
                    both.problem, self.bounder.options.bounding, bounds, first, expired=self._half()
                )
        self.bounder.counts["relu splits"] += len(at)
        parents = [pieces[i] for i in at.tolist()] * 2
        both = replace(both, bounded=replace(both.bounded, bounds=bounds))
        children = self.bounder.children(pieces[0].family, both, parents, 1, "relu search")
        self._came_out(parents, children)
        return children + closed, stuck

    def _came_out(self, parents: Sequence[Piece], children: Sequence[Piece]) -> None:
        """Records the gains of splits; `parents` holds the parent of every child."""
        worst: dict[Hashable, float] = {}
        for parent, child in zip(parents, children, strict=True):
            own = gain(parent.lower, child.lower, self.bounder.target)
            worst[parent.serial] = min(own, worst.get(parent.serial, math.inf))
        self.realised.came_out(worst)

    def _choose(self, batch: Batch, found: ObjectiveBound) -> Choice:
        """Chooses the neurons to split, with a look-ahead as wide as time allows."""
        most = _LOOK_AHEAD_SHARE * self.bounder.deadline.remaining()
        width = self.bounder.options.width
        while (
            width > 1
            and self.bounder.passes.expected(self.bounder.work(batch.problem, 2 * width * batch.problem.parts)) > most
        ):
            width //= 2
        with self.bounder.guarded():
            return choose(batch, found, self.bounder.form_of, width, self.bounder.options.at_once)

    def _half(self) -> Callable[[], bool]:
        """Returns the limit for bounds of hidden layers: half of the remaining time; the rest is for the output."""
        return self.bounder.deadline.within(0.5 * self.bounder.deadline.remaining()).expired

    def _finish(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Settles pieces with no ReLU left to split, which are linear, by the program or many steps on multipliers."""
        closed: list[Piece] = []
        stuck: list[Piece] = []
        for piece in pieces:
            if self.program is not None:
                lower = self.program(piece, self.bounder.deadline.within(self.bounder.options.program_seconds))
                self.bounder.counts["programs"] += 1
                ended = replace(piece, lower=max(piece.lower, lower), method="milp")
            else:
                (ended,) = self.bounder.children(
                    piece.family,
                    stack([piece]),
                    [piece],
                    0,
                    "relu search",
                    replace(self.bounder.options.child, steps=200),
                )
            (closed if ended.lower > self.bounder.target else stuck).append(ended)
        return closed, stuck


def _few_inputs(piece: Piece) -> bool:
    """Is the piece a box with few inputs that move, below smooth functions or products?"""
    inputs = piece.inputs
    if not isinstance(inputs, VoxelBox) or piece.family.problem.network.is_piecewise_linear:
        return False
    return int((inputs.upper > inputs.lower).sum()) <= _FEW_INPUTS


def joined(first: Batch, second: Batch) -> Batch:
    """Concatenates two batches over the same problem."""
    twice = torch.arange(first.clause.shape[0], device=first.clause.device).repeat(2)
    one, other = first.bounded, second.bounded
    bounds = {
        relu: Interval(
            torch.cat([own.lower, other.bounds[relu].lower]), torch.cat([own.upper, other.bounds[relu].upper])
        )
        for relu, own in one.bounds.items()
    }
    phases = {relu: torch.cat([own, other.phases[relu]]) for relu, own in one.phases.items()}
    return Batch(
        Bounded(one.problem.select(twice), bounds, phases),
        first.clause[twice],
        first.lower[twice],
        first.duals.merge(second.duals, lambda a, b: b if a is None else torch.cat([a, b])),
    )
