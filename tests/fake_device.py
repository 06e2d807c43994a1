"""A device without hardware: tensors that claim to be elsewhere, and complain where CUDA would.

A `FakeTensor` reports the device `FAKE` (torch's meta device, which has no numbers of its own) and holds a tensor on
the CPU that does the work. While `fake_device` is active, whatever is made on or moved to `FAKE` becomes one. Code that
forgets a device then fails as it would on a card: a plain tensor meets a fake one in an operator (numbers, tensors
without axes, may), or numpy is asked for one. Strictly more than CUDA forbids: it takes index tensors from the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

FAKE = torch.device("meta")

_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}  # operators that join two devices


class DeviceMismatchError(RuntimeError):
    """A tensor of the CPU met one of the fake device."""


class FakeTensor(Tensor):
    """`inner` on the fake device."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> FakeTensor:
        fake: FakeTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=FAKE,
        )
        fake.inner = inner
        return fake

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operator, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FakeTensor({self.inner!r})"


def _computed(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operator's results: fake where its operands or the device asked for are."""
    fakes: dict[int, FakeTensor] = {}
    plain: list[Tensor] = []

    def inner(value: Any) -> Any:
        if isinstance(value, FakeTensor):
            fakes[id(value.inner)] = value
            return value.inner
        if isinstance(value, Tensor):
            plain.append(value)
        return value

    args, kwargs = tree_map(inner, args), tree_map(inner, kwargs)
    asked = kwargs.get("device")
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    if fakes and operator not in _COPIES and any(value.dim() for value in plain):
        shapes = [tuple(value.shape) for value in plain if value.dim()]
        raise DeviceMismatchError(f"{operator}: tensors of the CPU of shapes {shapes} meet tensors of the fake device")
    result = operator(*args, **kwargs)
    on_device = bool(fakes) if asked is None else asked.type == FAKE.type
    if operator is torch.ops.aten.copy_.default:
        on_device = id(result) in fakes

    def outer(value: Any) -> Any:
        if not (on_device and isinstance(value, Tensor)):
            return value
        return fakes[id(value)] if id(value) in fakes else FakeTensor(value)  # in-place operators return their operand

    return tree_map(outer, result)


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operator, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """Numbers that torch would drop on the meta device before any operator sees them."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") == FAKE:
            return torch.tensor(*args, **(kwargs | {"device": "cpu"})).to(FAKE)
        if function is torch.unravel_index and isinstance(args[0], FakeTensor):
            return tuple(axis.to(FAKE) for axis in torch.unravel_index(args[0].cpu(), *args[1:], **kwargs))
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], FakeTensor):
            args = (args[0], _without_lists(args[1]), *args[2:])
        return function(*args, **kwargs)


def _without_lists(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_without_lists(part) for part in index)
    return torch.tensor(index).to(FAKE) if isinstance(index, list) else index


@contextmanager
def fake_device() -> Iterator[None]:
    """Everything made on `FAKE` inside is a `FakeTensor`."""
    with _Constructors(), _Operators():
        yield
