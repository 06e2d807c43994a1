"""A network as sparse affine maps between ReLUs: what programs and small sub-networks are built from.

A *source* is the input (node 0) or the output of a ReLU. Every ReLU's operand, and the network's output, is an
affine function of sources; composing the layers' matrices along the graph gives it explicitly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from stbp_milp.errors import OutOfTimeError
from stbp_milp.network.graph import Network
from stbp_milp.network.layers import ReLU
from stbp_milp.network.operations import apply, matrix, reads


@dataclass(frozen=True, eq=False)
class Stage:
    """`z = sum_s weights[s] @ x_s + bias`, flat, in float64.

    `relu` is the position of the ReLU node that reads z, or None for the network's output.
    """

    relu: int | None
    weights: dict[int, sp.csr_matrix]  # source node position -> (n, size of the source)
    bias: np.ndarray  # (n,)


def normal_form(network: Network, expired: Callable[[], bool] = lambda: False) -> tuple[Stage, ...]:
    """One stage per ReLU in topological order, then the output's.

    Raises:
        OutOfTimeError: the time was over before the end.
    """
    double = network.to(torch.float64).to(torch.device("cpu"))
    maps: dict[int, dict[int, sp.csr_matrix]] = {}
    offsets: dict[int, np.ndarray] = {}
    stages: list[Stage] = []
    for position, node in enumerate(double.nodes):
        if expired():
            raise OutOfTimeError("the time is over")
        size = int(np.prod(node.shape))
        if position == 0 or isinstance(node.layer, ReLU):
            if position:
                operand = node.inputs[0]
                stages.append(Stage(position, maps[operand], offsets[operand]))
            maps[position] = {position: sp.identity(size, format="csr")}
            offsets[position] = np.zeros(size)
            continue
        # The constant part is the layer applied to the operands' constants: no rule of its own.
        constants = [torch.from_numpy(offsets[i]).reshape(1, *double.nodes[i].shape) for i in node.inputs]
        offsets[position] = apply(node.layer, constants).reshape(-1).numpy()
        combined: dict[int, sp.csr_matrix] = {}
        for operand, i in enumerate(node.inputs):
            if not reads(node.layer, operand):
                continue
            own = matrix(node.layer, operand, double.nodes[i].shape, node.shape)
            for source, earlier in maps[i].items():
                product = (own @ earlier).tocsr()
                combined[source] = combined[source] + product if source in combined else product
        maps[position] = combined
    last = len(double.nodes) - 1
    stages.append(Stage(None, maps[last], offsets[last]))
    return tuple(stages)
