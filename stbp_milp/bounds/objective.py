"""Lower bounds of the property's forms: one backward pass, then slopes and multipliers by gradient.

Any slopes in [0, 1] and any multipliers >= 0 give a sound bound (alpha-CROWN, Xu et al. 2021; beta-CROWN, Wang et
al. 2021); Adam searches for good ones, the best bound seen counts, and the search stops once the sign is settled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stbp_milp.bounds.backward import input_form
from stbp_milp.bounds.problem import Preactivations, Problem
from stbp_milp.bounds.relaxation import adaptive_slope, relax


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


@dataclass(frozen=True, eq=False)
class ObjectiveBound:
    """Lower bounds of M forms on N sets.

    Attributes:
        lower: `(N, M)`.
        form: the linear form on the input that gave each bound, `(N, M, *input_shape)`: its minimiser is a candidate.
        relu_forms: the form on every ReLU's output, for branching scores, `(N, M, *shape)`.
        duals: slopes and multipliers of the bounds.
    """

    lower: Tensor
    form: Tensor
    relu_forms: dict[int, Tensor]
    duals: Duals

    def updated(self, items: Tensor, other: ObjectiveBound) -> ObjectiveBound:
        """This bound with the items at `items` replaced by `other`'s, whose lower bounds are never worse."""

        def put(a: Tensor, b: Tensor) -> Tensor:
            return a.index_copy(0, items, b)

        def merge(a: dict[int, Tensor], b: dict[int, Tensor]) -> dict[int, Tensor]:
            # A layer without undecided neurons has no slopes on one side: slopes of decided neurons do not matter.
            return {
                k: put(a[k] if k in a else v.new_zeros(self.lower.shape[0], *v.shape[1:]), v) for k, v in b.items()
            } | {k: v for k, v in a.items() if k not in b}

        return ObjectiveBound(
            put(self.lower, torch.maximum(self.lower[items], other.lower)),
            put(self.form, other.form),
            merge(self.relu_forms, other.relu_forms),
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
) -> ObjectiveBound:
    """One backward pass for the forms `rows @ output + offset`, adaptive slopes unless duals are given.

    Args:
        rows: (M, K) for all items, or (N, M, K).
        offset: (M,) or (N, M).
    """
    return _pass(problem, bounds, rows, offset, duals or Duals(), phases or {})


def optimise(
    problem: Problem,
    bounds: Preactivations,
    rows: Tensor,
    offset: Tensor,
    settled: Callable[[Tensor], Tensor],
    options: OptimiserOptions,
    duals: Duals | None = None,
    phases: Phases | None = None,
    expired: Callable[[], bool] = lambda: False,
) -> ObjectiveBound:
    """The best bounds that gradient ascent finds, starting from `duals`.

    Args:
        settled: `(N, M)` bounds -> `(N,)` bool; the ascent ends when all items are settled.
    """
    phases = phases or {}
    start = duals or Duals()
    best = bound_once(problem, bounds, rows, offset, start, phases)
    if bool(settled(best.lower).all()) or options.steps == 0:
        return best
    count, m = problem.parts, rows.shape[-2]
    slopes = {
        relu: start.slopes.get(relu, adaptive_slope(b).unsqueeze(1).expand(count, m, *b.lower.shape[1:]))
        .clone()
        .requires_grad_()
        for relu, b in bounds.items()
        if bool(((b.lower < 0) & (b.upper > 0)).any())
    }
    multipliers = {
        relu: start.multipliers.get(relu, sign.new_zeros(count, m, *sign.shape[1:])).clone().requires_grad_()
        for relu, sign in phases.items()
        if bool((sign != 0).any())
    }
    groups = [{"params": list(slopes.values()), "lr": options.slope_rate}]
    if multipliers:
        groups.append({"params": list(multipliers.values()), "lr": options.multiplier_rate})
    if not slopes and not multipliers:
        return best
    # Written out, so that an item that no step improves keeps the duals its bound came from.
    best = replace(best, duals=Duals(*({k: v.detach().clone() for k, v in d.items()} for d in (slopes, multipliers))))
    adam = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, options.decay)
    for _ in range(options.steps):
        adam.zero_grad()
        current = _pass(problem, bounds, rows, offset, Duals(slopes, multipliers), phases)
        best = _better(best, current)
        if bool(settled(best.lower).all()) or expired():
            return best
        # Each (item, row) has duals of its own, so the sum ascends all of them at once.
        (-current.lower.sum()).backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
        with torch.no_grad():
            for slope in slopes.values():
                slope.clamp_(0.0, 1.0)
            for multiplier in multipliers.values():
                multiplier.clamp_(min=0.0)
    return _better(best, bound_once(problem, bounds, rows, offset, Duals(slopes, multipliers), phases))


def _pass(
    problem: Problem, bounds: Preactivations, rows: Tensor, offset: Tensor, duals: Duals, phases: Phases
) -> ObjectiveBound:
    nodes, clean = problem.network.nodes, problem.clean
    relaxations = {relu: relax(b, clean[nodes[relu].inputs[0]], duals.slopes.get(relu)) for relu, b in bounds.items()}
    multipliers = {
        relu: duals.multipliers[relu] * phases[relu].unsqueeze(1) for relu in duals.multipliers if relu in phases
    }
    output = len(nodes) - 1
    form = rows if rows.dim() == 3 else rows.expand(problem.parts, *rows.shape)
    record: dict[int, Tensor] = {}
    back = input_form(problem.network, clean, relaxations, output, form, multipliers, record)
    return ObjectiveBound(back.lower(problem.inputs) + offset, back.form, record, duals)


@torch.no_grad()
def _better(old: ObjectiveBound, new: ObjectiveBound) -> ObjectiveBound:
    """Item by item and row by row the better of two bounds, with its form and duals."""
    wins = new.lower > old.lower
    if not bool(wins.any()):
        return old

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(wins.view(*wins.shape, *[1] * (b.dim() - 2)), b.detach(), a)

    def merge(a: Mapping[int, Tensor], b: Mapping[int, Tensor]) -> dict[int, Tensor]:
        return {k: choose(a[k], v) if k in a else v.detach().clone() for k, v in b.items()}

    return ObjectiveBound(
        torch.maximum(old.lower, new.lower.detach()),
        choose(old.form, new.form),
        {k: choose(old.relu_forms[k], v) for k, v in new.relu_forms.items()},
        Duals(merge(old.duals.slopes, new.duals.slopes), merge(old.duals.multipliers, new.duals.multipliers)),
    )
