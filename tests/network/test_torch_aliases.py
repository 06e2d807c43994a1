"""Modules that change tensors in place, and what else tracing alone would not show: read as torch computes, or refused.

By hand: with x = -1, `a = 2 x; b = a; a += 5` makes both a and b 3, so relu(a) + b is 6; read as if `a += 5` made a new
tensor it would be 3 - 2 = 1. On clips where 5 is 0 the two agree, so comparing scores on a few clips is not enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stbp_milp.errors import InputError, UnsupportedLayerError
from stbp_milp.network.torch_reader import read_module

ALIASES: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda a: a,
    "identity": nn.Identity(),
    "dropout": nn.Dropout(),
    "detach": lambda a: a.detach(),
    "contiguous": lambda a: a.contiguous(),
    "double": lambda a: a.double(),
    "type_as": lambda a: a.type_as(a),
    "view of its own shape": lambda a: a.view(-1, 4),
    "reshape": lambda a: a.reshape(-1, 4),
    "flatten": lambda a: a.flatten(1),
}


def _iadd(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


def _isub(a: Tensor, b: Tensor) -> Tensor:
    a -= b
    return a


def _imul(a: Tensor, b: Tensor) -> Tensor:
    a *= 2.0
    return a


def _idiv(a: Tensor, b: Tensor) -> Tensor:
    a /= 4.0
    return a


def _module(a: Tensor, b: Tensor) -> Tensor:
    """Stands for a module in place, which must be the block's own."""
    raise NotImplementedError


CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+=": _iadd,
    "-=": _isub,
    "*=": _imul,
    "/=": _idiv,
    "add_": lambda a, b: a.add_(b),
    "relu_": lambda a, b: a.relu_(),
    "F.relu in place": lambda a, b: nn.functional.relu(a, True),
    "F.relu by name": lambda a, b: nn.functional.relu(input=a, inplace=True),
    "torch.relu_": lambda a, b: torch.relu_(a),
    "a module": _module,
}


class Block(nn.Module):
    """`heads(change(a)) + heads(alias(a))`, the alias made before the change and read after it."""

    def __init__(self, alias: Callable[[Tensor], Tensor], change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other, self.head, self.shortcut = (nn.Linear(4, 4) for _ in range(4))
        self.alias, self.own, self.relu = alias, change, nn.ReLU(inplace=True)

    def change(self, a: Tensor, b: Tensor) -> Tensor:
        return self.relu(a) if self.own is _module else self.own(a, b)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        a, b = self.first(x), torch.relu(self.other(x))
        same = self.alias(a)
        changed = self.change(a, b)
        return self.head(changed) + self.shortcut(same)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("alias", ALIASES)
def test_who_shares_memory_sees_the_change(alias: str, change: str) -> None:
    module = Block(ALIASES[alias], CHANGES[change]).double().eval()
    network = read_module(module, (4,))
    points = torch.randn(20, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(points), module(points))


@pytest.mark.parametrize("change", CHANGES)
def test_another_view_of_what_was_changed_shows_the_change(change: str) -> None:
    class Viewed(Block):
        def forward(self, x: Tensor) -> Tensor:
            a = self.first(x.flatten(1))
            view, row = a.view(-1, 2, 2), a[:, 1:2]
            changed = self.change(a, torch.relu(self.other(x.flatten(1))))
            return self.head(changed) + self.shortcut(view.transpose(1, 2).flatten(1)) + row

    module = Viewed(ALIASES["itself"], CHANGES[change]).double().eval()
    points = torch.randn(20, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(read_module(module, (4,))(points), module(points))


def test_a_part_that_is_written_over_is_seen() -> None:
    class Written(Block):
        def forward(self, x: Tensor) -> Tensor:
            a = self.first(x)
            a[:, 1:3] = torch.relu(a[:, :2])
            return self.head(a)

    module = Written(ALIASES["itself"], CHANGES["+="]).double().eval()
    points = torch.randn(20, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(read_module(module, (4,))(points), module(points))


def test_an_operator_in_place_without_a_rule_is_refused() -> None:
    class Power(Block):
        def forward(self, x: Tensor) -> Tensor:
            x **= 2.5
            return self.head(x)

    with pytest.raises(UnsupportedLayerError, match=r"exponent is 2\.5"):
        read_module(Power(ALIASES["itself"], CHANGES["+="]), (4,))


class Counting(nn.Module):
    """Answers something else each time it is asked."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.head, self.how, self.calls = nn.Linear(4, 2), how, 0
        self.register_buffer("seen", torch.zeros(1))
        self.past: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "number":
            self.calls += 1
        elif self.how == "list":
            self.past.append(1)
        else:
            self.seen.add_(1.0)
        return self.head(x) * (1.0 + self.calls + len(self.past))


@pytest.mark.parametrize("how", ["number", "list", "buffer"])
def test_modules_that_change_themselves_are_refused(how: str) -> None:
    with pytest.raises(UnsupportedLayerError, match="changes its attribute"):
        read_module(Counting(how).eval(), (4,))


def _with_hook(module: nn.Module) -> None:
    module[0].register_forward_hook(lambda own, given, output: output + 1)


def _with_pre_hook(module: nn.Module) -> None:
    module[1].register_forward_pre_hook(lambda own, given: None)


def _with_own_forward(module: nn.Module) -> None:
    module[0].forward = lambda x: x  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [_with_hook, _with_pre_hook, _with_own_forward])
def test_what_tracing_does_not_run_is_refused(change: Callable[[Any], None]) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    change(module)
    with pytest.raises(UnsupportedLayerError, match=r"hook|replaces its method"):
        read_module(module, (4,))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_named(value: float) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        module[2].weight[0, 1] = value
    with pytest.raises(InputError, match=r"node '2'.*1 of the 8 values in its weight"):
        read_module(module, (4,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_few_digits_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="few digits"):
        read_module(nn.Sequential(nn.Linear(4, 2)).to(dtype).eval(), (4,))
