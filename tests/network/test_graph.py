"""Building networks: by hand, `max(x, -x)` of one number is its absolute value.

x --(-1)--> negated;  x, negated --> maximum
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stbp_milp.errors import InputError
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.layers import Add, Linear, ReLU, Reshape, Scale


def absolute_value() -> Network:
    builder = NetworkBuilder((1,))
    builder.add("negated", Scale(torch.tensor(-1.0), torch.tensor(0.0)), "input")
    builder.add("unused", ReLU(), "negated")
    return builder.build(builder.maximum("maximum", "input", "negated"))


def test_maximum_by_hand() -> None:
    network = absolute_value()
    assert network(torch.tensor([[-2.0], [3.0]])).tolist() == [[2.0], [3.0]]
    assert [node.name for node in network.nodes] == [
        "input",
        "negated",
        "maximum/difference",
        "maximum/relu",
        "maximum",
    ]
    assert network.relus == (3,)
    assert network.affine_depth() == (True, True, True, False, False)


def test_operands_come_before_their_readers() -> None:
    network = absolute_value()
    assert all(i < position for position, node in enumerate(network.nodes) for i in node.inputs)


def test_call_is_the_last_of_values() -> None:
    network, clips = absolute_value(), torch.tensor([[-1.5], [0.0]])
    assert torch.equal(network(clips), network.values(clips)[-1])


def test_to_another_dtype_leaves_the_network_as_it_was() -> None:
    network = absolute_value()
    assert network.to(torch.float64).dtype is torch.float64
    assert network.dtype is torch.float32


def test_network_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        absolute_value().nodes[0].name = "other"  # type: ignore[misc]


def test_unknown_operand_names_both_nodes() -> None:
    with pytest.raises(InputError, match="'a' reads 'b'"):
        NetworkBuilder((2,)).add("a", ReLU(), "b")


def test_taken_name() -> None:
    with pytest.raises(InputError, match="two nodes are named 'input'"):
        NetworkBuilder((2,)).add("input", ReLU(), "input")


def test_operands_that_do_not_fit_name_node_and_shapes() -> None:
    with pytest.raises(InputError, match=r"'a' \(Linear\) cannot take operands of shape \(2,\)"):
        NetworkBuilder((2,)).add("a", Linear(torch.ones(1, 3), torch.ones(1)), "input")


def test_sums_do_not_broadcast() -> None:
    builder = NetworkBuilder((2, 3))
    builder.add("slim", Linear(torch.ones(1, 6), torch.ones(1)), builder.add("flat", Reshape((6,)), "input"))
    with pytest.raises(InputError, match="expected operands of its own shape"):
        builder.add("sum", Add((1.0, 1.0)), "flat", "slim")


def test_output_must_be_flat() -> None:
    with pytest.raises(InputError, match="add a Flatten"):
        NetworkBuilder((2, 3)).build("input")
