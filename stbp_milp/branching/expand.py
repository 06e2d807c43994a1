"""Expanding pieces: split, bound the children, look for counterexamples among the minimisers, ask the MILP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from stbp_milp.bounds.footprint import costs, footprints, restrict
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.objective import Duals, ObjectiveBound, OptimiserOptions, bound_once, optimise
from stbp_milp.bounds.preactivation import BoundingOptions, empty, preactivations
from stbp_milp.bounds.problem import Problem, unstable_count
from stbp_milp.branching.choose import choose, split_phase
from stbp_milp.branching.piece import Batch, Family, Piece, stack
from stbp_milp.network.normal_form import Stage
from stbp_milp.search import Deadline, Expansion
from stbp_milp.sets import InputSet, PerturbationSet

INFEASIBLE = float("inf")


class Witness(Protocol):
    """Judges candidates."""

    @property
    def found(self) -> bool:
        """Has a candidate broken the property?"""

    def __call__(self, clips: Tensor, stage: str) -> None:
        """Try candidates `(B, C, T, H, W)`."""


Program = Callable[[Piece, Deadline], Tensor]
"""Solve one piece exactly: proved lower bounds of its open clauses, `(clauses,)`. Candidates go to the witness."""


@dataclass(frozen=True)
class ExpanderOptions:
    """How pieces are expanded.

    Attributes:
        bounding: of hidden layers.
        optimiser: slopes and multipliers of children.
        width: candidates looked ahead at before a ReLU is split.
        program_limit: pieces with at most so many undecided ReLUs go to the MILP.
        program_seconds: its time limit on one piece.
        restricted_memory: bytes that the matrices of one family of restricted networks may take.
    """

    bounding: BoundingOptions = BoundingOptions()
    optimiser: OptimiserOptions = OptimiserOptions()
    width: int = 4
    program_limit: int = 60
    program_seconds: float = 10.0
    restricted_memory: int = 1 << 30


@dataclass(frozen=True, eq=False)
class Expander:
    """Bounds and splits pieces of one query.

    Attributes:
        rows, offset: the property's open clauses as forms, `(M, K)`, `(M,)`.
        target: a piece is closed when its bound exceeds it.
        stages: the network's normal form; None if it is too large to write down, then members stay on the whole one.
        program: the MILP, or None.
        counts: what was done how often.
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
    counts: dict[str, int] = field(default_factory=dict)

    # --- entering the search --------------------------------------------------------------------------------

    def pieces(self, family: Family, inputs: InputSet, method: str, steps: int = 0) -> list[Piece]:
        """Fresh pieces for all parts of `inputs` on the family's network (restricted: item i is part i)."""
        problem = family.problem.with_inputs(inputs)
        bounds = preactivations(problem, self.options.bounding)
        batch = Batch(problem, bounds, {}, self._nothing(problem.parts), Duals())
        return self._bounded(family, range(problem.parts), batch, [0] * problem.parts, method, steps)

    def member_pieces(self, members: PerturbationSet, method: str) -> list[Piece]:
        """Pieces of sets with one member each, on restricted networks where those are cheaper."""
        if self.stages is None:
            return self.pieces(self.whole, members, method)
        moved = (members.hull()[1] > members.hull()[0]).flatten(1)
        prints = footprints(self.stages, moved)
        own, complete = costs(self.stages, prints)
        if own > complete // 2:
            return self.pieces(self.whole, members, method)
        problem = self.whole.problem.with_inputs(members)
        found: list[Piece] = []
        for items, restricted in restrict(self.stages, problem, prints, self.options.restricted_memory):
            family = Family(restricted, self.whole.whole, prints[0].select(items), members.select(items))
            found += self.pieces(family, restricted.inputs, method)
            self._count("members bounded", len(items))
            if self.deadline.expired():
                # The members not reached keep no bound at all.
                rest = torch.arange(int(items[-1]) + 1, members.parts)
                found += [self._unbounded(members.select(rest[i : i + 1])) for i in range(len(rest))]
                break
        return found

    def _unbounded(self, member: PerturbationSet) -> Piece:
        clauses = self._nothing(1)[0]
        hull = preactivations(self.whole.problem.with_inputs(member), BoundingOptions("interval"))
        return Piece(self.whole, 0, member, hull, {}, clauses, Duals(), 0, 1.0, 0)

    # --- expansion ------------------------------------------------------------------------------------------

    def __call__(self, pieces: list[Piece]) -> Expansion[Piece]:
        """Children of the pieces (all of one family)."""
        children: list[Piece] = []
        given_up: list[Piece] = []
        splittable = [p for p in pieces if p.members > 1]
        single = [p for p in pieces if p.members <= 1]
        if splittable:
            with self.timed("split"):
                children += self._split_set(splittable)
        if single:
            with self.timed("milp"):
                solved, single = self._solve_small(single)
            children += solved
        if single and not self.witness.found:
            with self.timed("relu search"):
                split, given_up = self._split_relus(single)
            children += split
        return Expansion(children, given_up, self.witness.found)

    def _split_set(self, pieces: list[Piece]) -> list[Piece]:
        batch = stack(pieces)
        inputs = batch.problem.inputs
        assert isinstance(inputs, PerturbationSet)
        found = bound_once(batch.problem, batch.bounds, self.rows, self.offset, batch.duals, batch.phases)
        weakest = found.lower.argmin(1)
        form = found.form[torch.arange(len(pieces)), weakest]
        parts, parents = inputs.split(-form)
        self._count("set splits", len(pieces))
        members = parts.choice.members()
        children: list[Piece] = []
        single = (members <= 1).nonzero().flatten()
        several = (members > 1).nonzero().flatten()
        if len(single) and pieces[0].splits == 0 and self.stages is not None:
            grown = self.member_pieces(parts.select(single), "split")
            children += [self._inherit(child, pieces[int(parents[i])]) for child, i in zip(grown, single, strict=True)]
        elif len(single):
            several = torch.arange(parts.parts)
        if len(several):
            kept = batch.select(parents[several])
            problem = kept.problem.with_inputs(parts.select(several))
            bounds = preactivations(problem, self.options.bounding, kept.bounds)
            child = Batch(problem, bounds, kept.phases, kept.clauses, kept.duals)
            splits = [pieces[int(i)].splits for i in parents[several]]
            children += self._bounded(pieces[0].family, [0] * len(several), child, splits, "split", self.options.optimiser.steps // 2)
        return children

    def _inherit(self, child: Piece, parent: Piece) -> Piece:
        return replace(child, clauses=torch.maximum(child.clauses, parent.clauses))

    def _solve_small(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Ask the MILP about pieces with few undecided ReLUs; what it does not settle goes on, with its bound."""
        solved: list[Piece] = []
        remaining: list[Piece] = []
        for piece in pieces:
            if self.witness.found or self.program is None or piece.unstable > self.options.program_limit or piece.unstable > piece.tried // 2 or self.deadline.expired():
                remaining.append(piece)
                continue
            clauses = self.program(piece, self.deadline.within(self.options.program_seconds))
            self._count("programs", 1)
            piece = replace(piece, clauses=torch.maximum(piece.clauses, clauses), tried=piece.unstable, method="milp")
            (solved if piece.lower > self.target else remaining).append(piece)
        return solved, remaining

    def _split_relus(self, pieces: list[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Children of the pieces, and the pieces that have no ReLU to split."""
        batch = stack(pieces)
        found = bound_once(batch.problem, batch.bounds, self.rows, self.offset, batch.duals, batch.phases)
        relu, neuron, exists = choose(batch, found, self.rows, self.offset, self.options.width)
        stuck = [p for p, any_ in zip(pieces, exists.tolist(), strict=True) if not any_]
        at = exists.nonzero().flatten()
        if not len(at):
            return [], stuck
        batch, relu, neuron = batch.select(at), relu[at], neuron[at]
        active, inactive = split_phase(batch, relu, neuron, 1.0), split_phase(batch, relu, neuron, -1.0)
        both = _joined(active, inactive)
        parents = [pieces[int(i)] for i in at] * 2
        # Layers before the first split neuron keep their bounds.
        bounds = preactivations(both.problem, self.options.bounding, both.bounds, int(relu.min()) + 1)
        child = replace(both, bounds=bounds)
        children = self._bounded(
            pieces[0].family, [p.item for p in parents], child, [p.splits + 1 for p in parents], "relu search", self.options.optimiser.steps
        )
        self._count("relu splits", len(at))
        return [replace(c, tried=p.tried) for c, p in zip(children, parents, strict=True)], stuck

    # --- bounding -------------------------------------------------------------------------------------------

    def _bounded(
        self, family: Family, items: Sequence[int], batch: Batch, splits: Sequence[int], method: str, steps: int
    ) -> list[Piece]:
        """Pieces of the batch, with the better of their own bounds and those in `batch.clauses`."""
        problem, bounds = batch.problem, batch.bounds
        nothing_left = empty(bounds)
        bounds = {k: Interval(torch.minimum(b.lower, b.upper), torch.maximum(b.lower, b.upper)) for k, b in bounds.items()}
        found = self._objective(replace(batch, bounds=bounds), steps, nothing_left)
        clauses = torch.maximum(batch.clauses, found.lower)
        clauses[nothing_left] = INFEASIBLE
        self._count("subproblems", problem.parts)
        self._try_minimisers(family, items, problem, found, clauses, method)
        unstable = unstable_count(bounds).tolist()
        members = problem.inputs.choice.members().tolist() if isinstance(problem.inputs, PerturbationSet) else [1.0] * problem.parts
        pieces = []
        for i in range(problem.parts):
            if float(clauses[i].min()) > self.target:  # closed: nothing else will be asked of it
                pieces.append(Piece(family, items[i], problem.inputs.select(torch.tensor([i])), {}, {}, clauses[i], Duals(), splits[i], members[i], unstable[i], method=method))
                continue
            one = torch.tensor([i])
            pieces.append(
                Piece(
                    family, items[i], problem.inputs.select(one), {k: b.select(one) for k, b in bounds.items()},
                    {k: p[one] for k, p in batch.phases.items()}, clauses[i], found.duals.select(one), splits[i], members[i], unstable[i], method=method,
                )
            )  # fmt: skip
        return pieces

    def _objective(self, batch: Batch, steps: int, skip: Tensor) -> ObjectiveBound:
        def settled(lower: Tensor) -> Tensor:
            return skip | (torch.maximum(lower, batch.clauses) > self.target).all(1)

        return optimise(
            batch.problem, batch.bounds, self.rows, self.offset, settled, replace(self.options.optimiser, steps=steps),
            batch.duals, batch.phases, self.deadline.expired,
        )  # fmt: skip

    def _try_minimisers(
        self, family: Family, items: Sequence[int], problem: Problem, found: ObjectiveBound, clauses: Tensor, stage: str
    ) -> None:
        """The clip that minimises a bound's linear form is a candidate: try it for pieces that stay open."""
        lowest, weakest = clauses.min(1)
        stay = (lowest <= self.target).nonzero().flatten()
        stay = stay[lowest[stay].argsort()[:64]]
        if not len(stay):
            return
        form = found.form[stay, weakest[stay]].unsqueeze(1)
        points = problem.inputs.select(stay).maximiser(-form).squeeze(1)
        self.witness(family.clips(torch.tensor(items)[stay], points), stage)

    def _nothing(self, parts: int) -> Tensor:
        return self.offset.new_full((parts, self.rows.shape[0]), -torch.inf)

    def _count(self, name: str, by: int) -> None:
        self.counts[name] = self.counts.get(name, 0) + by


def _joined(first: Batch, second: Batch) -> Batch:
    def cat(a: dict[int, Tensor], b: dict[int, Tensor]) -> dict[int, Tensor]:
        return {k: torch.cat([a[k], b[k]]) for k in a}

    n = first.clauses.shape[0]
    problem = first.problem.select(torch.arange(n).repeat(2))
    return Batch(
        problem,
        {k: Interval(torch.cat([v.lower, second.bounds[k].lower]), torch.cat([v.upper, second.bounds[k].upper])) for k, v in first.bounds.items()},
        cat(first.phases, second.phases),
        torch.cat([first.clauses, second.clauses]),
        Duals(cat(first.duals.slopes, second.duals.slopes), cat(first.duals.multipliers, second.duals.multipliers)),
    )
