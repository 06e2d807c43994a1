"""Verdicts on crops: without matrices the answers are those with matrices, and no clip of the set is lost.

Pieces of members on crops cover the members, clause by clause, and each one's bound is at most the margin of every
clip in it.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stbp_milp.bounds.ascent import OptimiserOptions
from stbp_milp.branching import BranchingOptions, Expander, OnCrops, Piece, Roots
from stbp_milp.branching.views import CroppedView
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import PerturbationSet
from stbp_milp.strategy import Strategy
from stbp_milp.verdict import Falsified, Verified
from stbp_milp.verify import verify
from tests.bounds.crop_cases import NAMES, query
from tests.search_cases import bounder, untimed

seeds = st.integers(0, 10**6)
SETS = ("patch:2x2@1", "patch-at:1,3,2:3x2@2", "window:1", "any-frames:2", "patch:1x1@2")


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds, text=st.sampled_from(SETS), share=st.sampled_from([1.5, 3.0, 6.0]))
@settings(max_examples=3)
def test_verdicts_do_not_depend_on_matrices(name: str, seed: int, text: str, share: float) -> None:
    asked = query(name, seed, text, 0.6, share)
    settled = Configuration(timeout=4.0, solver="none", threads=1)
    expected = verify(asked, settled)
    found = verify(asked, settled, strategy=Strategy(matrices_limit=0))
    decided = {outcome.word for outcome in (expected, found)} - {"unknown"}
    assert len(decided) <= 1
    assert found.lower <= found.upper
    assert max(found.lower, expected.lower) <= min(found.upper, expected.upper) + 1e-9
    perturbation = asked.set.build(asked.clip)
    if isinstance(found.verdict, Falsified):
        clip = found.verdict.counterexample.clip.double().unsqueeze(0)
        assert bool(perturbation.contains(clip).all())
        assert float(asked.property.margin(asked.model.network(clip))) <= 1e-5
    if isinstance(found.verdict, Verified):
        sampled = perturbation.sample(100, torch.Generator().manual_seed(seed))
        assert found.lower <= float(asked.property.margin(asked.model.network(sampled)).min()) + 1e-9


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds, text=st.sampled_from(SETS))
@settings(max_examples=2)
def test_no_clip_is_lost_and_every_bound_holds(name: str, seed: int, text: str) -> None:
    asked = query(name, seed, text, 0.3, 2.0)
    perturbation, few = asked.set.build(asked.clip), OptimiserOptions(steps=2)
    own, witness = bounder(asked, torch.inf, BranchingOptions(root=few, child=few, tighten_steps=1, width=2))
    expand = Expander(bounder=own, roots=Roots(own, OnCrops(own)), program=None, timed=untimed)
    members = perturbation.singletons()
    members = members.select(torch.randperm(members.parts, generator=torch.Generator().manual_seed(seed))[:6])
    leaves = expand.roots.member_pieces(members, "split")
    assert leaves is not None
    for step in range(3):
        for item in range(members.parts):
            check(leaves, members.select(torch.tensor([item])), asked, seed)
        chosen = leaves[seed % len(leaves)]
        taken = [p for p in leaves if p.group == chosen.group][: 2 + step]
        parents = {id(p) for p in taken}
        expansion = expand(taken)
        leaves = [p for p in leaves if id(p) not in parents] + [*expansion.children, *expansion.given_up]
    inside = [perturbation.contains(shown.clamp(perturbation.lower, perturbation.upper)) for shown in witness.shown]
    assert all(bool(each.all()) for each in inside)


def check(pieces: list[Piece], member: PerturbationSet, asked: Query, seed: int) -> None:
    clips = member.sample(20, torch.Generator().manual_seed(seed))
    values = asked.property.clause_bounds(asked.model.network(clips) @ asked.property.rows.T + asked.property.offset)
    covered = torch.zeros_like(values, dtype=torch.bool)
    for piece in pieces:
        within = holds(piece, clips)
        covered[:, piece.clause] |= within
        if bool(within.any()):
            assert piece.lower <= float(values[within, piece.clause].min()) + 1e-9
    assert bool(covered.all())


def holds(piece: Piece, clips: Tensor) -> Tensor:
    """Which clips lie in the piece: in its member, with the signs of its phases, or inside the bounds of splits."""
    family, problem = piece.family, piece.family.problem
    assert family.members is not None
    assert isinstance(family.view, CroppedView)
    within = family.members.select(torch.tensor([piece.item])).contains(clips)
    if piece.phases:
        points = family.view.inputs(clips).view(len(clips), *problem.network.input_shape)
        values = problem.values(points)
        for relu, phase in piece.phases.items():
            operand = values[problem.network.nodes[relu].inputs[0]]
            inside = phase * operand >= 0
            if relu not in problem.network.relus:
                own = piece.bounds[relu]
                inside = (phase == 0) | ((operand >= own.lower) & (operand <= own.upper))
            within = within & inside.flatten(1).all(1)
    return within
