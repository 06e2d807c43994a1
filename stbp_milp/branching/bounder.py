"""Bounding batches of pieces: what first pieces and children have in common.

Bounds come with their minimisers, which are tried as counterexamples on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from stbp_milp.bounds.ascent import OptimiserOptions, optimise
from stbp_milp.bounds.bounded import Forms
from stbp_milp.bounds.interrupt import interruptible
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.objective import ObjectiveBound, bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, empty
from stbp_milp.bounds.problem import Problem, select_preactivations, unstable_count
from stbp_milp.branching.piece import Batch, Family, Piece
from stbp_milp.branching.views import CroppedView
from stbp_milp.errors import OutOfTimeError
from stbp_milp.search import Deadline, Rate
from stbp_milp.sets import PerturbationSet

_PER_LAYER = 1e6  # multiplications that the small tensor operations of a layer take the time of
_LAST_PASSES = 3.0  # an ascent's last step and the bound of what it found take about so many passes
_TRIED = 4  # batches of clips that are tried after a step


class Witness(Protocol):
    """Judges candidates."""

    @property
    def found(self) -> bool:
        """Has a candidate broken the property?"""

    def __call__(self, clips: Tensor, stage: str) -> None:
        """Try candidates `(B, C, T, H, W)`."""


@dataclass(frozen=True)
class BranchingOptions:
    """How pieces are bounded and split.

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
        minimisers: are minimisers of bounds tried as counterexamples?
        dense_pays: products of dense matrices are about so much faster, per multiplication, than small convolutions.
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
    minimisers: bool = True
    dense_pays: float = 12.0


@dataclass(eq=False, kw_only=True)
class Bounder:
    """Bounds pieces of one query.

    Attributes:
        whole: the whole network on the whole set.
        forms: the property's clauses, by the property's own index.
        clauses: those that are still open: first pieces are made of them.
        target: a piece is closed when its bound exceeds it.
        interrupt: do steps end in the middle when the time is over (`interruptible`)? Else they are short.
        counts: what was done how often.
        passes: what multiplications in backward passes take.
    """

    whole: Family
    forms: Forms
    clauses: Sequence[int]
    target: float
    options: BranchingOptions
    deadline: Deadline
    witness: Witness
    interrupt: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    passes: Rate = field(default_factory=Rate)

    def on(self, clauses: Sequence[int], options: BranchingOptions | None = None) -> Bounder:
        """The same for other clauses, and with other options, where they are given."""
        return replace(self, clauses=clauses, options=options or self.options)

    @property
    def over(self) -> bool:
        """Is there nothing left to do, or no time to do it?"""
        return self.witness.found or self.deadline.expired()

    @property
    def open_forms(self) -> Forms:
        """The open clauses, in their order, for all items alike."""
        return self.forms.select(torch.tensor(self.clauses, device=self.forms.rows.device))

    def form_of(self, clause: Tensor) -> Forms:
        """One form for each item, that of its clause `(N,)`."""
        return Forms(self.forms.rows[clause].unsqueeze(1), self.forms.offset[clause].unsqueeze(1))

    def guarded(self) -> AbstractContextManager[None]:
        """Around computations on the network: where those may take long, they end when the time is over."""
        return interruptible(self.deadline.expired) if self.interrupt else nullcontext()

    def work(self, problem: Problem, forms: float) -> float:
        """Multiplications of a backward pass with so many forms; small tensor operations count too."""
        return forms * problem.network.multiplications()[-1] + _PER_LAYER * len(problem.network.nodes)

    def ascent_end(self, problem: Problem, forms: int) -> Callable[[], bool]:
        """When an ascent of so many forms has to stop: a step and the bound of what it found take their time too."""
        return self.deadline.before(_LAST_PASSES * self.passes.expected(self.work(problem, forms))).expired

    def bound(self, batch: Batch) -> ObjectiveBound:
        """One pass over the batch, with the duals it has."""
        forms = self.form_of(batch.clause).to(batch.lower.dtype)
        with self.guarded(), self.passes.measured(self.work(batch.problem, batch.problem.parts)):
            return bound_once(batch.bounded, forms, batch.duals, record=True)

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
        known = batch.bounded
        nothing_left = torch.zeros_like(batch.lower, dtype=torch.bool)
        if known.phases:
            nothing_left = empty(known.bounds, known.problem.parts)
        bounds = {
            relu: Interval(torch.minimum(own.lower, own.upper), torch.maximum(own.lower, own.upper))
            for relu, own in known.bounds.items()
        }
        ordered = replace(known, bounds=bounds)

        def settled(lower: Tensor, items: Tensor) -> Tensor:
            return nothing_left[items] | (lower[:, 0] > self.target)

        options = optimiser or self.options.child
        with self.guarded():
            found = optimise(
                ordered,
                self.form_of(batch.clause),
                settled,
                options,
                batch.duals,
                expired=self.ascent_end(batch.problem, batch.problem.parts),
                memory_bytes=self.options.bounding.memory_bytes,
            )
        self.counts["subproblems"] += batch.problem.parts
        lower = torch.where(nothing_left, torch.inf, torch.maximum(batch.lower, found.lower[:, 0]))
        items = [p.item for p in parents]
        self.try_minimisers(family, batch.problem, found, lower, method)
        batch = replace(batch, bounded=ordered, lower=lower, duals=found.duals)
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
        unstable = unstable_count(batch.bounded.bounds, inputs.parts).tolist() if keep else [0] * inputs.parts
        members = inputs.choice.members().tolist() if isinstance(inputs, PerturbationSet) else [1.0] * inputs.parts
        pieces = []
        for i, (lower, clause) in enumerate(zip(batch.lower.tolist(), batch.clause.tolist(), strict=True)):
            one = torch.tensor([i], device=batch.lower.device)
            piece = Piece(
                family=light,
                item=items[i],
                inputs=inputs.select(one),
                clause=clause,
                lower=lower,
                method=method,
                splits=splits[i],
                members=members[i],
                unstable=unstable[i],
            )
            if keep and lower <= self.target:
                piece = replace(
                    piece,
                    family=family,
                    bounds=select_preactivations(batch.bounded.bounds, one),
                    phases={k: p[one] for k, p in batch.bounded.phases.items()},
                    duals=batch.duals.select(one),
                )
            pieces.append(piece)
        return pieces

    def try_minimisers(
        self, family: Family, problem: Problem, found: ObjectiveBound, lower: Tensor, stage: str
    ) -> None:
        """The clip that minimises a bound's linear form is a candidate: try it for the pieces furthest from proof."""
        still = (lower <= self.target).nonzero().flatten()
        still = still[lower[still].argsort()[: min(64, _TRIED * self.options.at_once)]]
        if not self.options.minimisers or not len(still) or self.over:
            return
        with suppress(OutOfTimeError), self.guarded():
            points = problem.inputs.select(still).maximiser(-found.form[still]).squeeze(1)
            if isinstance(family.view, CroppedView):  # a crop runs in a fraction of the whole's time
                forms, outputs = self.open_forms, problem.select(still).values(points)[-1]
                points = points[(outputs @ forms.rows.T + forms.offset <= 0).any(1)]
            self.witness(family.view.clips(points), stage)
