"""Subtrees of a question: a clip of the set lies in one of them, and what is proved of that holds for it.

By hand: f = relu(x0 - x1) + 0.25 on two frames of one pixel, radius 0.5. The one ReLU cuts it in two, both with the
bound 0.25. So has the whole with the lower slope 0, so this is no place to cut.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from stbp_milp.attack import Judge
from stbp_milp.branching import Bounder, BranchingOptions, OnCrops, OnMatrices, Piece, Roots, hardest_neurons, within
from stbp_milp.errors import InputError, SoundnessError
from stbp_milp.network.model import load_model
from stbp_milp.network.normal_form import normal_form
from stbp_milp.properties import same_class
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification
from stbp_milp.stages import first as first_stage
from stbp_milp.stages import neurons_to_split
from stbp_milp.strategy import DEFAULT, Strategy
from stbp_milp.verdict import Falsified
from stbp_milp.verify import verify
from tests import micro_instances
from tests.search_cases import bounder, expander, whole_pieces
from tests.test_verify import Difference, micro_query

OPEN = 1e6  # a target that no bound reaches
ROUNDING = 1e-9
MEMBERS = 8  # at least so many of a set's, where it has them
NETWORKS = ("matrices", "whole", "crops")
SEEDS = range(0, 72, 7)  # all kinds of sets, all bodies


def subtrees(neurons: tuple[tuple[int, int], ...]) -> list[tuple[tuple[int, int, int], ...]]:
    """All ways to fix the phases of neurons."""
    return [
        tuple((relu, at, sign) for (relu, at), sign in zip(neurons, signs, strict=True))
        for signs in product((1, -1), repeat=len(neurons))
    ]


def pieces(query: Query, network: str) -> tuple[Bounder, list[Piece]]:
    """The members' first pieces, folded after restriction or from the whole network, or on crops."""
    own, _ = bounder(query, OPEN, BranchingOptions(width=2, dense_pays=0.0 if network == "whole" else 12.0))
    partition = OnCrops(own) if network == "crops" else OnMatrices(own, normal_form(query.model.network))
    members = own.whole.whole.singletons()
    some = torch.arange(members.parts)[:: max(1, members.parts // MEMBERS)]
    found = Roots(own, partition).member_pieces(members.select(some), "split")
    assert found
    return own, found


def corners(piece: Piece, count: int) -> Tensor:
    """Clips of a piece: corners and points between, `(count, C, T, H, W)`."""
    generator = torch.Generator().manual_seed(0)
    lower, upper = (end[0] for end in piece.inputs.hull())
    share = torch.rand(count, *lower.shape, generator=generator, dtype=lower.dtype)
    share[: count // 2] = share[: count // 2].round()
    return piece.family.view.clips(lower + share * (upper - lower))


def operand(query: Query, clips: Tensor, relu: int, neuron: int) -> Tensor:
    network = query.model.network
    return network.values(clips)[network.nodes[relu].inputs[0]].flatten(1)[:, neuron]


def test_by_hand() -> None:
    query = difference()
    expand, _ = expander(query, 1.0)
    first = whole_pieces(expand.roots)
    (relu,) = query.model.network.relus
    assert hardest_neurons(expand.bounder, first, 3) == ()
    for phases in subtrees(((relu, 0),)):
        (piece,) = within(expand.bounder, first, phases)
        assert piece.lower == pytest.approx(0.25, abs=1e-6)
        assert (piece.splits, set(piece.phases)) == (1, {relu})


def difference(phases: tuple[tuple[int, int, int], ...] = ()) -> Query:
    """The example; its one ReLU is its network's first."""
    clip = torch.full((1, 2, 1, 1), 0.5, dtype=torch.float64)
    model = load_model(Difference(0.25), clip.shape)
    return Query(model, clip, SetSpecification("everywhere", 0.5), same_class(0, 2), phases)


def test_margins_seen_in_a_subtree_are_those_of_its_clips() -> None:
    whole = difference()
    (relu,) = whole.model.network.relus
    clips = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64).view(3, 1, 2, 1, 1)
    for phases, least in (((), 0.25), (((relu, 0, 1),), 1.25), (((relu, 0, -1),), 0.25)):
        query = replace(whole, phases=phases)
        judge = Judge(query, query.set.build(query.clip))
        judge(clips, "attack")
        assert (judge.least, judge.least_asked) == pytest.approx((0.25, least))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_bound_above_a_margin_seen_in_the_subtree_is_a_contradiction(
    sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = next(one.query for one in map(micro_instances.draw, range(20)) if one.distance > 0)
    clean = query.model.network.values(query.clip.unsqueeze(0))
    relu = query.model.network.relus[0]
    operand = clean[query.model.network.nodes[relu].inputs[0]].flatten()
    at = int((sign * operand).argmax())
    assert sign * operand[at] > 0.01
    too_high = lambda bounder, pieces, phases: [replace(piece, lower=1e3) for piece in pieces]  # noqa: E731
    monkeypatch.setattr(first_stage, "within", too_high)
    with pytest.raises(SoundnessError, match="exceeds the margin"):
        verify(replace(query, phases=((relu, at, sign),)), Configuration(10.0), strategy=Strategy(union=False))


@pytest.mark.parametrize("phase", [(0, 0, 1), (99, 0, 1), (-1, 0, 1), "beyond", "before", "no sign"])
def test_phases_of_no_neuron_are_refused(phase: object) -> None:
    query = difference()
    (relu,) = query.model.network.relus
    named = {"beyond": (relu, 1, 1), "before": (relu, -1, 1), "no sign": (relu, 0, 0)}
    wrong = named[phase] if isinstance(phase, str) else phase
    with pytest.raises(InputError, match="does not exist in the model"):
        verify(replace(query, phases=(wrong,)), Configuration(10.0))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def queries() -> dict[int, Query]:
    return {seed: micro_instances.draw(seed).query for seed in SEEDS}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_neurons_are_found_on_small_networks(queries: dict[int, Query], seed: int, network: str) -> None:
    query = queries[seed]
    _, found = pieces(query, network)
    seen = 0
    for piece in found:
        clips, family = corners(piece, 4), piece.family
        inside = family.view.inputs(clips).view(4, *family.problem.network.input_shape)
        own = [family.problem.select(torch.tensor([0])).values(x.unsqueeze(0)) for x in inside]
        for relu, bounds in piece.bounds.items():
            for neuron in range(bounds.lower[0].numel()):
                at = family.view.in_whole(relu, neuron)
                assert family.view.here(*at) == (relu, neuron)
                values = torch.cat([v[family.problem.network.nodes[relu].inputs[0]].flatten(1) for v in own])
                assert torch.allclose(operand(query, clips, *at), values[:, neuron], atol=1e-9)
                seen += 1
    assert seen or not any(piece.bounds for piece in found)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_clip_lies_in_a_subtree_whose_bound_holds_for_it(queries: dict[int, Query], seed: int, network: str) -> None:
    query = queries[seed]
    own, first = pieces(query, network)
    hardest = hardest_neurons(own, first, 2)
    relus = query.model.network.relus
    neurons = hardest or ((relus[0], 0), (relus[-1], 1))  # without any that pay, any will do
    gained = False
    children = {phases: within(own, first, phases) for phases in subtrees(neurons)}
    for i, root in enumerate(first):
        clips = corners(root, 40)
        margins = query.model.network(clips) @ own.forms.rows[root.clause] + own.forms.offset[root.clause]
        covered = torch.zeros(len(clips), dtype=torch.bool)
        for phases, found in children.items():
            assert len(found) == len(first)
            assert found[i].clause == root.clause
            assert found[i].lower >= root.lower - ROUNDING
            gained |= found[i].lower > root.lower + 1e-6
            inside = torch.ones(len(clips), dtype=torch.bool)
            for relu, neuron, sign in phases:
                inside &= sign * operand(query, clips, relu, neuron) >= 0
            covered |= inside
            assert bool((margins[inside] >= found[i].lower - ROUNDING).all())
        assert bool(covered.all())
    assert gained or not hardest


@pytest.mark.parametrize("network", ["matrices", "crops"])
def test_the_subtrees_verdicts_make_the_wholes(network: str) -> None:
    strategy = Strategy(matrices_limit=0) if network == "crops" else DEFAULT
    configuration = Configuration(30.0, "auto" if network == "matrices" else "none")
    cut = 0
    for seed in range(0, 36, 3 if network == "matrices" else 4):
        instance = micro_instances.draw(seed)
        neurons = neurons_to_split(instance.query, configuration, 2, strategy)
        cut += bool(neurons)
        if not neurons:  # any neurons will do, of which nothing new may be known
            relus = instance.query.model.network.relus
            neurons = ((relus[0], 0), (relus[-1], 1))
        outcomes = [
            verify(replace(instance.query, phases=phases), configuration, strategy=strategy)
            for phases in subtrees(neurons)
        ]
        words = {outcome.word for outcome in outcomes}
        if instance.distance > 0:
            assert words == {"verified"}, (seed, words)
            assert min(outcome.lower for outcome in outcomes) <= instance.distance + 1e-4
        else:
            assert "falsified" in words, (seed, words)
        for outcome in outcomes:
            if isinstance(outcome.verdict, Falsified):
                clip = outcome.verdict.counterexample.clip
                assert instance.query.set.build(instance.query.clip).contains(clip.to(torch.float64).unsqueeze(0)).all()
                assert micro_instances.margin(instance.query, clip.to(torch.float64)) <= 1e-5
    assert cut >= 3


def test_a_neuron_that_the_network_lacks_is_ignored() -> None:
    query = micro_query("patch-at:0,0,0:1x1@1", "two classes", 5, 0.5)
    own, first = pieces(query, "matrices")
    lacking = next(
        (relu, at)
        for relu in query.model.network.relus
        for at in range(torch.Size(query.model.network.nodes[relu].shape).numel())
        if first[0].family.view.here(relu, at) is None
    )
    assert within(own, first, ((*lacking, 1),)) == first
