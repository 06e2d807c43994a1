"""Reads a torch module by symbolic tracing (torch.fx).

Every node of the traced graph becomes a value (a node of the network), a constant tensor, or a plain Python object
such as a size; `torch_rules` says what the operators mean.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from stbp_milp.errors import InputError, UnsupportedLayerError
from stbp_milp.network.assembly import Site, Value
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.torch_rules import FUNCTION_RULES, module_rule, no_rule


def read_module(module: nn.Module, input_shape: Sequence[int]) -> Network:
    """The module in eval mode as a float64 network for inputs of `input_shape` (without the batch axis).

    The module is copied first: its weights, its training flag and its device stay as they are.

    Raises:
        UnsupportedLayerError: an operator has no rule, or the forward method branches on its input.
        InputError: shapes do not fit, or the module does not map one tensor to one flat tensor.
    """
    whole = _Whole(private_copy(module).cpu())
    try:
        traced = fx.symbolic_trace(whole)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UnsupportedLayerError(
            f"cannot trace {type(module).__name__}: {error}. The forward method must apply the same operators to "
            "every input; export the module to ONNX and load that instead"
        ) from error
    builder = NetworkBuilder(input_shape)
    with torch.no_grad():
        return builder.build(_Reader(traced, builder).output(tuple(input_shape)).name)


def private_copy(module: nn.Module) -> nn.Module:
    """The module in eval mode, sharing nothing with the user's.

    Raises:
        InputError: the module cannot be copied.
    """
    try:
        return copy.deepcopy(module).eval()
    except RuntimeError as error:
        raise InputError(f"cannot copy {type(module).__name__}: {error}; give a module that copy.deepcopy takes") from (
            error
        )


class _Whole(nn.Module):
    """Makes the user's module a child, so that a lone Conv3d or BatchNorm is read as a leaf too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Reader:
    """Walks the traced graph and remembers what every node became."""

    def __init__(self, traced: fx.GraphModule, builder: NetworkBuilder) -> None:
        self._traced = traced
        self._builder = builder
        self._results: dict[fx.Node, Any] = {}

    def output(self, input_shape: tuple[int, ...]) -> Value:
        for node in self._traced.graph.nodes:
            if node.op == "placeholder":
                self._results[node] = Value("input", input_shape)
            elif node.op == "output":
                return self._checked(self._argument(node.args[0]))
            else:
                self._results[node] = self._read(node)
        raise InputError("the traced module has no output; its forward method must return one tensor")

    def _checked(self, result: object) -> Value:
        if not isinstance(result, Value):
            raise InputError(
                f"the module returns a {type(result).__name__} that is not computed from its input alone; "
                "expected one tensor of scores"
            )
        return result

    def _argument(self, argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: self._results[node])

    def _read(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return _attribute(self._traced, str(node.target))
        args, kwargs = self._argument(node.args), self._argument(node.kwargs)
        if node.op == "call_module":
            path = str(node.target)
            leaf = self._traced.get_submodule(path)
            name = path.removeprefix("model.")
            site = Site(self._builder, name, f"node {name!r} ({type(leaf).__name__})")
            result: Any = _apply_module(site, leaf, args, kwargs)
            in_place = bool(getattr(leaf, "inplace", False))
        else:
            called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            site = Site(self._builder, node.name, f"node {node.name!r} ({called})")
            result = _call(site, node, called, args, kwargs)
            in_place = called in _IN_PLACE or bool(node.kwargs.get("inplace", False))
        if in_place and node.args and isinstance(node.args[0], fx.Node):
            # Later readers of the operand see the new value, as they do in torch.
            self._results[node.args[0]] = result
        return result


_IN_PLACE = {"iadd", "isub", "imul", "itruediv", "relu_", "add_", "sub_", "mul_", "div_"}


def _attribute(root: nn.Module, path: str) -> Any:
    parent, _, last = path.rpartition(".")
    return getattr(root.get_submodule(parent), last)


def _apply_module(site: Site, leaf: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
    if module_rule.dispatch(type(leaf)) is module_rule.dispatch(object):
        raise no_rule(site)
    operands = [*args, *kwargs.values()]
    if len(operands) != 1 or not isinstance(operands[0], Value):
        raise site.unsupported("expected one operand that depends on the network's input")
    return module_rule(leaf, site, operands[0])


def _call(site: Site, node: fx.Node, called: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not _mentions_value((args, kwargs)) and _is_plain(node):
        target = node.target
        return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
    rule = FUNCTION_RULES.get(node.target)
    if rule is None:
        raise no_rule(site)
    try:
        inspect.signature(rule).bind(site, *args, **kwargs)
    except TypeError as error:
        raise site.unsupported(f"called with arguments that have no rule ({error})") from error
    return rule(site, *args, **kwargs)


def _is_plain(node: fx.Node) -> bool:
    """Arithmetic on sizes and constants; a torch function may be random and is not evaluated here."""
    return node.op == "call_method" or getattr(node.target, "__module__", "") in {"_operator", "math", "builtins"}


def _mentions_value(argument: Any) -> bool:
    if isinstance(argument, dict):
        return any(_mentions_value(item) for item in argument.values())
    if isinstance(argument, (tuple, list)):
        return any(_mentions_value(item) for item in argument)
    return isinstance(argument, Value)
