"""Lower bounds of the property's forms: one backward pass, then slopes and multipliers by gradient.

Any slopes in [0, 1] and any multipliers >= 0 give a sound bound (alpha-CROWN, Xu et al. 2021; beta-CROWN, Wang et
al. 2021); Adam searches for good ones, the best bound seen counts, and the search stops once the sign is settled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stbp_milp.bounds.backward import FORMS_ALIVE, input_form
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.problem import Preactivations, Problem, select_preactivations
from stbp_milp.bounds.relaxation import Relaxation, adaptive_slope, relax

_MEAN, _SQUARE = 0.9, 0.999  # Adam's moments


@dataclass(frozen=True, eq=False)
class Duals:
    """Where the optimisation of a bound stands.

    Attributes:
        slopes: lower slopes, by ReLU node, `(N, M, *shape)` in [0, 1].
        multipliers: of the split neurons, `(N, M, *shape)`, >= 0.
    """

    slopes: dict[int, Tensor] = field(default_factory=dict)
    multipliers: dict[int, Tensor] = field(default_factory=dict)

    def select(self, index: Tensor) -> Duals:
        return Duals({k: v[index] for k, v in self.slopes.items()}, {k: v[index] for k, v in self.multipliers.items()})

    def rows(self, index: Tensor) -> Duals:
        """Those of some forms."""
        own = ({k: v[:, index] for k, v in d.items()} for d in (self.slopes, self.multipliers))
        return Duals(*own)


@dataclass(frozen=True, eq=False)
class ObjectiveBound:
    """Lower bounds of M forms on N sets.

    Attributes:
        lower: `(N, M)`.
        form: the linear form on the input that gave each bound, `(N, M, *input_shape)`: its minimiser is a candidate.
        relu_forms: the form on every ReLU's output, for branching scores, `(N, M, *shape)`; empty unless asked for.
        duals: slopes and multipliers of the bounds.
    """

    lower: Tensor
    form: Tensor
    relu_forms: dict[int, Tensor]
    duals: Duals

    def select(self, items: Tensor) -> ObjectiveBound:
        forms = {k: v[items] for k, v in self.relu_forms.items()}
        return ObjectiveBound(self.lower[items], self.form[items], forms, self.duals.select(items))

    def updated(self, items: Tensor, other: ObjectiveBound) -> ObjectiveBound:
        """This bound with the items at `items` replaced by `other`'s, whose lower bounds are never worse."""
        count = self.lower.shape[0]

        def merge(a: dict[int, Tensor], b: dict[int, Tensor]) -> dict[int, Tensor]:
            # A layer without undecided neurons has no slopes on one side: slopes of decided neurons do not matter.
            return a | {k: a.get(k, v.new_zeros(count, *v.shape[1:])).index_copy(0, items, v) for k, v in b.items()}

        return ObjectiveBound(
            self.lower.index_copy(0, items, torch.maximum(self.lower[items], other.lower)),
            self.form.index_copy(0, items, other.form),
            {},
            Duals(merge(self.duals.slopes, other.duals.slopes), merge(self.duals.multipliers, other.duals.multipliers)),
        )


@dataclass(frozen=True)
class OptimiserOptions:
    """Adam on slopes and multipliers: steps, learning rates, and their decay a step."""

    steps: int = 20
    slope_rate: float = 0.25
    multiplier_rate: float = 0.1
    decay: float = 0.95


Phases = Mapping[int, Tensor]
"""By ReLU node: +1 where a split made the neuron active, -1 inactive, 0 undecided; `(N, *shape)`, the bounds' dtype."""


@torch.no_grad()
def bound_once(
    problem: Problem,
    bounds: Preactivations,
    rows: Tensor,
    offset: Tensor,
    duals: Duals | None = None,
    phases: Phases | None = None,
    record: bool = False,
    memory_bytes: int = 1 << 30,
    expired: Callable[[], bool] = lambda: False,
) -> ObjectiveBound:
    """One backward pass for the forms `rows @ output + offset`, adaptive slopes unless duals are given.

    Args:
        rows: (M, K) for all items, or (N, M, K).
        offset: (M,) or (N, M).
        record: keep the forms on ReLUs, for branching scores.
        memory_bytes: what the forms may take; without a record, more forms than that go one part after the other.
        expired: parts that time does not reach have no bound (minus infinity).
    """
    duals, phases = duals or Duals(), phases or {}
    affordable = forms_at_once(problem, memory_bytes)
    if record or problem.parts * rows.shape[-2] <= affordable:
        return _pass(problem, bounds, rows, offset, duals, phases, {} if record else None)
    rows, offset = rows.expand(problem.parts, *rows.shape[-2:]), offset.expand(problem.parts, offset.shape[-1])
    items_at_once = max(1, affordable // rows.shape[1])
    lower = torch.full_like(offset, -torch.inf)
    form = lower.new_zeros(*lower.shape, *problem.network.input_shape)
    for items in torch.split(torch.arange(problem.parts), items_at_once):
        part, own, signs = _chosen(problem, bounds, phases, items)
        lines = None if duals.slopes else _lines(part, own, duals)
        for at in torch.split(torch.arange(rows.shape[1]), affordable):
            if expired():
                break
            forms = rows[items][:, at], offset[items][:, at]
            found = _pass(part, own, *forms, duals.select(items).rows(at), signs, lines=lines)
            lower[items.unsqueeze(1), at], form[items.unsqueeze(1), at] = found.lower, found.form
    return ObjectiveBound(lower, form, {}, duals)


def forms_at_once(problem: Problem, memory_bytes: int) -> int:
    """How many forms a backward pass affords: it holds a few copies of each on the largest layer."""
    largest = max(math.prod(node.shape) for node in problem.network.nodes)
    return max(1, memory_bytes // (FORMS_ALIVE * largest * problem.clean[0].element_size()))


@torch.no_grad()
def optimise(
    problem: Problem,
    bounds: Preactivations,
    rows: Tensor,
    offset: Tensor,
    settled: Callable[[Tensor, Tensor], Tensor],
    options: OptimiserOptions,
    duals: Duals | None = None,
    phases: Phases | None = None,
    expired: Callable[[], bool] = lambda: False,
    memory_bytes: int = 1 << 30,
) -> ObjectiveBound:
    """The best bounds that gradient ascent finds, starting from `duals`.

    Args:
        memory_bytes: for the forms of the first bound.
        settled: bounds `(n, M)` of the items `(n,)` -> `(n,)` bool; settled items are not ascended any further.
    """
    phases = phases or {}
    start = duals or Duals()
    best = bound_once(problem, bounds, rows, offset, start, phases, memory_bytes=memory_bytes, expired=expired)
    everything = torch.arange(problem.parts)
    items = everything[~settled(best.lower, everything)]
    if not options.steps or not len(items) or expired():
        return best
    rows, offset = rows.expand(problem.parts, *rows.shape[-2:]), offset.expand(problem.parts, offset.shape[-1])
    ascent = _Ascent.of(problem, bounds, rows.shape[1], start, phases, options)
    if not ascent.values:
        return best
    # Written out, so that an item that no step improves keeps the duals its bound came from.
    best = replace(best, duals=ascent.duals().select(everything))
    ascent = ascent.select(items)
    part, own, signs = _chosen(problem, bounds, phases, items)
    leader = best.select(items)
    for step in range(options.steps + 1):
        with torch.enable_grad():
            current = _pass(part, own, rows[items], offset[items], ascent.duals(), signs)
            # Each (item, row) has duals of its own, so the sum ascends all of them at once.
            total = current.lower.sum()
        leader = _better(leader, current)
        open_ = ~settled(leader.lower, items)
        if step == options.steps or not bool(open_.any()) or expired():
            break
        ascent.step(torch.autograd.grad(total, list(ascent.values.values()), allow_unused=True))
        if 2 * int(open_.sum()) <= len(items):  # those that are settled leave the batch
            best = best.updated(items, leader)
            left = open_.nonzero().flatten()
            items, ascent, leader = items[left], ascent.select(left), leader.select(left)
            part, own, signs = _chosen(problem, bounds, phases, items)
    return best.updated(items, leader)


def _chosen(
    problem: Problem, bounds: Preactivations, phases: Phases, items: Tensor
) -> tuple[Problem, dict[int, Interval], dict[int, Tensor]]:
    return problem.select(items), select_preactivations(bounds, items), {k: v[items] for k, v in phases.items()}


@dataclass(eq=False)
class _Ascent:
    """Adam (Kingma, Ba 2015) on slopes and multipliers, item by item, so that items can leave.

    Keys are `("slope" | "multiplier", ReLU node)`.
    """

    values: dict[tuple[str, int], Tensor]
    options: OptimiserOptions
    mean: dict[tuple[str, int], Tensor]
    square: dict[tuple[str, int], Tensor]
    steps: int = 0

    @classmethod
    def of(
        cls, problem: Problem, bounds: Preactivations, m: int, start: Duals, phases: Phases, options: OptimiserOptions
    ) -> _Ascent:
        n = problem.parts
        values = {
            ("slope", relu): start.slopes.get(relu, adaptive_slope(b).unsqueeze(1).expand(n, m, *b.lower.shape[1:]))
            for relu, b in bounds.items()
            if bool(b.undecided.any())
        } | {
            ("multiplier", relu): start.multipliers.get(relu, sign.new_zeros(n, m, *sign.shape[1:]))
            for relu, sign in phases.items()
            if bool((sign != 0).any())
        }
        values = {key: value.detach().clone().requires_grad_() for key, value in values.items()}
        return cls(
            values,
            options,
            {k: torch.zeros_like(v) for k, v in values.items()},
            {k: torch.zeros_like(v) for k, v in values.items()},
        )

    def duals(self) -> Duals:
        return Duals(
            {relu: v for (kind, relu), v in self.values.items() if kind == "slope"},
            {relu: v for (kind, relu), v in self.values.items() if kind == "multiplier"},
        )

    def select(self, items: Tensor) -> _Ascent:
        values = {k: v.detach()[items].requires_grad_() for k, v in self.values.items()}
        mean, square = ({k: v[items] for k, v in d.items()} for d in (self.mean, self.square))
        return _Ascent(values, self.options, mean, square, self.steps)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None]) -> None:
        decay = self.options.decay**self.steps
        self.steps += 1
        for (key, value), gradient in zip(self.values.items(), gradients, strict=True):
            if gradient is None:
                continue
            mean = self.mean[key].lerp_(gradient, 1 - _MEAN)
            square = self.square[key].mul_(_SQUARE).addcmul_(gradient, gradient, value=1 - _SQUARE)
            rate = decay * (self.options.slope_rate if key[0] == "slope" else self.options.multiplier_rate)
            width = (square / (1 - _SQUARE**self.steps)).sqrt_().add_(1e-8)
            value.addcdiv_(mean, width, value=rate / (1 - _MEAN**self.steps))
            value.clamp_(0.0, 1.0 if key[0] == "slope" else None)


def _lines(problem: Problem, bounds: Preactivations, duals: Duals) -> dict[int, Relaxation]:
    nodes, clean = problem.network.nodes, problem.clean
    return {relu: relax(b, clean[nodes[relu].inputs[0]], duals.slopes.get(relu)) for relu, b in bounds.items()}


def _pass(
    problem: Problem,
    bounds: Preactivations,
    rows: Tensor,
    offset: Tensor,
    duals: Duals,
    phases: Phases,
    record: dict[int, Tensor] | None = None,
    lines: dict[int, Relaxation] | None = None,
) -> ObjectiveBound:
    nodes, clean = problem.network.nodes, problem.clean
    relaxations = _lines(problem, bounds, duals) if lines is None else lines
    multipliers = {
        relu: duals.multipliers[relu] * phases[relu].unsqueeze(1) for relu in duals.multipliers if relu in phases
    }
    output = len(nodes) - 1
    form = rows if rows.dim() == 3 else rows.expand(problem.parts, *rows.shape)
    back = input_form(problem.network, clean, relaxations, output, form, multipliers, record)
    return ObjectiveBound(back.lower(problem.inputs) + offset, back.form, record or {}, duals)


@torch.no_grad()
def _better(old: ObjectiveBound, new: ObjectiveBound) -> ObjectiveBound:
    """Item by item and row by row the better of two bounds over the same duals, with its form and duals."""
    wins = new.lower > old.lower
    if not bool(wins.any()):
        return old

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(wins.view(*wins.shape, *[1] * (b.dim() - 2)), b, a).detach()

    def merge(a: dict[int, Tensor], b: dict[int, Tensor]) -> dict[int, Tensor]:
        return {k: choose(a[k], v) for k, v in b.items()}

    return ObjectiveBound(
        torch.maximum(old.lower, new.lower).detach(),
        choose(old.form, new.form),
        {},
        Duals(merge(old.duals.slopes, new.duals.slopes), merge(old.duals.multipliers, new.duals.multipliers)),
    )
