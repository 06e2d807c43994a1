"""No input of a set takes a neuron out of its bounds, whatever the method, the set and the layers.

By hand first: z1 = x0 - x1 on [0, 1]^2 lies in [-1, 1], relu(z1) in [0, 1], and z2 = relu(z1) + x1 - 1.5 in [-1.5, 0.5]
by intervals. A backward pass sees that x1 cancels: relu(z1) <= (z1 + 1) / 2, so z2 <= (x0 + x1 + 1) / 2 - 1.5 <= 0.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stbp_milp.bounds.interval import Clean, Interval, interval
from stbp_milp.bounds.preactivation import BoundingOptions, empty, preactivations
from stbp_milp.bounds.problem import Problem, select_preactivations, unstable_count
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Add, Linear, Maximum, ReLU, Reshape
from stbp_milp.sets import InputSet, VoxelBox, support
from tests import enumeration
from tests.bounds.bound_cases import BODIES, case, escape, hull_box, members_of, operands, random_forms, split
from tests.enumeration import SETS

seeds = st.integers(0, 10**6)
each_set = pytest.mark.parametrize("text", SETS)
each_body = pytest.mark.parametrize("body", BODIES)
METHODS = {
    "interval": BoundingOptions(deep="interval"),
    "backward": BoundingOptions(),
    "in chunks": BoundingOptions(memory_bytes=20_000),
    "optimised": BoundingOptions(slope_steps=3),
}
ROUNDING = 1e-12


def by_hand() -> tuple[Network, VoxelBox]:
    b = NetworkBuilder((2,))
    b.add("z1", Linear(torch.tensor([[1.0, -1.0]]).double(), torch.zeros(1).double()), "input")
    b.add("y1", ReLU(), "z1")
    b.add("x1", Linear(torch.tensor([[0.0, 1.0]]).double(), torch.tensor([-1.6], dtype=torch.float64)), "input")
    b.add("y2", ReLU(), b.add("z2", Add((1.0, 1.0)), "y1", "x1"))
    box = VoxelBox(torch.full((1, 2), 0.5).double(), torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    return b.build("y2"), box


@pytest.mark.parametrize(("deep", "upper"), [("interval", 0.4), ("backward", -0.1)])
def test_by_hand(deep: str, upper: float) -> None:
    net, box = by_hand()
    bounds = preactivations(Problem.of(net, box), BoundingOptions(deep))  # type: ignore[arg-type]
    first, second = (bounds[relu] for relu in net.relus)
    assert (first.lower.item(), first.upper.item()) == pytest.approx((-1.0, 1.0))
    assert second.lower.item() == pytest.approx(-1.6)
    assert second.upper.item() == pytest.approx(upper, abs=1e-12)


@each_set
@each_body
@given(
    method=st.sampled_from(list(METHODS)),
    seed=seeds,
    epsilon=st.sampled_from([0.05, 0.4, 2.0]),
    splits=st.integers(0, 2),
    boxed=st.booleans(),
)
@settings(max_examples=6)
def test_no_input_leaves_the_bounds(
    body: str, text: str, method: str, seed: int, epsilon: float, splits: int, boxed: bool
) -> None:
    net, perturbation = case(body, text, seed, epsilon)
    perturbation = split(perturbation, splits, seed)
    inputs: InputSet = hull_box(perturbation) if boxed else perturbation
    problem = Problem.of(net, inputs)
    bounds = preactivations(problem, METHODS[method])
    # The corners that a neuron's gradient points to are nearest to leaving.
    points = torch.cat([members_of(inputs, seed, 8), steep_corners(problem, seed)], 1)
    assert escape(bounds, operands(problem, points)) <= ROUNDING


def steep_corners(problem: Problem, seed: int) -> torch.Tensor:
    """For random neurons the corners of every set where the gradient at the centre points to, `(N, count, *shape)`."""
    generator = torch.Generator().manual_seed(seed)
    centre = problem.inputs.centre[:1].clone().requires_grad_(True)
    values = problem.network.values(centre)
    slopes = []
    for relu in problem.network.relus:
        operand = values[problem.network.nodes[relu].inputs[0]].flatten()
        for _ in range(2):
            at = int(torch.randint(operand.numel(), (1,), generator=generator))
            slopes.append(torch.autograd.grad(operand[at], centre, retain_graph=True)[0])
    form = torch.cat([*slopes, *(-s for s in slopes)]).unsqueeze(0)
    return problem.inputs.maximiser(form.expand(problem.parts, *form.shape[1:])).detach()


@each_set
@each_body
@given(seed=seeds)
@settings(max_examples=2)
def test_each_method_is_at_least_as_tight_as_the_one_before(body: str, text: str, seed: int) -> None:
    net, perturbation = case(body, text, seed)
    problem = Problem.of(net, perturbation)
    results = [preactivations(problem, METHODS[m]) for m in ("interval", "backward", "optimised")]
    chunked = preactivations(problem, METHODS["in chunks"])
    for relu in net.relus:
        # Only the layer above the first is compared: further up, adaptive slopes of tighter bounds may be worse.
        if relu in net.relus[:2]:
            for weak, strong in pairwise(results):
                assert bool((strong[relu].lower >= weak[relu].lower - ROUNDING).all())
                assert bool((strong[relu].upper <= weak[relu].upper + ROUNDING).all())
        torch.testing.assert_close(chunked[relu].lower, results[1][relu].lower, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(chunked[relu].upper, results[1][relu].upper, rtol=1e-10, atol=1e-10)


@each_set
@each_body
@given(seed=seeds)
@settings(max_examples=2)
def test_affine_operands_are_exact(body: str, text: str, seed: int) -> None:
    """For sets and for boxes: the bound of an affine operand is the support of its row."""
    net, perturbation = case(body, text, seed)
    affine = net.affine_depth()
    size = perturbation.clip.numel()
    units = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().view(-1, *net.input_shape)
    values = net.values(units)
    inputs: InputSet
    for inputs in (perturbation, split(perturbation, 2, seed), hull_box(perturbation)):
        bounds = preactivations(Problem.of(net, inputs), METHODS["interval"])
        for relu in net.relus:
            operand = net.nodes[relu].inputs[0]
            if not affine[operand]:
                continue
            flat = values[operand].flatten(1)
            rows = (flat[1:] - flat[0]).T.reshape(1, -1, *net.input_shape).expand(inputs.parts, -1, -1, -1, -1, -1)
            torch.testing.assert_close(
                bounds[relu].upper.flatten(1), support(inputs, rows) + flat[0], rtol=1e-10, atol=1e-10
            )
            torch.testing.assert_close(
                bounds[relu].lower.flatten(1), -support(inputs, -rows) + flat[0], rtol=1e-10, atol=1e-10
            )


@each_set
@pytest.mark.parametrize("body", ["residual", "two convolutions", "max pooling"])
@given(seed=seeds)
@settings(max_examples=3)
def test_what_is_known_is_never_lost(body: str, text: str, seed: int) -> None:
    """Children of a split, with their parent's bounds: never weaker, still sound, and as good as on their own."""
    net, perturbation = case(body, text, seed)
    root = preactivations(Problem.of(net, perturbation), METHODS["backward"])
    children, parents = perturbation.split(random_forms(perturbation, 1, seed)[:, 0])
    if not children.parts:
        return
    problem = Problem.of(net, children)
    known = select_preactivations(root, parents)
    bounds = preactivations(problem, METHODS["backward"], known)
    for relu in net.relus:
        assert bool((bounds[relu].lower >= known[relu].lower).all())
        assert bool((bounds[relu].upper <= known[relu].upper).all())
    assert escape(bounds, operands(problem, members_of(children, seed))) <= ROUNDING
    last = net.relus[-1]
    kept = preactivations(problem, METHODS["backward"], bounds, fresh_from=last + 1)
    assert all(
        torch.equal(kept[r].lower, bounds[r].lower) and torch.equal(kept[r].upper, bounds[r].upper) for r in net.relus
    )


@pytest.mark.parametrize("body", BODIES)
@given(seed=seeds, text=st.sampled_from(SETS))
@settings(max_examples=6)
def test_phases_hold_on_the_inputs_that_satisfy_them(body: str, text: str, seed: int) -> None:
    """A neuron is fixed by cutting its bounds at 0; the other bounds hold wherever it has that sign."""
    net, perturbation = case(body, text, seed)
    problem = Problem.of(net, perturbation)
    root = preactivations(problem, METHODS["backward"])
    relu = net.relus[seed % len(net.relus)]
    undecided = ((root[relu].lower < 0) & (root[relu].upper > 0)).flatten().nonzero().flatten()
    if not len(undecided):
        return
    neuron = int(undecided[seed % len(undecided)])
    points = members_of(perturbation, seed, 60)
    seen = operands(problem, points)
    for sign in (1.0, -1.0):
        lower, upper = root[relu].lower.clone(), root[relu].upper.clone()
        (lower if sign > 0 else upper).view(-1)[neuron] = 0.0
        known = dict(root) | {relu: Interval(lower, upper)}
        bounds = preactivations(problem, METHODS["backward"], known)
        satisfying = sign * seen[relu].flatten(2)[0, :, neuron] >= 0
        if bool(satisfying.any()):
            assert escape(bounds, {r: s[:, satisfying] for r, s in seen.items()}) <= ROUNDING


def test_bounds_that_cross_leave_no_input() -> None:
    net, box = by_hand()
    bounds = preactivations(Problem.of(net, box), BoundingOptions())
    assert unstable_count(net, bounds, 1).tolist() == [1]
    relu = net.relus[0]
    for lower, upper, expected in (
        (0.5, 0.4, True),
        (0.5, 0.5, False),
        (-0.5, 0.5, False),
    ):
        crossed = dict(bounds) | {relu: Interval(torch.tensor([[lower]]).double(), torch.tensor([[upper]]).double())}
        assert empty(crossed, 1).tolist() == [expected]


@given(seed=seeds)
def test_interval_of_a_maximum(seed: int) -> None:
    """`[max(l_a, l_b), max(u_a, u_b)]` around 0, whatever the third operand says; attained by corners."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, 2, 1, 4, generator=generator, dtype=torch.float64).sort(0).values  # (side, operand, 1, 4)
    first, second = (Interval(ends[0, i], ends[1, i]) for i in (0, 1))
    anything = Interval(torch.zeros(1, 4), torch.full((1, 4), 99.0))
    zero = Clean(torch.zeros(1, 4).double(), torch.zeros(1, 4).double())
    found = interval(Maximum(), [first, second, anything], [zero, zero, zero], 0.0)
    torch.testing.assert_close(found.lower, torch.maximum(ends[0, 0], ends[0, 1]), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.upper, torch.maximum(ends[1, 0], ends[1, 1]), rtol=1e-14, atol=0)


@each_body
@given(seed=seeds)
@settings(max_examples=4)
def test_boxes_of_several_clips_in_one_batch(body: str, seed: int) -> None:
    """Sets around different centres: no item's inputs leave its bounds, and what stays undecided is bounded as alone.

    A neuron that is decided in one item only shares the other's backward pass, so its bounds may be better than alone.
    """
    net, one = case(body, "everywhere", seed)
    clip = enumeration.random_clip(seed + 1, 1, (3, 4, 4))
    low, high = enumeration.radius(clip, 0.1)
    two = VoxelBox(clip.unsqueeze(0), low.unsqueeze(0), high.unsqueeze(0))
    both = VoxelBox(
        *(torch.cat(pair) for pair in zip((one.centre, *one.hull()), (two.centre, two.lower, two.upper), strict=True))
    )
    together = preactivations(Problem.of(net, both), METHODS["backward"])
    alone = [
        preactivations(Problem.of(net, hull_box(one)), METHODS["backward"]),
        preactivations(Problem.of(net, two), METHODS["backward"]),
    ]
    problem = Problem.of(net, both)
    assert escape(together, operands(problem, members_of(both, seed))) <= ROUNDING
    for place, relu in enumerate(net.relus[:2]):
        for i in (0, 1):
            own, batched = alone[i][relu], together[relu].select(torch.tensor([i]))
            if place == 0:
                torch.testing.assert_close(batched.lower, own.lower, rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(batched.upper, own.upper, rtol=1e-10, atol=1e-10)
            assert bool((batched.lower >= own.lower - 1e-9).all())
            assert bool((batched.upper <= own.upper + 1e-9).all())


def test_slopes_of_a_branch_that_a_neuron_does_not_see() -> None:
    """relu(b2(relu(b(x)))) beside relu(a(x)): b is active everywhere, a is not, and b2 has nothing to optimise."""
    builder = NetworkBuilder((1, 1, 1, 1))
    flat = builder.add("flat", Reshape((1,)), "input")

    def linear(name: str, source: str, weight: float, bias: float) -> str:
        layer = Linear(torch.tensor([[weight]]).double(), torch.tensor([bias]).double())
        return builder.add(name, layer, source)

    first = builder.add("relu a", ReLU(), linear("a", flat, 1.0, -0.5))
    inner = builder.add("relu b", ReLU(), linear("b", flat, 1.0, 1.0))
    second = builder.add("relu b2", ReLU(), linear("b2", inner, 1.0, -1.5))
    network = builder.build(builder.add("sum", Add((1.0, 1.0)), first, second))
    box = VoxelBox(*(torch.full((1, 1, 1, 1, 1), value, dtype=torch.float64) for value in (0.5, 0.0, 1.0)))
    bounds = preactivations(Problem.of(network, box), BoundingOptions(slope_steps=5))
    found = [(float(b.lower), float(b.upper)) for b in bounds.values()]
    assert found == [pytest.approx(sides) for sides in [(-0.5, 0.5), (1.0, 2.0), (-0.5, 0.5)]]


def test_an_affine_branch_behind_another_branchs_relu() -> None:
    """relu(c(b(x))) after relu(a(x)): the size of c's values does not wait for bounds of a's ReLU."""
    builder = NetworkBuilder((2,))

    def linear(name: str, source: str) -> str:
        weight = torch.tensor([[1.0, -2.0], [0.5, 1.0]], dtype=torch.float64)
        return builder.add(name, Linear(weight, torch.zeros(2, dtype=torch.float64)), source)

    first = builder.add("relu a", ReLU(), linear("a", linear("a0", "input")))
    second = builder.add("relu c", ReLU(), linear("c", linear("b", "input")))
    network = builder.build(builder.add("sum", Add((1.0, -1.0)), first, second))
    box = VoxelBox(*(torch.full((1, 2), value, dtype=torch.float64) for value in (0.5, 0.0, 1.0)))
    bounds = preactivations(Problem.of(network, box), BoundingOptions())
    for own in bounds.values():  # (x - 2 y) - 2 (x / 2 + y) = -4 y, and (x - 2 y) / 2 + x / 2 + y = x
        assert own.lower[0].tolist() == pytest.approx([-4.0, 0.0], abs=1e-12)
        assert own.upper[0].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)
