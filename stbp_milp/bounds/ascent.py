"""Better duals by gradient ascent: of the property's forms, and of the neurons of a hidden layer.

Adam (Kingma, Ba 2015) climbs in float32, which is as good a guide at half the cost; the duals that it finds are then
bounded in float64, and the best bound of all steps counts. (alpha-CROWN, Xu et al. 2021; beta-CROWN, Wang et al. 2021.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stbp_milp.bounds.backward import NodeForms, input_form
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.duals import Bracket, Duals, starting_duals
from stbp_milp.bounds.objective import ObjectiveBound, better, bound_once, one_pass
from stbp_milp.bounds.problem import Preactivations, Problem
from stbp_milp.errors import OutOfTimeError
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Convolution

_MEAN, _SQUARE = 0.9, 0.999  # Adam's moments
_CHANNELS = 16  # with at least so many, oneDNN is faster for strided convolutions too


Settled = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class OptimiserOptions:
    """Options of Adam on slopes, multipliers and shares: steps, learning rates, and their decay per step."""

    steps: int = 20
    slope_rate: float = 0.25
    multiplier_rate: float = 0.1
    share_rate: float = 0.25
    decay: float = 0.95


@torch.no_grad()
def optimise(
    bounded: Bounded,
    forms: Forms,
    settled: Settled,
    options: OptimiserOptions,
    duals: Duals | None = None,
    *,
    expired: Callable[[], bool] = lambda: False,
    memory_bytes: int = 1 << 30,
) -> ObjectiveBound:
    """Computes the best bounds that gradient ascent finds, starting from `duals`.

    Args:
        settled: maps bounds `(n, M)` and items `(n,)` to `(n,)` bool; settled items are not optimised any further.
        memory_bytes: memory for the forms of the first bound.
    """
    problem, start = bounded.problem, duals or Duals()
    best = bound_once(bounded, forms, start, memory_bytes=memory_bytes, expired=expired)
    everything = torch.arange(problem.parts, device=problem.device)
    items = everything[~settled(best.lower, everything)]
    if not options.steps or not len(items) or expired():
        return best
    forms = forms.each(problem.parts)
    first = starting_duals(bounded, forms.count, start)
    if not first.slopes and not first.multipliers:
        return best
    # The duals are written out, so that an item that no step improves keeps those of its first bound.
    best = replace(best, duals=first.select(everything))
    with suppress(OutOfTimeError), fast_convolutions(problem.network):  # when time is over, the best bounds so far hold
        for done, found in _climbed(bounded, forms, settled, options, first, items, expired):
            again = bound_once(bounded.select(done), forms.select(done), found)
            best = best.updated(done, better(best.select(done), replace(again, duals=found)))
    return best


def _climbed(
    bounded: Bounded,
    forms: Forms,
    settled: Settled,
    options: OptimiserOptions,
    first: Duals,
    items: Tensor,
    expired: Callable[[], bool],
) -> Iterator[tuple[Tensor, Duals]]:
    """Yields items with the best duals found for them when they leave the ascent: once settled, or at its end."""

    def task(items: Tensor) -> tuple[Bounded, Bracket, Forms]:
        own = bounded.select(items).single()
        return own, Bracket.of(own.problem, own.bounds), forms.select(items).to(torch.float32)

    own, bracket, of_own = task(items)
    ascent = Ascent.of(bracket.project(first.select(items).map(lambda values: values.to(torch.float32))), options)
    leader: ObjectiveBound | None = None
    for step in range(options.steps + 1):
        with torch.enable_grad():
            duals = ascent.values
            current = one_pass(own.problem, bracket.between(duals), of_own, duals, own.phases)
            # Each (item, row) has duals of its own, so the sum ascends all of them at once.
            total = current.lower.sum()
        leader = current.detached() if leader is None else better(leader, current)
        open_ = ~settled(leader.lower - 1e-5 * (1 + leader.lower.abs()), items)
        if step == options.steps or not bool(open_.any()) or expired() or not total.requires_grad:
            break
        ascent.step(total, bracket)
        if 2 * int(open_.sum()) <= len(items):
            gone, left = (~open_).nonzero().flatten(), open_.nonzero().flatten()
            yield items[gone], leader.duals.select(gone)
            items, ascent, leader = items[left], ascent.select(left), leader.select(left)
            own, bracket, of_own = task(items)
    assert leader is not None
    yield items, leader.duals


@torch.no_grad()
def climb_neurons(
    problem: Problem, earlier: Preactivations, start: NodeForms, steps: int, expired: Callable[[], bool]
) -> Tensor:
    """Computes the best lower bounds `(N, M)` of forms on deviations, with optimised slopes for each form.

    Args:
        problem: if rounding is counted, it has the sizes of all nodes up to the node of the forms.
        earlier: bounds of the ReLUs below that node.
        start: the forms.
    """
    light = Bounded(problem, earlier).single()
    bracket = Bracket.of(light.problem, light.bounds)
    count = start.form.shape[1]
    first = bracket.project(starting_duals(light, count, Duals()))
    if not first.slopes:
        return start.form.new_full(start.form.shape[:2], -torch.inf)
    ascent = Ascent.of(first, OptimiserOptions(slope_rate=0.2, decay=1.0))
    none = start.form.new_zeros(start.form.shape[:2], dtype=torch.float32)
    own_start = NodeForms(start.node, start.form.to(torch.float32), none)
    leader = ObjectiveBound(torch.full_like(none, -torch.inf), torch.zeros_like(none), {}, first)
    with fast_convolutions(problem.network):
        for step in range(steps):
            with torch.enable_grad():
                lines, duals = bracket.between(ascent.values), ascent.values
                value = input_form(light.problem, lines, own_start).lower(light.problem.inputs)
                total = value.sum()
            leader = better(leader, ObjectiveBound(value, leader.form, {}, duals))
            if step == steps - 1 or expired() or not total.requires_grad:
                break
            ascent.step(total, bracket)
    exact = Bracket.of(problem, earlier)
    lines = exact.between(exact.project(leader.duals))
    return input_form(problem, lines, start).lower(problem.inputs)


@contextmanager
def fast_convolutions(network: Network) -> Iterator[None]:
    """Switches oneDNN off if it is slower: float32 strided transposed convolutions of few channels on a CPU."""
    before = torch._C._get_mkldnn_enabled()
    kernels = [node.layer for node in network.nodes if isinstance(node.layer, Convolution)]
    slow = any(max(kernel.stride) > 1 and min(kernel.weight.shape[:2]) < _CHANNELS for kernel in kernels)
    torch._C._set_mkldnn_enabled(before and not slow)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@dataclass(eq=False)
class Ascent:
    """The state of Adam on duals, kept per item, so that items can leave."""

    values: Duals
    options: OptimiserOptions
    mean: Duals
    square: Duals
    steps: int = 0

    @classmethod
    def of(cls, values: Duals, options: OptimiserOptions) -> Ascent:
        """Starts at these duals."""
        return cls(values.map(_leaf), options, values.map(torch.zeros_like), values.map(torch.zeros_like))

    def select(self, items: Tensor) -> Ascent:
        values, mean, square = (d.select(items) for d in (self.values, self.mean, self.square))
        return Ascent(values.map(_leaf), self.options, mean, square, self.steps)

    @torch.no_grad()
    def step(self, total: Tensor, bracket: Bracket) -> None:
        """Takes one step that increases `total`, a sum over the items, and projects the duals onto their ranges."""
        kinds = self.values.kinds()
        leaves = [value for _, own in kinds for value in own.values()]
        gradients: Iterator[Tensor | None] = iter(torch.autograd.grad(total, leaves, allow_unused=True))
        decay = self.options.decay**self.steps
        self.steps += 1
        for (kind, own), (_, means), (_, squares) in zip(kinds, self.mean.kinds(), self.square.kinds(), strict=True):
            rate = decay * getattr(self.options, f"{kind}_rate")
            for relu, value in own.items():
                gradient = next(gradients)
                if gradient is None:
                    continue
                mean = means[relu].lerp_(gradient, 1 - _MEAN)
                square = squares[relu].mul_(_SQUARE).addcmul_(gradient, gradient, value=1 - _SQUARE)
                width = (square / (1 - _SQUARE**self.steps)).sqrt_().add_(1e-8)
                if kind == "slope" and relu in bracket.curved:
                    mean = mean * bracket.spread(relu)
                value.addcdiv_(mean, width, value=rate / (1 - _MEAN**self.steps))
        self.values = bracket.project(self.values).map(_leaf)


def _leaf(values: Tensor) -> Tensor:
    return values.detach().clone().requires_grad_()
