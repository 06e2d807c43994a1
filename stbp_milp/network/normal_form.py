"""A network as sparse affine maps between ReLUs: what programs and small sub-networks are built from.

A *source* is the input (node 0) or the output of a ReLU. Every ReLU's operand, and the network's output, is an
affine function of sources; composing the layers' matrices along the graph gives it explicitly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch

from stbp_milp.errors import OutOfTimeError, UnsupportedLayerError
from stbp_milp.memory import ask_memory
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import Layer, Linear, ReLU
from stbp_milp.network.operations import apply, matrix, products, reads

_ENTRY = 12  # bytes of a sparse matrix: value and index


@dataclass(frozen=True, eq=False)
class AffineMap:
    """`z = sum_s weights[s] @ x_s + bias`, flat, in float64.

    `relu` is the position of the ReLU node that reads z, or None for the network's output. Where entries of a matrix
    are sums that can have cancelled, `magnitudes` holds the sums of their terms' magnitudes: they are rounded relative
    to those, and the bias to `bias_magnitude`.
    """

    relu: int | None
    weights: dict[int, sp.csr_matrix]  # source node position -> (n, size of the source)
    bias: np.ndarray  # (n,)
    magnitudes: dict[int, sp.csr_matrix] = field(default_factory=dict)
    bias_magnitude: np.ndarray | None = None

    def magnitude(self, source: int) -> sp.csr_matrix:
        return self.magnitudes[source] if source in self.magnitudes else abs(self.weights[source])

    @property
    def bias_size(self) -> np.ndarray:
        return np.abs(self.bias) if self.bias_magnitude is None else self.bias_magnitude

    def sizes(self, reach: Mapping[int, np.ndarray]) -> np.ndarray:
        """What the terms of every row add up to in magnitude, `(n,)`, for sources of at most these magnitudes."""
        return sum((self.magnitude(source) @ reach[source] for source in self.weights), self.bias_size)


def normal_form(network: Network, expired: Callable[[], bool] = lambda: False) -> tuple[AffineMap, ...]:
    """One map per ReLU in topological order, then the output's.

    Raises:
        OutOfTimeError: the time was over before the end.
        UnsupportedLayerError: the network has smooth functions or products.
    """
    _check_piecewise_linear(network)
    double = network.to(torch.float64).to(torch.device("cpu"))
    composed: dict[int, dict[int, _Composed]] = {}
    offsets: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # and their magnitudes
    maps: list[AffineMap] = []

    def affine(relu: int | None, node: int) -> AffineMap:
        weights = {source: own.matrix for source, own in composed[node].items()}
        magnitudes = {source: own.magnitude for source, own in composed[node].items() if own.magnitude is not None}
        return AffineMap(relu, weights, offsets[node][0], magnitudes, offsets[node][1])

    for position, node in enumerate(double.nodes):
        if expired():
            raise OutOfTimeError("the time is over")
        size = int(np.prod(node.shape))
        if position == 0 or isinstance(node.layer, ReLU):
            if position:
                maps.append(affine(position, node.inputs[0]))
            composed[position] = {position: _Composed(sp.identity(size, format="csr"))}
            offsets[position] = np.zeros(size), np.zeros(size)
            continue
        # The constant part is the layer applied to the operands' constants: no rule of its own.
        constants = [torch.from_numpy(offsets[i][0]).reshape(1, *double.nodes[i].shape) for i in node.inputs]
        constant = apply(node.layer, constants).reshape(-1).numpy()
        own_constant = apply(node.layer, [torch.zeros_like(c) for c in constants]).reshape(-1).numpy()
        size_of_constant = np.abs(own_constant)
        # The layer's matrix, its product with what came before, and their magnitudes.
        ask_memory(4 * _ENTRY * products(node.layer, node.shape))
        combined: dict[int, _Composed] = {}
        for operand, i in enumerate(node.inputs):
            if not reads(node.layer, operand):
                continue
            own = _Composed(matrix(node.layer, operand, double.nodes[i].shape, node.shape), _magnitude(node.layer))
            size_of_constant = size_of_constant + own.size() @ offsets[i][1]
            for source, earlier in composed[i].items():
                product = earlier.then(own)
                combined[source] = combined[source].plus(product) if source in combined else product
        composed[position] = combined
        offsets[position] = constant, size_of_constant
    maps.append(affine(None, len(double.nodes) - 1))
    return tuple(maps)


def _check_piecewise_linear(network: Network) -> None:
    if not network.is_piecewise_linear:
        curved = next(network.nodes[i] for i in network.nonlinear if i not in network.relus)
        raise UnsupportedLayerError(
            f"node {curved.name!r} is a smooth function or a product, so the network cannot be written as matrices "
            "between ReLUs; expected a network whose only nonlinear layers are piecewise linear"
        )


@dataclass(frozen=True, eq=False)
class _Composed:
    """A product of matrices, and what its entries' terms add up to in magnitude; None where each has one term."""

    matrix: sp.csr_matrix
    magnitude: sp.csr_matrix | None = None

    def then(self, own: _Composed) -> _Composed:
        single = np.diff(own.matrix.indptr).max(initial=0) <= 1 or _most_in_a_column(self.matrix) <= 1
        product = (own.matrix @ self.matrix).tocsr()
        if single and self.magnitude is None and own.magnitude is None:
            return _Composed(product)
        return _Composed(product, (own.size() @ self.size()).tocsr())

    def plus(self, other: _Composed) -> _Composed:
        return _Composed((self.matrix + other.matrix).tocsr(), (self.size() + other.size()).tocsr())

    def size(self) -> sp.csr_matrix:
        return abs(self.matrix) if self.magnitude is None else self.magnitude


def _magnitude(layer: Layer) -> sp.csr_matrix | None:
    if isinstance(layer, Linear) and layer.magnitude is not None:
        return sp.csr_matrix(layer.magnitude.numpy())
    return None


def _most_in_a_column(matrix: sp.csr_matrix) -> int:
    return int(np.bincount(matrix.indices, minlength=1).max())
