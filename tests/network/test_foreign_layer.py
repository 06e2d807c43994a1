"""A layer that is none of the union: every bounding method refuses it or is right about it.

`Reverse` turns the clip upside down along its rows. A method that took it for elementwise would look for the change of
a row where it is not. By hand: on a column of four pixels at 0.5 with radius 0.2 in row 0, the score that adds 1 times
row 3 of the reversed clip lies in [0.3, 0.7], and the other rows cannot move it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from stbp_milp import plan
from stbp_milp.bounds.crops import Region, cropped, footprint
from stbp_milp.bounds.interval_bound import interval_bound
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.errors import InternalError
from stbp_milp.network import operations
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Linear, ReLU, Reshape
from stbp_milp.network.model import Model
from stbp_milp.network.normal_form import normal_form
from stbp_milp.properties import Property
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification
from stbp_milp.verdict import Verified
from stbp_milp.verify import verify


@dataclass(frozen=True, eq=False)
class Reverse:
    """`y_i = x_(n - 1 - i)` along the rows of `(C, T, H, W)`."""


@pytest.fixture(params=["no rule at all", "only a value", "all of a linear layer"])
def known(request: pytest.FixtureRequest) -> Iterator[str]:
    """Rules that somebody adds for `Reverse` to the tables of `operations`, and nowhere else."""

    def flip(x: Tensor, axis: int) -> Tensor:
        return x.flip(axis)

    def value(layer: Reverse, operands: Sequence[Tensor]) -> Tensor:
        return flip(operands[0], -2)

    def linear(layer: Reverse, operand: int, x: Tensor, absolute: bool = False) -> Tensor:
        return flip(x, -2)

    def transpose(layer: Reverse, operand: int, form: Tensor, operand_shape: tuple[int, ...]) -> Tensor:
        return flip(form, -2)

    def matrix(layer: Reverse, operand: int, operand_shape: tuple[int, ...], shape: tuple[int, ...]) -> sp.csr_matrix:
        rows = np.arange(np.prod(shape)).reshape(shape)[:, :, ::-1].reshape(-1)
        return sp.csr_matrix((np.ones(rows.size), (np.arange(rows.size), rows)))

    rules: dict[str, list[tuple[Any, Any]]] = {
        "no rule at all": [],
        "only a value": [(operations.apply, value)],
        "all of a linear layer": [
            (operations.apply, value),
            (operations.linear, linear),
            (operations.transpose, transpose),
            (operations.matrix, matrix),
            (operations.products, lambda layer, shape: 0),
        ],
    }
    with pytest.MonkeyPatch.context() as patch:
        for table, rule in rules[request.param]:
            # A registry cannot be left again: what is registered stands for this test alone.
            registry = table.dispatch.__closure__
            patch.setattr(operations, table.__name__, table)
            table.register(Reverse, rule)
            assert registry
        yield request.param
    for table, _ in rules[request.param]:
        table.register(Reverse, table.dispatch(object))
