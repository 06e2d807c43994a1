"""Lower bounds of the property's forms by one backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stbp_milp.bounds.backward import FORMS_ALIVE, NodeForms, Split, input_form
from stbp_milp.bounds.bounded import Bounded, Forms, Phases
from stbp_milp.bounds.duals import Bracket, Duals
from stbp_milp.bounds.problem import Problem, Relaxed


@dataclass(frozen=True, eq=False)
class ObjectiveBound:
    """Lower bounds of M forms on N sets.

    Attributes:
        lower: `(N, M)`.
        form: the linear form on the input that gave each bound, `(N, M, *input_shape)`; its minimiser is a candidate.
        relu_forms: the form on every ReLU's output, for branching scores, `(N, M, *shape)`; empty unless asked for.
        duals: the dual variables of the bounds.
    """

    lower: Tensor
    form: Tensor
    relu_forms: dict[int, Tensor]
    duals: Duals

    def select(self, items: Tensor) -> ObjectiveBound:
        forms = {k: v[items] for k, v in self.relu_forms.items()}
        return ObjectiveBound(self.lower[items], self.form[items], forms, self.duals.select(items))

    def detached(self) -> ObjectiveBound:
        """Returns the bound without its autograd history."""
        return ObjectiveBound(
            self.lower.detach(), self.form.detach(), {}, self.duals.map(lambda values: values.detach().clone())
        )

    def updated(self, items: Tensor, other: ObjectiveBound) -> ObjectiveBound:
        """Returns this bound with the items at `items` taken from `other`; their lower bounds never get worse."""
        count = self.lower.shape[0]

        def place(old: Tensor | None, new: Tensor) -> Tensor:
            # One side has no slopes for a layer without undecided neurons, where slopes do not matter.
            return (new.new_zeros(count, *new.shape[1:]) if old is None else old).index_copy(0, items, new)

        return ObjectiveBound(
            self.lower.index_copy(0, items, torch.maximum(self.lower[items], other.lower)),
            self.form.index_copy(0, items, other.form),
            {},
            self.duals.merge(other.duals, place),
        )


@torch.no_grad()
def bound_once(
    bounded: Bounded,
    forms: Forms,
    duals: Duals | None = None,
    *,
    record: bool = False,
    memory_bytes: int = 1 << 30,
    expired: Callable[[], bool] = lambda: False,
) -> ObjectiveBound:
    """Bounds the forms by one backward pass, with adaptive slopes unless duals are given.

    Args:
        record: keep the forms on ReLUs, for branching scores.
        memory_bytes: memory for the forms; unless they are recorded, forms beyond it are bounded in several parts.
        expired: parts that are not reached in time have no bound (minus infinity).
    """
    duals, bounded = duals or Duals(), _sized(bounded)
    problem = bounded.problem
    affordable = forms_at_once(problem, memory_bytes)
    if record or problem.parts * forms.count <= affordable:
        lines, own_duals = _prepared(bounded, duals)
        return one_pass(problem, lines, forms, own_duals, bounded.phases, {} if record else None)
    forms = forms.each(problem.parts)
    items_at_once = max(1, affordable // forms.count)
    lower = torch.full_like(forms.offset, -torch.inf)
    form = lower.new_zeros(*lower.shape, *problem.network.input_shape)
    for items in torch.split(torch.arange(problem.parts, device=problem.device), items_at_once):
        part, of_part = bounded.select(items), forms.select(items)
        bracket = Bracket.of(part.problem, part.bounds)
        for at in torch.split(torch.arange(forms.count, device=problem.device), affordable):
            if expired():
                break
            few = bracket.project(duals.select(items).rows(at))
            found = one_pass(part.problem, bracket.between(few), of_part.columns(at), few, part.phases)
            lower[items.unsqueeze(1), at], form[items.unsqueeze(1), at] = found.lower, found.form
    return ObjectiveBound(lower, form, {}, duals)


@torch.no_grad()
def bound_splits(bounded: Bounded, forms: Forms, duals: Duals, relu: Tensor, neuron: Tensor) -> Tensor:
    """Bounds the forms after splitting one neuron, with the same duals: `(2, N, C)`.

    The first half of the result holds the bounds for an active neuron, the second those for an inactive one.

    Args:
        forms: one form per item, `(N, 1, K)`.
        relu, neuron: the candidates, `(N, C)`: node position and flat position of the neuron.
    """
    count = relu.shape[1]
    bounded = _sized(bounded)
    sign = forms.offset.new_ones(bounded.problem.parts, 2 * count)
    sign[:, count:] = -1.0
    split = Split(relu.repeat(1, 2), neuron.repeat(1, 2), sign)
    repeated = Forms(forms.rows.expand(-1, 2 * count, -1), forms.offset)
    lines, duals = _prepared(bounded, duals)
    lower = one_pass(bounded.problem, lines, repeated, duals, bounded.phases, split=split).lower
    return lower.view(bounded.problem.parts, 2, count).transpose(0, 1)


def _sized(bounded: Bounded) -> Bounded:
    problem = bounded.problem
    return replace(bounded, problem=problem.sized(bounded.bounds, len(problem.network.nodes) - 1))


def _prepared(bounded: Bounded, duals: Duals) -> tuple[dict[int, Relaxed], Duals]:
    bracket = Bracket.of(bounded.problem, bounded.bounds)
    own = bracket.project(duals)
    return bracket.between(own), own


def forms_at_once(problem: Problem, memory_bytes: int) -> int:
    """Returns how many forms a backward pass can hold, with a few copies of each on the largest layer."""
    largest = max(math.prod(node.shape) for node in problem.network.nodes)
    return max(1, memory_bytes // (FORMS_ALIVE * largest * problem.clean[0].element_size()))


def one_pass(
    problem: Problem,
    lines: dict[int, Relaxed],
    forms: Forms,
    duals: Duals,
    phases: Phases,
    record: dict[int, Tensor] | None = None,
    split: Split | None = None,
) -> ObjectiveBound:
    """Computes the bound for given relaxations and multipliers; if rounding is counted, all sizes must be known."""
    multipliers = {relu: own * phases[relu].unsqueeze(1) for relu, own in duals.multipliers.items() if relu in phases}
    rows = forms.rows if forms.rows.dim() == 3 else forms.rows.expand(problem.parts, *forms.rows.shape)
    start = NodeForms(len(problem.network.nodes) - 1, rows)
    back = input_form(problem, lines, start, multipliers, record, split)
    lower = back.lower(problem.inputs) + forms.offset
    if problem.rounding is not None:
        lower = lower - problem.gamma * forms.offset.abs()
    return ObjectiveBound(lower, back.form, record or {}, duals)


@torch.no_grad()
def better(old: ObjectiveBound, new: ObjectiveBound) -> ObjectiveBound:
    """Returns, per item and row, the better of two bounds, with its form and duals."""
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
