"""Bounders and expanders as the verifier makes them, with a witness that finds nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from stbp_milp.bounds.bounded import Forms
from stbp_milp.bounds.problem import Problem
from stbp_milp.branching import Bounder, BranchingOptions, Effort, Expander, Family, OnMatrices, Piece, Roots
from stbp_milp.network.normal_form import normal_form
from stbp_milp.query import Query
from stbp_milp.search import Deadline


class Nobody:
    """A witness that finds nothing, so that a tree grows to its leaves; it keeps what it was shown."""

    def __init__(self) -> None:
        self.found = False
        self.shown: list[Tensor] = []

    def __call__(self, clips: Tensor, stage: str) -> None:
        self.shown.append(clips)


def bounder(query: Query, target: float, options: BranchingOptions) -> tuple[Bounder, Nobody]:
    network, perturbation = query.model.network, query.set.build(query.clip)
    witness = Nobody()
    made = Bounder(
        whole=Family(problem=Problem.of(network, perturbation), whole=perturbation),
        forms=Forms(*query.property.forms()),
        clauses=range(len(query.property.clauses)),
        target=target,
        options=options,
        deadline=Deadline.after(60.0),
        witness=witness,
    )
    return made, witness


def untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


def expander(query: Query, target: float, **options: object) -> tuple[Expander, Nobody]:
    """On matrices, without a solver."""
    chosen = BranchingOptions(width=2, **options)  # type: ignore[arg-type]
    own, witness = bounder(query, target, chosen)
    roots = Roots(own, OnMatrices(own, normal_form(query.model.network)))
    return Expander(bounder=own, roots=roots, program=None, timed=untimed), witness


def whole_pieces(roots: Roots) -> list[Piece]:
    """The whole set, for every clause."""
    bounder = roots.bounder
    return roots.pieces(bounder.whole, bounder.whole.whole, "split", Effort(optimiser=BranchingOptions().root))
