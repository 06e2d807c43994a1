"""A network of undecided neurons only.

Where bounds decide a ReLU it is linear, so it can be multiplied into the matrices around it. What is left, for a set
whose bounds are known, reads the input and the undecided neurons below: some hundred numbers instead of some
thousand, and dense products instead of convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from stbp_milp.bounds.duals import Duals
from stbp_milp.bounds.interrupt import ask
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.problem import Preactivations, Problem
from stbp_milp.bounds.rounding import Values, derived
from stbp_milp.network.dense import DenseStage, dense_network
from stbp_milp.network.normal_form import Stage


@dataclass(frozen=True, eq=False)
class Folded:
    """The network of undecided neurons on the problem's sets.

    Attributes:
        neurons: of every ReLU of the old network that has any: its node in the new one, and which neurons are left.
        ideal: which of the old network's ideal neurons are left, by the old ReLU.
    """

    problem: Problem
    neurons: dict[int, tuple[int, Tensor]]
    ideal: dict[int, Tensor]

    def bounds(self, old: Preactivations) -> dict[int, Interval]:
        """Bounds of the old network's ReLUs, of those that are left."""
        return {
            node: Interval(old[relu].lower.flatten(1)[:, at], old[relu].upper.flatten(1)[:, at])
            for relu, (node, at) in self.neurons.items()
        }

    def duals(self, old: Duals) -> Duals:
        """Duals without multipliers, of the neurons that are left."""
        slopes = {n: old.slopes[r].flatten(2)[..., at] for r, (n, at) in self.neurons.items() if r in old.slopes}
        shares = {self.neurons[r][0]: old.shares[r][:, :, kept] for r, kept in self.ideal.items() if r in old.shares}
        return Duals(slopes, {}, shares)


def fold(
    problem: Problem,
    stages: Sequence[Stage],
    bounds: Preactivations,
    most_entries: int,
    expired: Callable[[], bool] = lambda: False,
) -> Folded | None:
    """Fold what is decided in every item; None where the matrices would have more than `most_entries`.

    Args:
        stages: normal form of the problem's network.
        bounds: of the operand of every ReLU, each `(N, *shape)`, on the problem's sets.

    Raises:
        OutOfTimeError: the time was over before the end.
    """
    left: dict[int, np.ndarray] = {}
    relus = [stage.relu for stage in stages if stage.relu is not None]
    order = {0: 0}
    for relu in relus:
        # Undecided in some item, or decided differently in two.
        both = (bounds[relu].lower < 0).any(0) & (bounds[relu].upper > 0).any(0)
        at = both.flatten().nonzero().flatten().cpu().numpy()
        if len(at):
            left[relu], order[relu] = at, len(order)
    inputs = problem.clean[0][0].numel()
    counts = np.array([inputs, *(len(at) for at in left.values()), stages[-1].bias.size])
    if sum(int(count * counts[: i + 1].sum()) for i, count in enumerate(counts[1:])) > most_entries:
        return None
    # Every source of the old network as an affine function of the input and of what is left.
    known: dict[int, dict[int, sp.csr_matrix]] = {0: {0: sp.identity(inputs, format="csr")}}
    sources = {0: _flat(problem.clean[0][:1])}  # the clean values of what is left
    # What the terms of every source, and of every operand, add up to in magnitude on the sets.
    reach = {0: np.maximum(*(_largest(side) for side in problem.inputs.hull()))}
    sizes: dict[int | None, np.ndarray] = {}
    dense = []
    for stage in stages:
        terms: dict[int, sp.csr_matrix] = {}
        for source, weight in stage.weights.items():
            for basis, matrix in known[source].items():
                ask(expired)
                product = (weight @ matrix).tocsr()
                terms[basis] = terms[basis] + product if basis in terms else product
        sizes[stage.relu] = stage.sizes(reach)
        clean = _flat(problem.clean[problem.network.operand(stage.relu)][:1])
        if stage.relu is None:
            dense.append(_dense(terms, clean, sources, order))
            break
        at = left.get(stage.relu, np.zeros(0, dtype=np.int64))
        if len(at):
            rows = {basis: matrix[at] for basis, matrix in terms.items()}
            dense.append(_dense(rows, clean[at], sources, order))
            sources[stage.relu] = np.maximum(clean[at], 0.0)
        active = (bounds[stage.relu].lower >= 0).flatten(1).all(0).cpu().numpy().astype(float)
        active[at] = 0.0
        linear = sp.diags(active, format="csr")
        reach[stage.relu] = active * sizes[stage.relu]
        reach[stage.relu][at] = np.maximum(_largest(bounds[stage.relu].upper)[at], 0.0)
        known[stage.relu] = {basis: (linear @ matrix).tocsr() for basis, matrix in terms.items()}
        if len(at):
            ones = (np.ones(len(at)), (at, np.arange(len(at))))
            known[stage.relu][stage.relu] = sp.csr_matrix(ones, shape=(clean.size, len(at)))
    network, positions = dense_network(problem.network.input_shape, dense)
    network = network.to(problem.device)
    neurons = {relu: (positions[order[relu]], torch.from_numpy(at).to(problem.device)) for relu, at in left.items()}
    kept = {
        relu: torch.isin(ideal.neurons, neurons[relu][1]).nonzero().flatten()
        for relu, ideal in problem.ideal.items()
        if relu in neurons
    }
    ideal = {
        neurons[relu][0]: problem.ideal[relu].rows(
            at, torch.searchsorted(neurons[relu][1], problem.ideal[relu].neurons[at])
        )
        for relu, at in kept.items()
    }
    assert problem.rounding is not None
    values: dict[int, Values] = {0: (problem.clean[0], problem.rounding.errors[0])}
    composed: dict[int, Tensor] = {}
    outputs = np.arange(stages[-1].bias.size)
    ends: list[tuple[int | None, int | None, np.ndarray]] = [(r, neurons[r][0], own) for r, own in left.items()]
    for old_relu, new_relu, own in [*ends, (None, None, outputs)]:
        old, new = problem.network.operand(old_relu), network.operand(new_relu)
        at_clean, error = (x[old].flatten(1)[:, own] for x in (problem.clean, problem.rounding.errors))
        values[new] = at_clean, error
        composed[new] = torch.from_numpy(sizes[old_relu][own]).to(problem.device).unsqueeze(0)
    all_clean, rounding = derived(network, problem.rounding, values, composed)
    return Folded(replace(problem, network=network, clean=all_clean, rounding=rounding, ideal=ideal), neurons, kept)


def _largest(values: Tensor) -> np.ndarray:
    """The largest magnitude of every neuron in any item, flat."""
    return np.asarray(values.abs().amax(0).flatten().cpu().numpy())


def _dense(
    terms: dict[int, sp.csr_matrix], clean: np.ndarray, sources: dict[int, np.ndarray], order: dict[int, int]
) -> DenseStage:
    """With the bias that gives the clean value at the clean values of its sources."""
    weights = {order[basis]: torch.from_numpy(matrix.toarray()) for basis, matrix in terms.items()}
    bias = clean - sum(matrix @ sources[basis] for basis, matrix in terms.items())
    return DenseStage(weights, torch.from_numpy(bias))


def _flat(values: Tensor) -> np.ndarray:
    return np.asarray(values.flatten().cpu().numpy())
