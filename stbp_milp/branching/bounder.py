"""Bounding of batches of pieces, shared by first pieces and children.

Every bound has a minimiser, which is tried as a counterexample.
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

_PER_LAYER = 1e6  # the small tensor operations of a layer take as long as so many multiplications
_LAST_PASSES = 3.0  # an ascent's last step and the bound of its result take about so many passes
_TRIED = 4  # the number of batches of clips that are tried after a step


class Witness(Protocol):
    """Judges candidates."""

    @property
    def found(self) -> bool:
        """Has some candidate broken the property?"""

    def __call__(self, clips: Tensor, stage: str) -> None:
        """Tries the candidates `(B, C, T, H, W)`."""


@dataclass(frozen=True)
class BranchingOptions:
    """How pieces are bounded and split.

    Attributes:
        bounding: how hidden layers are bounded.
        root, child: how slopes and multipliers of first pieces and of children are optimised.
        tighten_steps, tighten_share: slope steps on hidden layers of first pieces, and the share of the remaining time
            that they may take.
        width: number of candidates in a look-ahead before a ReLU is split.
        few_members: sets with at most so many members are split before any ReLU.
        program_limit: pieces with at most so many undecided ReLUs go to the MILP.
        program_seconds: the MILP's time limit per piece.
        family_memory: bytes that matrices of restricted networks may take, each and all that the search keeps together.
        open_memory: bytes that open pieces may take.
        at_once: number of forms or clips that may pass through the whole network together, so that no operation on them
            takes long.
        minimisers: are minimisers of bounds tried as counterexamples?
        dense_pays: the speed of dense matrix products relative to small convolutions, per multiplication.
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
        forms: the forms of the property's clauses, in the property's order.
        clauses: the clauses that are still open; first pieces are made for these.
        target: a piece is closed when its bound exceeds the target.
        interrupt: are steps interrupted when time runs out (`interruptible`)? Otherwise they are short.
        counts: numbers of subproblems, splits and the like.
        passes: the measured time per multiplication in backward passes.
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
        """Returns a bounder for other clauses, and with other options if given."""
        return replace(self, clauses=clauses, options=options or self.options)

    @property
    def over(self) -> bool:
        """Is there a counterexample, or no time left?"""
        return self.witness.found or self.deadline.expired()

    @property
    def open_forms(self) -> Forms:
        """The forms of the open clauses, in order, shared by all items."""
        return self.forms.select(torch.tensor(self.clauses, device=self.forms.rows.device))

    def form_of(self, clause: Tensor) -> Forms:
        """Returns one form per item, that of its clause `(N,)`."""
        return Forms(self.forms.rows[clause].unsqueeze(1), self.forms.offset[clause].unsqueeze(1))

    def guarded(self) -> AbstractContextManager[None]:
        """Returns a context in which computations are interrupted when time runs out, if they may take long."""
        return interruptible(self.deadline.expired) if self.interrupt else nullcontext()

    def work(self, problem: Problem, forms: float) -> float:
        """Estimates the multiplications of a backward pass with so many forms, small tensor operations included."""
        return forms * problem.network.multiplications()[-1] + _PER_LAYER * len(problem.network.nodes)

    def ascent_end(self, problem: Problem, forms: int) -> Callable[[], bool]:
        """Returns when an ascent of so many forms must stop, with time left for its last step and the final bound."""
        return self.deadline.before(_LAST_PASSES * self.passes.expected(self.work(problem, forms))).expired

    def bound(self, batch: Batch) -> ObjectiveBound:
        """Bounds the batch by one pass with the duals that it has."""
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
        """Bounds the batch and returns its items as pieces; `batch.lower` holds the bounds of their parents."""
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
        """Returns the items of a bounded batch as pieces; if `keep` is False, none of them will be expanded."""
        # All that is still needed of a closed piece is which part of the set it covers.
        light = replace(family, problem=self.whole.problem)
        inputs = batch.problem.inputs
        unstable = (
            unstable_count(batch.problem.network, batch.bounded.bounds, inputs.parts).tolist()
            if keep
            else [0] * inputs.parts
        )
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
        """Tries the minimisers of the bounds' linear forms as counterexamples, for the pieces furthest from a proof."""
        still = (lower <= self.target).nonzero().flatten()
        still = still[lower[still].argsort()[: min(64, _TRIED * self.options.at_once)]]
        if not self.options.minimisers or not len(still) or self.over:
            return
        with suppress(OutOfTimeError), self.guarded():
            points = problem.inputs.select(still).maximiser(-found.form[still]).squeeze(1)
            if isinstance(family.view, CroppedView):  # running a crop takes a fraction of the time of the whole network
                forms, outputs = self.open_forms, problem.select(still).values(points)[-1]
                points = points[(outputs @ forms.rows.T + forms.offset <= 0).any(1)]
            self.witness(family.view.clips(points), stage)
