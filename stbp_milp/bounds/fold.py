"""Folding: a network that consists of unstable neurons only.

A ReLU that is decided by its bounds is linear and can be multiplied into the matrices around it. What is left, for a
set whose bounds are known, reads the input and the unstable neurons below: some hundred numbers instead of some
thousand, with dense products instead of convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from stbp_milp.bounds.duals import Duals
from stbp_milp.bounds.ideal import IdealNeurons
from stbp_milp.bounds.interrupt import ask
from stbp_milp.bounds.interval import Interval
from stbp_milp.bounds.problem import Preactivations, Problem
from stbp_milp.bounds.rounding import Values, derived
from stbp_milp.network.dense import DenseMap, dense_network
from stbp_milp.network.graph import Network
from stbp_milp.network.normal_form import AffineMap


@dataclass(frozen=True, eq=False)
class Folded:
    """The network of unstable neurons on the problem's sets.

    Attributes:
        neurons: per ReLU of the old network with neurons left: its node in the new network, and those neurons.
        ideal: per ReLU of the old network, which of its ideal neurons are left.
    """

    problem: Problem
    neurons: dict[int, tuple[int, Tensor]]
    ideal: dict[int, Tensor]

    def bounds(self, old: Preactivations) -> dict[int, Interval]:
        """Selects the bounds of the neurons that are left."""
        return {
            node: Interval(old[relu].lower.flatten(1)[:, at], old[relu].upper.flatten(1)[:, at])
            for relu, (node, at) in self.neurons.items()
        }

    def duals(self, old: Duals) -> Duals:
        """Selects the duals of the neurons that are left, without multipliers."""
        slopes = {n: old.slopes[r].flatten(2)[..., at] for r, (n, at) in self.neurons.items() if r in old.slopes}
        shares = {self.neurons[r][0]: old.shares[r][:, :, kept] for r, kept in self.ideal.items() if r in old.shares}
        return Duals(slopes, {}, shares)


def fold(
    problem: Problem,
    maps: Sequence[AffineMap],
    bounds: Preactivations,
    most_entries: int,
    expired: Callable[[], bool] = lambda: False,
) -> Folded | None:
    """Folds neurons that are decided in every item; returns None if the matrices would exceed `most_entries`.

    Args:
        maps: the normal form of the problem's network.
        bounds: bounds of all pre-activations, each `(N, *shape)`, on the problem's sets.

    Raises:
        OutOfTimeError: time ran out before the end.
    """
    left = _undecided(maps, bounds)
    inputs, outputs = problem.clean[0][0].numel(), maps[-1].bias.size
    counts = np.array([inputs, *(len(at) for at in left.values()), outputs])
    if sum(int(count * counts[: i + 1].sum()) for i, count in enumerate(counts[1:])) > most_entries:
        return None
    folding = _Folding.of(problem, bounds, left)
    for affine in maps:
        folding.pass_through(affine, expired)
    network, positions = dense_network(problem.network.input_shape, folding.dense)
    network = network.to(problem.device)
    neurons = {
        relu: (positions[folding.order[relu]], torch.from_numpy(at).to(problem.device)) for relu, at in left.items()
    }
    values, composed = folding.known_values(network, neurons, np.arange(outputs))
    assert problem.rounding is not None
    clean, rounding = derived(network, problem.rounding, values, composed)
    ideal, kept = _ideal(problem, neurons)
    return Folded(replace(problem, network=network, clean=clean, rounding=rounding, ideal=ideal), neurons, kept)


def _undecided(maps: Sequence[AffineMap], bounds: Preactivations) -> dict[int, np.ndarray]:
    """Returns, per ReLU, flat positions of neurons that some item leaves undecided or that items decide differently."""
    left = {}
    for relu in (affine.relu for affine in maps if affine.relu is not None):
        both = (bounds[relu].lower < 0).any(0) & (bounds[relu].upper > 0).any(0)
        at = both.flatten().nonzero().flatten().cpu().numpy()
        if len(at):
            left[relu] = at
    return left


def _ideal(
    problem: Problem, neurons: dict[int, tuple[int, Tensor]]
) -> tuple[dict[int, IdealNeurons], dict[int, Tensor]]:
    """Returns the ideal neurons that are left, per new ReLU, and which of the old ones they are, per old ReLU."""
    ideal, kept = {}, {}
    for relu, old in problem.ideal.items():
        if relu in neurons:
            node, own = neurons[relu]
            kept[relu] = torch.isin(old.neurons, own).nonzero().flatten()
            ideal[node] = old.rows(kept[relu], torch.searchsorted(own, old.neurons[kept[relu]]))
    return ideal, kept


@dataclass(eq=False, kw_only=True)
class _Folding:
    """The sources of the old network as affine functions of the input and of the neurons that are left.

    Attributes:
        left: the neurons that are left, per ReLU.
        order: positions of the sources in the new network: of the input and of the ReLUs that have neurons left.
        known: the matrices of every source, by the source that they read.
        sources: clean values of the neurons that are left.
        reach: the sum of the magnitudes of every source's terms on the sets.
        sizes: the same for every operand.
        dense: the maps of the new network.
    """

    problem: Problem
    bounds: Preactivations
    left: dict[int, np.ndarray]
    order: dict[int, int]
    known: dict[int, dict[int, sp.csr_matrix]]
    sources: dict[int, np.ndarray]
    reach: dict[int, np.ndarray]
    sizes: dict[int | None, np.ndarray] = field(default_factory=dict)
    dense: list[DenseMap] = field(default_factory=list)

    @classmethod
    def of(cls, problem: Problem, bounds: Preactivations, left: dict[int, np.ndarray]) -> _Folding:
        """Starts with only the input known."""
        return cls(
            problem=problem,
            bounds=bounds,
            left=left,
            order={source: place for place, source in enumerate((0, *left))},
            known={0: {0: sp.identity(problem.clean[0][0].numel(), format="csr")}},
            sources={0: _flat(problem.clean[0][:1])},
            reach={0: np.maximum(*(_largest(side) for side in problem.inputs.hull()))},
        )

    def pass_through(self, affine: AffineMap, expired: Callable[[], bool]) -> None:
        """Adds the rows that are left to the new network, and the output of the map's ReLU to what is known."""
        terms = self._terms(affine, expired)
        self.sizes[affine.relu] = affine.sizes(self.reach)
        clean = _flat(self.problem.clean[self.problem.network.operand(affine.relu)][:1])
        if affine.relu is None:
            self.dense.append(_dense(terms, clean, self.sources, self.order))
            return
        relu, own = affine.relu, self.bounds[affine.relu]
        at = self.left.get(relu, np.zeros(0, dtype=np.int64))
        if len(at):
            rows = {basis: matrix[at] for basis, matrix in terms.items()}
            self.dense.append(_dense(rows, clean[at], self.sources, self.order))
            self.sources[relu] = np.maximum(clean[at], 0.0)
        active = (own.lower >= 0).flatten(1).all(0).cpu().numpy().astype(float)
        active[at] = 0.0
        linear = sp.diags(active, format="csr")
        self.reach[relu] = active * self.sizes[relu]
        self.reach[relu][at] = np.maximum(_largest(own.upper)[at], 0.0)
        self.known[relu] = {basis: (linear @ matrix).tocsr() for basis, matrix in terms.items()}
        if len(at):
            ones = (np.ones(len(at)), (at, np.arange(len(at))))
            self.known[relu][relu] = sp.csr_matrix(ones, shape=(clean.size, len(at)))

    def _terms(self, affine: AffineMap, expired: Callable[[], bool]) -> dict[int, sp.csr_matrix]:
        """Returns the map's value as a function of the input and of what is left: matrices by source."""
        terms: dict[int, sp.csr_matrix] = {}
        for source, weight in affine.weights.items():
            for basis, matrix in self.known[source].items():
                ask(expired)
                product = (weight @ matrix).tocsr()
                terms[basis] = terms[basis] + product if basis in terms else product
        return terms

    def known_values(
        self, network: Network, neurons: dict[int, tuple[int, Tensor]], outputs: np.ndarray
    ) -> tuple[dict[int, Values], dict[int, Tensor]]:
        """Returns clean values with their errors, and sizes of the composed rows, by node of the new network."""
        rounding = self.problem.rounding
        assert rounding is not None
        values: dict[int, Values] = {0: (self.problem.clean[0], rounding.errors[0])}
        composed: dict[int, Tensor] = {}
        ends: list[tuple[int | None, int | None, np.ndarray]] = [
            *((relu, neurons[relu][0], own) for relu, own in self.left.items()),
            (None, None, outputs),
        ]
        for old_relu, new_relu, own in ends:
            old, new = self.problem.network.operand(old_relu), network.operand(new_relu)
            clean, error = (x[old].flatten(1)[:, own] for x in (self.problem.clean, rounding.errors))
            values[new] = clean, error
            composed[new] = torch.from_numpy(self.sizes[old_relu][own]).to(self.problem.device).unsqueeze(0)
        return values, composed


def _largest(values: Tensor) -> np.ndarray:
    """Returns the largest magnitude of every neuron in any item, flat."""
    return np.asarray(values.abs().amax(0).flatten().cpu().numpy())


def _dense(
    terms: dict[int, sp.csr_matrix], clean: np.ndarray, sources: dict[int, np.ndarray], order: dict[int, int]
) -> DenseMap:
    """Makes a dense map whose bias reproduces the clean value at the clean values of its sources."""
    weights = {order[basis]: torch.from_numpy(matrix.toarray()) for basis, matrix in terms.items()}
    bias = clean - sum(matrix @ sources[basis] for basis, matrix in terms.items())
    return DenseMap(weights, torch.from_numpy(bias))


def _flat(values: Tensor) -> np.ndarray:
    return np.asarray(values.flatten().cpu().numpy())
