"""Expanding pieces: split, bound the children, look for counterexamples among the minimisers, ask the MILP."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from stbp_milp.bounds.ascent import OptimiserOptions, fast_convolutions, optimise
from stbp_milp.bounds.duals import Duals
from stbp_milp.bounds.interrupt import interruptible
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.objective import ObjectiveBound, bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, empty, preactivations
from stbp_milp.bounds.problem import Problem, select_preactivations, unstable_count
from stbp_milp.branching.benefit import Realised, gain
from stbp_milp.branching.choose import Choice, choose, split_phase
from stbp_milp.branching.piece import Batch, Family, Piece, stack
from stbp_milp.errors import OutOfTimeError
from stbp_milp.network.normal_form import Stage
from stbp_milp.search import Deadline, Expansion, Rate
from stbp_milp.sets import PerturbationSet

_PER_LAYER = 1e6  # multiplications that the small tensor operations of a layer take the time of
_LAST_PASSES = 3.0  # an ascent's last step and the bound of what it found take about so many passes
_LOOK_AHEAD_SHARE = 0.1  # of the time left, that one look ahead may take
_TRIED = 4  # batches of clips that are tried after a step


class Witness(Protocol):
    """Judges candidates."""

    @property
    def found(self) -> bool:
        """Has a candidate broken the property?"""

    def __call__(self, clips: Tensor, stage: str) -> None:
        """Try candidates `(B, C, T, H, W)`."""


Program = Callable[[Piece, Deadline], float]
"""Solve one piece exactly: a proved lower bound of its clause. Candidates go to the witness."""


@dataclass(frozen=True)
class ExpanderOptions:
    """How pieces are expanded.

    Attributes:
        bounding: of hidden layers.
        root, child: slopes and multipliers of first pieces and of children.
        tighten_steps, tighten_share: slope steps on hidden layers of first pieces, and the part of the remaining
            time they may take.
        width: candidates looked ahead at before a ReLU is split.
        few_members: sets with at most so many members are split before any ReLU.
        program_limit: pieces with at most so many undecided ReLUs go to the MILP.
        program_seconds: its time limit on one piece.
        family_memory: bytes that matrices of restricted networks may take, each one and all that the search keeps.
        open_memory: bytes that open pieces may take.
        at_once: forms, or clips, that may go through the whole network together: no operation on them takes long.
    """

    bounding: BoundingOptions = field(default_factory=BoundingOptions)
    root: OptimiserOptions = field(default_factory=lambda: OptimiserOptions(steps=20))
    child: OptimiserOptions = field(default_factory=lambda: OptimiserOptions(steps=4, multiplier_rate=0.2))
    tighten_steps: int = 12
    tighten_share: float = 0.15
    width: int = 12
    few_members: int = 64
    program_limit: int = 60
    program_seconds: float = 10.0
    family_memory: int = 512 << 20
    open_memory: int = 4 << 30
    at_once: int = 1 << 30


@dataclass(frozen=True, eq=False)
class Expander:
    """Bounds and splits pieces of one query.

    Attributes:
        rows, offset: the property's open clauses as forms, `(M, K)`, `(M,)`.
        target: a piece is closed when its bound exceeds it.
        stages: the network's normal form; None if it is too large to write down, then members are bounded on crops.
        program: the MILP, or None.
        promote: makes boxes on networks of their own of open pieces with one member, or None.
        counts: what was done how often.
        interrupt: do steps end in the middle when the time is over (`interruptible`)? Else they are short.
        passes: what multiplications in backward passes take.
    """

    whole: Family
    rows: Tensor
    offset: Tensor
    target: float
    options: ExpanderOptions
    deadline: Deadline
    witness: Witness
    stages: Sequence[Stage] | None
    program: Program | None = None
    timed: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext()
    counts: Counter[str] = field(default_factory=Counter)
    promote: Callable[[list[Piece]], list[Piece]] | None = None
    realised: Realised = field(default_factory=Realised)
    interrupt: bool = False
    passes: Rate = field(default_factory=Rate)

    # --- expansion ------------------------------------------------------------------------------------------

    def __call__(self, pieces: list[Piece]) -> Expansion[Piece]:
        """Children of the pieces (all of one family); pieces that time does not reach come back as they are."""
        try:
            return self._expanded(pieces)
        finally:  # whatever became of them, no split of theirs is still to come out
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
            if by_relu and not self.witness.found:
                with self.timed("relu search"):
                    split, given_up = self._split_relus(by_relu)
                children += split
                by_relu = []
        except OutOfTimeError:
            children += by_set + by_relu
        return Expansion(children, given_up, self.witness.found)

    def guarded(self) -> AbstractContextManager[None]:
        """Around computations on the network: where those may take long, they end when the time is over."""
        return interruptible(self.deadline.expired) if self.interrupt else nullcontext()

    def work(self, problem: Problem, forms: float) -> float:
        """Multiplications of a backward pass with so many forms; small tensor operations count too."""
        return forms * problem.network.multiplications()[-1] + _PER_LAYER * len(problem.network.nodes)

    def _sides(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Which pieces to split by the set, which by a ReLU.

        Few members: the set first, its members are then boxes. Many: what a look ahead finds better, by the measure
        of how earlier splits came out.
        """
        by_set = [p for p in pieces if 1 < p.members <= self.options.few_members]
        many = [p for p in pieces if p.members > max(1, self.options.few_members)]
        by_relu = [p for p in pieces if not p.members > 1]
        if many:
            batch = stack(many)
            found = self.bound(batch)
            relu = self._choose(batch, found)
            with self.guarded():
                parts, parents = self._parts(batch, found)
            children = replace(batch.select(parents), problem=batch.problem.with_inputs(parts))
            lower = self.bound(children).lower[:, 0]
            worse = lower.new_full((len(many),), torch.inf).scatter_reduce(0, parents, lower, "amin")
            bounds = (found.lower[:, 0].tolist(), worse.tolist(), relu.lower.tolist())
            for piece, exists, own, *sides in zip(many, relu.exists.tolist(), *bounds, strict=True):
                ahead = (gain(own, side, self.target) for side in sides)
                relu_wins = exists and self.realised.choose(piece.serial, *ahead) == "relu"
                (by_relu if relu_wins else by_set).append(piece)
        return by_set, by_relu

    @staticmethod
    def _parts(batch: Batch, found: ObjectiveBound) -> tuple[PerturbationSet, Tensor]:
        """The parts that the sets of the batch split into, and their parents."""
        inputs = batch.problem.inputs
        assert isinstance(inputs, PerturbationSet)
        return inputs.split(-found.form[:, 0])

    def _split_set(self, pieces: list[Piece]) -> list[Piece]:
        batch = stack(pieces)
        found = self.bound(batch)
        with self.guarded():
            parts, parents = self._parts(batch, found)
            problem = batch.problem.with_inputs(parts)
            kept = batch.select(parents)
            bounds = preactivations(problem, self.options.bounding, kept.bounds, expired=self._half())
        self.counts["set splits"] += len(pieces)
        child = replace(kept, problem=problem, bounds=bounds)
        of_children = [pieces[i] for i in parents.tolist()]
        children = self.children(pieces[0].family, child, of_children, 0, "split")
        self._came_out(of_children, children)
        single = [c for c in children if c.members == 1 and not c.phases and c.lower <= self.target]
        if self.promote is None or not single or self.witness.found:
            return children
        return [c for c in children if c not in single] + self.promote(single)

    def _solve_small(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Ask the MILP about pieces with few undecided ReLUs; what it does not settle goes on, with its bound."""
        solved: list[Piece] = []
        remaining: list[Piece] = []
        for piece in pieces:
            small = piece.unstable <= min(self.options.program_limit, piece.tried // 2)
            if self.witness.found or self.program is None or not small or self.deadline.expired():
                remaining.append(piece)
                continue
            lower = self.program(piece, self.deadline.within(self.options.program_seconds))
            self.counts["programs"] += 1
            piece = replace(piece, lower=max(piece.lower, lower), tried=piece.unstable, method="milp")
            (solved if piece.lower > self.target else remaining).append(piece)
        return solved, remaining

    def _split_relus(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Children of the pieces, and the pieces that have no ReLU to split."""
        batch = stack(pieces)
        light = batch.single()
        with fast_convolutions(light.problem.network):
            choice = self._choose(light, self.bound(light))
        stuck = [p for p, splittable in zip(pieces, choice.exists.tolist(), strict=True) if not splittable]
        closed, stuck = self._finish(stuck)
        at = choice.exists.nonzero().flatten()
        if not len(at):
            return closed, stuck
        batch, relu, neuron = batch.select(at), choice.relu[at], choice.neuron[at]
        both = joined(split_phase(batch, relu, neuron, 1.0), split_phase(batch, relu, neuron, -1.0))
        bounds = both.bounds
        if not both.problem.ideal:  # otherwise bounds of hidden layers are better already than one pass makes them
            # Layers up to the first split neuron keep their bounds.
            with self.guarded():
                first = int(relu.min()) + 1
                bounds = preactivations(both.problem, self.options.bounding, bounds, first, expired=self._half())
        self.counts["relu splits"] += len(at)
        parents = [pieces[i] for i in at.tolist()] * 2
        children = self.children(pieces[0].family, replace(both, bounds=bounds), parents, 1, "relu search")
        self._came_out(parents, children)
        return children + closed, stuck

    def _came_out(self, parents: Sequence[Piece], children: Sequence[Piece]) -> None:
        """What splits gained; `parents` of the children, one by one."""
        worst: dict[Hashable, float] = {}
        for parent, child in zip(parents, children, strict=True):
            own = gain(parent.lower, child.lower, self.target)
            worst[parent.serial] = min(own, worst.get(parent.serial, math.inf))
        self.realised.came_out(worst)

    def _choose(self, batch: Batch, found: ObjectiveBound) -> Choice:
        """The neurons to split; candidates are looked ahead at as far as time allows it."""
        most = _LOOK_AHEAD_SHARE * self.deadline.remaining()
        width = self.options.width
        while width > 1 and self.passes.expected(self.work(batch.problem, 2 * width * batch.problem.parts)) > most:
            width //= 2
        with self.guarded():
            return choose(batch, found, self.forms, width, self.options.at_once)

    def _half(self) -> Callable[[], bool]:
        """For hidden layers: the other half of the time that is left is for what their bounds are for."""
        return self.deadline.within(0.5 * self.deadline.remaining()).expired

    def _finish(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Pieces without a ReLU left to split are linear: the program settles them, or many steps on multipliers."""
        closed: list[Piece] = []
        stuck: list[Piece] = []
        for piece in pieces:
            if self.program is not None:
                lower = self.program(piece, self.deadline.within(self.options.program_seconds))
                self.counts["programs"] += 1
                ended = replace(piece, lower=max(piece.lower, lower), method="milp")
            else:
                (ended,) = self.children(
                    piece.family, stack([piece]), [piece], 0, "relu search", replace(self.options.child, steps=200)
                )
            (closed if ended.lower > self.target else stuck).append(ended)
        return closed, stuck

    # --- bounding -------------------------------------------------------------------------------------------

    def children(
        self,
        family: Family,
        batch: Batch,
        parents: Sequence[Piece],
        splits: int,
        method: str,
        optimiser: OptimiserOptions | None = None,
    ) -> list[Piece]:
        """The batch as pieces, bounded anew; `batch.lower` holds their parents' bounds."""
        nothing_left = (
            empty(batch.bounds, batch.problem.parts)
            if batch.phases
            else torch.zeros_like(batch.lower, dtype=torch.bool)
        )
        bounds = {
            k: Interval(torch.minimum(b.lower, b.upper), torch.maximum(b.lower, b.upper))
            for k, b in batch.bounds.items()
        }

        def settled(lower: Tensor, items: Tensor) -> Tensor:
            return nothing_left[items] | (lower[:, 0] > self.target)

        rows, offset = self.forms(batch.clause)
        options = optimiser or self.options.child
        with self.guarded():
            found = optimise(
                batch.problem,
                bounds,
                rows,
                offset,
                settled,
                options,
                batch.duals,
                batch.phases,
                self.ascent_end(batch.problem, batch.problem.parts),
                self.options.bounding.memory_bytes,
            )
        self.counts["subproblems"] += batch.problem.parts
        lower = torch.where(nothing_left, torch.inf, torch.maximum(batch.lower, found.lower[:, 0]))
        items = [p.item for p in parents]
        self.try_minimisers(family, batch.problem, found, lower, method)
        batch = replace(batch, bounds=bounds, lower=lower, duals=found.duals)
        pieces = self.pieces_of(family, items, batch, [p.splits + splits for p in parents], method)
        return [replace(piece, tried=parent.tried) for piece, parent in zip(pieces, parents, strict=True)]

    def pieces_of(
        self,
        family: Family,
        items: Sequence[int],
        batch: Batch,
        splits: Sequence[int],
        method: str,
        keep: bool = True,
    ) -> list[Piece]:
        """The items of a bounded batch as pieces; `keep` False: none of them will be expanded."""
        # Of a closed piece nothing more will be asked than where it lies.
        light = replace(family, problem=self.whole.problem)
        inputs = batch.problem.inputs
        unstable = unstable_count(batch.bounds, inputs.parts).tolist() if keep else [0] * inputs.parts
        members = inputs.choice.members().tolist() if isinstance(inputs, PerturbationSet) else [1.0] * inputs.parts
        pieces = []
        for i, (lower, clause) in enumerate(zip(batch.lower.tolist(), batch.clause.tolist(), strict=True)):
            one = torch.tensor([i], device=batch.lower.device)
            still = keep and lower <= self.target
            pieces.append(
                Piece(
                    family if still else light,
                    items[i],
                    inputs.select(one),
                    select_preactivations(batch.bounds, one) if still else {},
                    {k: p[one] for k, p in batch.phases.items()} if still else {},
                    clause,
                    lower,
                    batch.duals.select(one) if still else Duals(),
                    splits[i],
                    members[i],
                    unstable[i],
                    method,
                )
            )
        return pieces

    def ascent_end(self, problem: Problem, forms: int) -> Callable[[], bool]:
        """When an ascent of so many forms has to stop: a step and the bound of what it found take their time too."""
        return self.deadline.before(_LAST_PASSES * self.passes.expected(self.work(problem, forms))).expired

    def bound(self, batch: Batch) -> ObjectiveBound:
        """One pass over the batch, with the duals it has."""
        forms, offset = (x.to(batch.lower.dtype) for x in self.forms(batch.clause))
        with self.guarded(), self.passes.measured(self.work(batch.problem, batch.problem.parts)):
            return bound_once(batch.problem, batch.bounds, forms, offset, batch.duals, batch.phases, record=True)

    def forms(self, clause: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and offsets of clauses, `(N,) -> (N, 1, K), (N, 1)`."""
        return self.rows[clause].unsqueeze(1), self.offset[clause].unsqueeze(1)

    def try_minimisers(
        self, family: Family, problem: Problem, found: ObjectiveBound, lower: Tensor, stage: str
    ) -> None:
        """The clip that minimises a bound's linear form is a candidate: try it for the pieces furthest from proof."""
        still = (lower <= self.target).nonzero().flatten()
        still = still[lower[still].argsort()[: min(64, _TRIED * self.options.at_once)]]
        if not len(still) or self.witness.found or self.deadline.expired():
            return
        with suppress(OutOfTimeError), self.guarded():
            points = problem.inputs.select(still).maximiser(-found.form[still]).squeeze(1)
            if family.voxels is not None and self.stages is None:  # a crop runs in a fraction of the whole's time
                outputs = problem.select(still).values(points)[-1]
                points = points[(outputs @ self.rows.T + self.offset <= 0).any(1)]
            self.witness(family.clips(points), stage)


def joined(first: Batch, second: Batch) -> Batch:
    """Two batches over the same problem, one after the other."""

    def cat(a: dict[int, Tensor], b: dict[int, Tensor]) -> dict[int, Tensor]:
        return {k: torch.cat([a[k], b[k]]) for k in a}

    twice = torch.arange(first.clause.shape[0], device=first.clause.device).repeat(2)
    return Batch(
        first.problem.select(twice),
        {
            k: Interval(torch.cat([b.lower, second.bounds[k].lower]), torch.cat([b.upper, second.bounds[k].upper]))
            for k, b in first.bounds.items()
        },
        cat(first.phases, second.phases),
        first.clause[twice],
        first.lower[twice],
        first.duals.merge(second.duals, lambda a, b: b if a is None else torch.cat([a, b])),
    )
