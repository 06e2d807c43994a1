"""Pieces of a branch and bound: no clip of the set is lost, and no piece's bound exceeds the margin of its clips.

By hand first: f = relu(x0 - x1) + 0.25 on two frames of one pixel, radius 0.5. Split at the ReLU, the active piece has
f = z + 0.25 with z >= 0, the inactive one f = 0.25: both bounds are 0.25, where the triangle alone says -0.25 with the
lower slope 1/2.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from solvers import SolveLimits
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.duals import Duals
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.branching import Piece
from stbp_milp.branching.choose import choose, split_phase
from stbp_milp.branching.exact import ProgramOptions, solve_piece
from stbp_milp.branching.piece import Batch, stack
from stbp_milp.milp import PROOF_MARGIN, InputRegion, encode, minimum
from stbp_milp.network.model import load_model
from stbp_milp.network.normal_form import normal_form
from stbp_milp.network.torch_reader import read_module
from stbp_milp.properties import same_class
from stbp_milp.query import Query
from stbp_milp.search import Deadline
from stbp_milp.sets import Patch, PerturbationSet, SetSpecification, VoxelBox
from tests import enumeration, micro_instances
from tests.enumeration import SETS
from tests.search_cases import expander, whole_pieces
from tests.test_verify import Difference, micro_module, micro_query

seeds = st.integers(0, 10**6)
each_set = pytest.mark.parametrize("text", SETS)
ROUNDING = 1e-9


def test_by_hand() -> None:
    clip = torch.full((1, 2, 1, 1), 0.5, dtype=torch.float64)
    query = Query(load_model(Difference(0.25), clip.shape), clip, SetSpecification("everywhere", 0.5), same_class(0, 2))
    expand, _ = expander(query, 1.0)
    batch = stack(whole_pieces(expand.roots))
    (relu,) = query.model.network.relus
    half = Duals({relu: torch.full((1, 1, 1, 1, 1, 1), 0.5).double()})
    rows, offset = query.property.forms()
    assert bound_once(batch.bounded, Forms(rows, offset), half).lower.item() == pytest.approx(-0.25)
    for sign in (1.0, -1.0):
        child = split_phase(batch, torch.tensor([relu]), torch.tensor([0]), sign)
        multipliers = Duals({}, {relu: torch.full((1, 1, 1, 1, 1, 1), 1.0 if sign > 0 else 0.0).double()})
        assert bound_once(child.bounded, Forms(rows, offset), multipliers).lower.item() == pytest.approx(0.25)


def holds(piece: Piece, clips: Tensor) -> Tensor:
    """Which clips `(B, C, T, H, W)` lie in the piece: in its part of the set, with the signs of its phases."""
    family = piece.family
    if family.members is None:
        assert isinstance(piece.inputs, PerturbationSet)
        inside = piece.inputs.contains(clips)
    else:
        inside = family.members.select(torch.tensor([piece.item])).contains(clips)
    inputs = family.view.inputs(clips)
    values = [family.problem.network.values(i.unsqueeze(0)) for i in inputs]
    for relu, phase in piece.phases.items():
        operand = torch.cat([v[family.problem.network.nodes[relu].inputs[0]] for v in values])
        inside = inside & (phase * operand >= 0).flatten(1).all(1)
    return inside


def sampled(query: Query, seed: int) -> Tensor:
    """Clips of the set, corners for the margin's gradient among them."""
    perturbation = query.set.build(query.clip)
    generator = torch.Generator().manual_seed(seed)
    forms = torch.randn(1, 20, *query.clip.shape, generator=generator, dtype=torch.float64)
    centre = perturbation.centre.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(query.property.margin(query.model.network(centre)).sum(), centre)
    corners = perturbation.maximiser(torch.cat([forms, -slope.unsqueeze(1)], 1))[0]
    return torch.cat([perturbation.sample(20, generator), corners.clamp(perturbation.lower, perturbation.upper)])


@pytest.mark.parametrize(("few", "memory"), [(1, 512 << 20), (64, 4 << 10)])
@each_set
@given(seed=seeds, epsilon=st.sampled_from([0.2, 1.0]))
@settings(max_examples=4)
def test_no_clip_is_lost_and_every_bound_holds(text: str, few: int, memory: int, seed: int, epsilon: float) -> None:
    """Grown for some rounds with a target that nothing exceeds: leaves cover the set, clause by clause.

    With little memory some members are bounded on small networks, the others on the whole one.

    Closed pieces forget their phases, so none may close here, not even those without any input (bound infinity).
    """
    query = micro_query(text, "class", seed, epsilon)
    expand, witness = expander(query, float("inf"), few_members=few, family_memory=memory)
    clips = sampled(query, seed)
    outputs = query.model.network(clips)
    values = query.property.clause_bounds(outputs @ query.property.rows.T + query.property.offset)
    leaves = whole_pieces(expand.roots)
    whole = expand.bounder.whole.whole
    if isinstance(whole.choice, Patch) and seed % 2:
        leaves = expand.roots.member_pieces(whole.singletons(), "split") or leaves
    random = np.random.default_rng(seed)
    finished: list[Piece] = []
    for _ in range(5):
        check(leaves + finished, clips, values)
        if not leaves:
            break
        chosen = leaves[int(random.integers(len(leaves)))]
        taken = [p for p in leaves if p.group == chosen.group][:4]
        expansion = expand(taken)
        parents = {id(p) for p in taken}
        leaves = [p for p in leaves if id(p) not in parents] + list(expansion.children)
        finished += expansion.given_up
    assert all(bool(whole.contains(shown.clamp(whole.lower, whole.upper)).all()) for shown in witness.shown)


def check(pieces: list[Piece], clips: Tensor, values: Tensor) -> None:
    covered = torch.zeros_like(values, dtype=torch.bool)
    for piece in pieces:
        inside = holds(piece, clips)
        covered[:, piece.clause] |= inside
        if bool(inside.any()):
            assert piece.lower <= float(values[inside, piece.clause].min()) + ROUNDING
    assert bool(covered.all())


@pytest.mark.parametrize("solver", ["scip", "highs"])
@each_set
@given(seed=seeds)
@settings(max_examples=3)
def test_the_program_of_a_piece_is_exact(text: str, solver: str, seed: int) -> None:
    """Roots, and children of a ReLU split: their smaller optimum is the root's."""
    query = micro_query(text, "two classes", seed, 0.3)
    expand, _ = expander(query, 1e9, few_members=1)
    (root,) = whole_pieces(expand.roots)
    options, maps = ProgramOptions(solver), normal_form(query.model.network)  # type: ignore[arg-type]

    def solved(piece: Piece) -> tuple[float, Tensor | None]:
        found = solve_piece(piece, maps, query.property.rows, query.property.offset, options, Deadline.after(20.0))
        return found.lower, found.candidate

    exact = micro_instances.whole_minimum(query, "highs").upper
    bound, candidate = solved(root)
    # The run stops once the sign is settled, so the bound may be below the optimum, the candidate above.
    assert bound <= exact + 1e-5
    assert bound > 0 or candidate is not None
    if candidate is not None:
        assert micro_instances.margin(query, candidate) >= exact - 1e-5
        inside = root.inputs
        assert isinstance(inside, PerturbationSet)
        assert bool(inside.contains(candidate.unsqueeze(0)).all())
    assert (bound > 0) == (exact > 0) or abs(exact) < 3 * PROOF_MARGIN
    children = expand([root]).children
    if children and min(len(c.phases) for c in children):
        assert (min(solved(c)[0] for c in children) > 0) == (exact > 0) or abs(exact) < 3 * PROOF_MARGIN


@given(seed=seeds, text=st.sampled_from(SETS))
def test_an_undecided_neuron_is_chosen(seed: int, text: str) -> None:
    query = micro_query(text, "class", seed, 0.5)
    expand, _ = expander(query, 1e9)
    batch = stack(whole_pieces(expand.roots))
    found = bound_once(batch.bounded, expand.bounder.form_of(batch.clause), batch.duals, record=True)
    for width in (1, 3):
        choice = choose(batch, found, expand.bounder.form_of, width)
        for i in choice.exists.nonzero().flatten().tolist():
            own = batch.bounded.bounds[int(choice.relu[i])].select(torch.tensor([i]))
            at = int(choice.neuron[i])
            assert own.lower.flatten()[at] < 0 < own.upper.flatten()[at]


@pytest.mark.parametrize(("layer", "scale"), [("first", 1e-6), ("first", 1e6), ("first", 1e7), ("last", 1e6)])
@pytest.mark.parametrize("solver", ["scip", "gurobi", "highs"])
def test_dual_bounds_of_badly_scaled_networks_prove_nothing_false(layer: str, scale: float, solver: str) -> None:
    """Activations in the millions (seen: dual bounds 0.5 above the margin of a clip, before columns were scaled)."""
    for seed in range(12):
        text = ["everywhere", "window:2", "patch:2x1@2", "any-frames:1"][seed % 4]
        clip = enumeration.random_clip(seed, 1, (3, 3, 3))
        module = micro_module(seed, 2)
        with torch.no_grad():
            first, last = module[0], module[-1]
            if layer == "first":
                first.weight *= scale
                first.bias *= scale
                for middle in [m for m in module[3:-1] if isinstance(m, nn.Linear)]:
                    middle.bias *= scale
                last.weight /= scale
            else:
                last.weight *= scale
                last.bias *= scale
        query = Query(load_model(module, clip.shape), clip, SetSpecification(text, 0.4), same_class(seed % 2, 2))
        region = InputRegion.of(query.set.build(clip))
        encoded = encode(
            normal_form(query.model.network), region, {}, query.property.rows.numpy(), query.property.offset.numpy()
        )
        result = minimum(encoded, solver, SolveLimits(20.0))  # type: ignore[arg-type]
        assert result.candidate is not None
        seen = micro_instances.margin(query, torch.from_numpy(result.candidate))
        assert result.dual_bound <= seen + 1e-6 * (1 + abs(seen))


def test_stacked_pieces_keep_their_order() -> None:
    net = read_module(micro_module(1, 3), (1, 3, 3, 3))
    clip = enumeration.random_clip(1, 1, (3, 3, 3)).unsqueeze(0)
    box = VoxelBox(clip, clip - 0.1, clip + 0.1)
    problem = Problem.of(net, box)
    bounds = preactivations(problem, BoundingOptions())
    batch = Batch(Bounded(problem, bounds), torch.tensor([0]), torch.tensor([-1.0]).double(), Duals())
    both = batch.select(torch.tensor([0, 0]))
    assert both.clause.tolist() == [0, 0]
    assert all(torch.equal(both.bounded.bounds[r].lower[0], both.bounded.bounds[r].lower[1]) for r in net.relus)
