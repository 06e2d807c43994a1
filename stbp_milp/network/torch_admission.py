"""What a torch module may not do, because tracing it would not show it: refused in one sentence.

A trace records the operators of one call. Hooks and replaced methods, and state that changes from call to call, are
outside of that record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrize

from stbp_milp.errors import InputError, UnsupportedLayerError

_HOOKS = {"_forward_hooks": "forward hook", "_forward_pre_hooks": "forward pre-hook"}
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks")
_PLAIN = {Tensor, nn.Parameter, nn.Buffer}
_EXACT_ENOUGH = {torch.float32, torch.float64}


def check_module(module: nn.Module) -> None:
    """Is the module made of plain parts?

    Raises:
        UnsupportedLayerError: a part has hooks, replaced methods, compiled code or weights that are no plain tensors.
        InputError: a weight is of a type with few digits.
    """
    if any(getattr(nn_module, name) for name in _GLOBAL_HOOKS):
        raise UnsupportedLayerError(
            "a global forward hook is registered, which may change what every module computes; remove it first "
            "(keep the handle that register_module_forward_hook returns, and call its remove())"
        )
    for path, part in module.named_modules():
        name = f"module {path!r} ({type(part).__name__})" if path else type(part).__name__
        _check_calls(name, part)
        _check_weights(name, part)
        if parametrize.is_parametrized(part):
            _check_parametrisations(name, part)


def _check_calls(name: str, part: nn.Module) -> None:
    for attribute, kind in _HOOKS.items():
        for hook in getattr(part, attribute).values():
            raise UnsupportedLayerError(
                f"{name} has a {kind} ({getattr(hook, '__name__', type(hook).__name__)}), which may change what it "
                "computes; remove it first (its handle's remove(), or torch.nn.utils.remove_weight_norm and the like)"
            )
    if isinstance(part, torch.jit.ScriptModule):
        raise UnsupportedLayerError(
            f"{name} is compiled by torch.jit, which cannot be read; give the module that was compiled"
        )
    replaced = [
        own for own, value in vars(part).items() if callable(value) and callable(getattr(type(part), own, None))
    ]
    if replaced or type(part).__call__ is not nn.Module.__call__:
        raise UnsupportedLayerError(
            f"{name} replaces its method {(replaced or ['__call__'])[0]!r}; define a class with a forward method"
        )


def _check_weights(name: str, part: nn.Module) -> None:
    for kind, tensor in (*part._parameters.items(), *part._buffers.items()):
        if tensor is None:
            continue
        if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise UnsupportedLayerError(f"{name} has no {kind!r} yet; run the module on one clip before it is verified")
        if type(tensor) not in _PLAIN or tensor.is_complex() or tensor.is_quantized:
            raise UnsupportedLayerError(
                f"{name} keeps {kind!r} as {type(tensor).__name__} of {tensor.dtype}; expected plain tensors of real "
                "numbers, give the module as it was before quantisation or compression"
            )
        if tensor.is_floating_point() and tensor.dtype not in _EXACT_ENOUGH:
            raise InputError(
                f"{name} computes in {str(tensor.dtype).removeprefix('torch.')}, whose few digits no proof about real "
                "numbers describes; give the module in float32, as in model.float()"
            )


def _check_parametrisations(name: str, part: nn.Module) -> None:
    """Weights that are computed (weight_norm, spectral_norm, ...) are read as what they are in eval mode."""
    parts = part.parametrizations
    assert isinstance(parts, nn.ModuleDict)
    for kind in parts:
        with torch.no_grad():
            first, second = getattr(part, kind), getattr(part, kind)
        if not torch.equal(first, second):
            raise UnsupportedLayerError(
                f"the parametrised {kind!r} of {name} is not the same each time it is evaluated; remove the "
                "parametrisation first (torch.nn.utils.parametrize.remove_parametrizations)"
            )


def attributes(module: nn.Module) -> dict[str, Any]:
    """What the module and its parts remember, by path and name; of containers, what they hold."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        kept = {name: value for name, value in vars(part).items() if name not in _OWN}
        kept |= part._buffers | part._parameters
        for name, value in kept.items():
            found |= _remembered(f"{path}.{name}" if path else name, value)
    return found


def _remembered(at: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {at: value, f"the values of {at}": value._version}  # in place, it stays the same tensor
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        found: dict[str, Any] = {f"len({at})": len(value)}
        for key, entry in entries:
            found |= _remembered(f"{at}[{key!r}]", entry)
        return found
    return {at: value}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The first attribute that is not what it was, if there is one."""
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after or not _same(before[name], after[name]):
            return name
    return None


def _same(first: Any, second: Any) -> bool:
    plain = (bool, int, float, complex, str, bytes, tuple, torch.Size, torch.dtype, torch.device)
    return first is second or (type(first) is type(second) and isinstance(first, plain) and first == second)


# A recurrent layer keeps its parameters twice.
_OWN = {*vars(nn.Module()), "_flat_weights", "_flat_weight_refs"} - {"training"}
