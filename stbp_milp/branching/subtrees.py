"""Cutting a question by phases of ReLUs, so that several workers can share a set that has a single member.

The *subtrees* of k neurons are the 2^k ways to fix their phases. Every clip lies in one of them (in several if a
pre-activation is 0), so what holds in all of them holds on the set. If a piece's network does not have a neuron, or
knows its phase already, the piece is bounded without that phase, that is, on more clips than necessary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from stbp_milp.bounds.preactivation import preactivations
from stbp_milp.branching.bounder import Bounder
from stbp_milp.branching.choose import candidates, looked_ahead, merit, scores, split_phase
from stbp_milp.branching.piece import Piece, stack
from stbp_milp.query import Neuron, Phase

_GAIN = 1e-6  # smaller gains count as none, as in `merit`


def hardest_neurons(bounder: Bounder, pieces: Sequence[Piece], count: int) -> tuple[Neuron, ...]:
    """Returns at most `count` neurons of the whole network at which to split the worst open piece, best first.

    A look-ahead must see that their phases improve its bound; subtrees of other neurons would repeat the same work.
    """
    open_ = [piece for piece in pieces if piece.lower <= bounder.target and piece.bounds]
    if not open_:
        return ()
    worst = min(open_, key=lambda piece: piece.lower)
    batch = stack([worst])
    found = bounder.bound(batch)
    network = batch.problem.network
    score = {relu: own for relu, own in scores(network, batch.bounded.bounds, found).items() if relu in network.relus}
    if not score:
        return ()
    total = sum(values[0].numel() for values in score.values())
    relus, neurons, values = candidates(score, min(max(count, bounder.options.width), total))
    sides = looked_ahead(batch, bounder.form_of, relus, neurons)
    worth = (values > 0) & ((sides[0] > found.lower + _GAIN) | (sides[1] > found.lower + _GAIN))
    order = torch.where(worth, merit(sides, found), -1.0)[0].argsort(descending=True, stable=True)
    best = order[worth[0][order]][:count]
    return tuple(
        worst.family.view.in_whole(relu, neuron)
        for relu, neuron in zip(relus[0, best].tolist(), neurons[0, best].tolist(), strict=True)
    )


def within(bounder: Bounder, pieces: Sequence[Piece], phases: Sequence[Phase]) -> list[Piece]:
    """Bounds the open pieces anew with these phases (of neurons of the whole network); returns all pieces."""
    result: list[Piece] = []
    for piece in pieces:
        fixed = _undecided(piece, phases)
        if piece.lower > bounder.target or not fixed or bounder.deadline.expired():
            result.append(piece)
            continue
        batch = stack([piece])
        device = batch.clause.device
        for relu, neuron, sign in fixed:
            at = torch.tensor([[relu], [neuron]], device=device)
            batch = split_phase(batch, at[0], at[1], float(sign))
        if not batch.problem.ideal:
            first = min(relu for relu, _, _ in fixed)
            bounds = preactivations(batch.problem, bounder.options.bounding, batch.bounded.bounds, first + 1)
            batch = replace(batch, bounded=replace(batch.bounded, bounds=bounds))
        result += bounder.children(piece.family, batch, [piece], len(fixed), "relu search")
    return result


def _undecided(piece: Piece, phases: Sequence[Phase]) -> list[Phase]:
    """Returns the phases of neurons that the piece's network has and leaves undecided."""
    found = []
    for relu, neuron, sign in phases:
        here = piece.family.view.here(relu, neuron) if piece.bounds else None
        if here is not None and bool(piece.bounds[here[0]].undecided.flatten()[here[1]]):
            found.append((*here, sign))
    return found
