"""Lower bounds of the property's forms by one backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stbp_milp.bounds.backward import FORMS_ALIVE, Split, input_form
from stbp_milp.bounds.duals import Bracket, Duals, Phases
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.problem import Preactivations, Problem, select_preactivations
from stbp_milp.bounds.relaxation import Relaxation


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

    def detached(self) -> ObjectiveBound:
        """Without a record of how it came about."""
        return ObjectiveBound(
            self.lower.detach(), self.form.detach(), {}, self.duals.map(lambda values: values.detach().clone())
        )

    def updated(self, items: Tensor, other: ObjectiveBound) -> ObjectiveBound:
        """This bound with the items at `items` replaced by `other`'s, whose lower bounds are never worse."""
        count = self.lower.shape[0]

        def place(old: Tensor | None, new: Tensor) -> Tensor:
            # A layer without undecided neurons has no slopes on one side: slopes of decided neurons do not matter.
            return (new.new_zeros(count, *new.shape[1:]) if old is None else old).index_copy(0, items, new)

        return ObjectiveBound(
            self.lower.index_copy(0, items, torch.maximum(self.lower[items], other.lower)),
            self.form.index_copy(0, items, other.form),
            {},
            self.duals.merge(other.duals, place),
        )


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
    problem = problem.sized(bounds, len(problem.network.nodes) - 1)
    affordable = forms_at_once(problem, memory_bytes)
    if record or problem.parts * rows.shape[-2] <= affordable:
        lines, own_duals = _prepared(problem, bounds, duals)
        return one_pass(problem, lines, rows, offset, own_duals, phases, {} if record else None)
    rows, offset = rows.expand(problem.parts, *rows.shape[-2:]), offset.expand(problem.parts, offset.shape[-1])
    items_at_once = max(1, affordable // rows.shape[1])
    lower = torch.full_like(offset, -torch.inf)
    form = lower.new_zeros(*lower.shape, *problem.network.input_shape)
    for items in torch.split(torch.arange(problem.parts, device=problem.device), items_at_once):
        part, own, signs = chosen(problem, bounds, phases, items)
        bracket = Bracket.of(part, own)
        for at in torch.split(torch.arange(rows.shape[1], device=problem.device), affordable):
            if expired():
                break
            forms = rows[items][:, at], offset[items][:, at]
            few = bracket.project(duals.select(items).rows(at))
            found = one_pass(part, bracket.between(few), *forms, few, signs)
            lower[items.unsqueeze(1), at], form[items.unsqueeze(1), at] = found.lower, found.form
    return ObjectiveBound(lower, form, {}, duals)


@torch.no_grad()
def bound_splits(
    problem: Problem,
    bounds: Preactivations,
    rows: Tensor,
    offset: Tensor,
    duals: Duals,
    phases: Phases,
    relu: Tensor,
    neuron: Tensor,
) -> Tensor:
    """What a form's bound becomes when one neuron's phase is known, with the same duals: `(2, N, C)`.

    Args:
        rows, offset: one form an item, `(N, 1, K)`, `(N, 1)`.
        relu, neuron: candidates, `(N, C)`: node position and flat position of the neuron.

    The first half of the result is for the neuron active, the second for it inactive.
    """
    count = relu.shape[1]
    sign = offset.new_ones(problem.parts, 2 * count)
    sign[:, count:] = -1.0
    split = Split(relu.repeat(1, 2), neuron.repeat(1, 2), sign)
    forms = rows.expand(-1, 2 * count, -1)
    problem = problem.sized(bounds, len(problem.network.nodes) - 1)
    lines, duals = _prepared(problem, bounds, duals)
    lower = one_pass(problem, lines, forms, offset, duals, phases, split=split).lower
    return lower.view(problem.parts, 2, count).transpose(0, 1)


def _prepared(problem: Problem, bounds: Preactivations, duals: Duals) -> tuple[dict[int, Relaxation], Duals]:
    bracket = Bracket.of(problem, bounds)
    own = bracket.project(duals)
    return bracket.between(own), own


def forms_at_once(problem: Problem, memory_bytes: int) -> int:
    """How many forms a backward pass affords: it holds a few copies of each on the largest layer."""
    largest = max(math.prod(node.shape) for node in problem.network.nodes)
    return max(1, memory_bytes // (FORMS_ALIVE * largest * problem.clean[0].element_size()))


def chosen(
    problem: Problem, bounds: Preactivations, phases: Phases, items: Tensor
) -> tuple[Problem, dict[int, Interval], dict[int, Tensor]]:
    return problem.select(items), select_preactivations(bounds, items), {k: v[items] for k, v in phases.items()}


def one_pass(
    problem: Problem,
    lines: dict[int, Relaxation],
    rows: Tensor,
    offset: Tensor,
    duals: Duals,
    phases: Phases,
    record: dict[int, Tensor] | None = None,
    split: Split | None = None,
) -> ObjectiveBound:
    """The bound that these relaxations and multipliers give; where rounding counts, with all sizes known."""
    multipliers = {relu: own * phases[relu].unsqueeze(1) for relu, own in duals.multipliers.items() if relu in phases}
    output = len(problem.network.nodes) - 1
    form = rows if rows.dim() == 3 else rows.expand(problem.parts, *rows.shape)
    back = input_form(problem, lines, output, form, multipliers, record, split=split)
    lower = back.lower(problem.inputs) + offset
    if problem.rounding is not None:
        lower = lower - problem.gamma * offset.abs()
    return ObjectiveBound(lower, back.form, record or {}, duals)


@torch.no_grad()
def better(old: ObjectiveBound, new: ObjectiveBound) -> ObjectiveBound:
    """Item by item and row by row the better of two bounds over the same duals, with its form and duals."""
    wins = new.lower > old.lower
    if not bool(wins.any()):
        return old

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(wins.view(*wins.shape, *[1] * (b.dim() - 2)), b, a).detach()

    return ObjectiveBound(
        torch.maximum(old.lower, new.lower).detach(),
        choose(old.form, new.form),
        {},
        old.duals.merge(new.duals, lambda a, b: b if a is None else choose(a, b)),
    )
