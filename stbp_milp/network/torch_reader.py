"""Reads a torch module by symbolic tracing (torch.fx).

Every node of the traced graph becomes a value (a node of the network), a constant tensor, or a plain Python object
such as a size; `torch_rules` says what the operators mean. What tracing cannot see is refused by `torch_admission`.

An in-place operator changes every tensor that shares its operand's memory. The reader follows which nodes may do so:
those with the same numbers get the new ones; other views of the memory become stale, and reading one is refused.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from stbp_milp.errors import InputError, StbpError, UnsupportedLayerError
from stbp_milp.network.assembly import Site, Value
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.torch_admission import attributes, changed, check_module
from stbp_milp.network.torch_rules import FUNCTION_RULES, module_rule, no_rule


def read_module(module: nn.Module, input_shape: Sequence[int]) -> Network:
    """The module in eval mode as a float64 network for inputs of `input_shape` (without the batch axis).

    The module is copied first: its weights, its training flag and its device stay as they are.

    Raises:
        UnsupportedLayerError: an operator has no rule, or the module does what tracing cannot follow: it branches on
            its input, has hooks, or changes itself.
        InputError: shapes do not fit, a weight is not finite, or the module does not map one tensor to one flat tensor.
    """
    own = private_copy(module).cpu()
    check_module(own)
    whole = _Whole(own)
    before = attributes(own)
    try:
        tracer = _Tracer()
        traced = fx.GraphModule(whole, tracer.trace(whole))
    except StbpError:
        raise
    except Exception as error:  # whatever the user's own code raises when it is traced
        raise UnsupportedLayerError(
            f"cannot trace {type(module).__name__}: {error}. The forward method must apply the same operators to "
            "every input; export the module to ONNX and load that instead"
        ) from error
    if remembered := changed(before, attributes(own)):
        raise UnsupportedLayerError(
            f"the forward method of {type(module).__name__} changes its attribute {remembered!r}, so that "
            "its answers may depend on what it was asked before; give a module whose forward method changes nothing"
        )
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


class _Proxy(fx.Proxy):
    """What tracing computes with; unlike torch's own, it tells `x += y`, which changes x, from `x = x + y`."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})

    def _refuse(self, other: Any) -> Any:
        raise UnsupportedLayerError(
            "the forward method changes a tensor in place by an operator without a rule; expected +=, -=, *= or /="
        )

    __ifloordiv__ = __imod__ = __ipow__ = __imatmul__ = __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = (
        _refuse
    )


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


class _Reader:
    """Walks the traced graph and remembers what every node became."""

    def __init__(self, traced: fx.GraphModule, builder: NetworkBuilder) -> None:
        self._traced = traced
        self._builder = builder
        self._results: dict[fx.Node, Any] = {}
        self._sharing: dict[fx.Node, set[fx.Node]] = {}  # nodes whose tensors may share memory
        self._stale: set[fx.Node] = set()

    def output(self, input_shape: tuple[int, ...]) -> Value:
        for node in self._traced.graph.nodes:
            for operand in node.all_input_nodes:
                if operand in self._stale:
                    raise UnsupportedLayerError(
                        f"node {node.name!r} reads a view of a tensor that an in-place operator has changed since; use "
                        "the operator that makes a new tensor (inplace=False, x = x + y instead of x += y)"
                    )
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
            shares = isinstance(leaf, _SHARING_MODULES)
        else:
            called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            site = Site(self._builder, node.name, f"node {node.name!r} ({called})")
            result = _call(site, node, called, args, kwargs)
            in_place = called in _IN_PLACE or _inplace_argument(node, args, kwargs)
            shares = called in _SHARING
        if isinstance(result, Value) and (in_place or shares):
            self._share(site, node, result, in_place)
        return result

    def _share(self, site: Site, node: fx.Node, result: Value, in_place: bool) -> None:
        """The node's tensor lies in its operand's memory; in place, what lay there before is overwritten."""
        operand = node.all_input_nodes[0] if node.all_input_nodes else None
        before = None if operand is None else self._results[operand]
        if operand is None or not isinstance(before, Value):
            raise site.unsupported("changes a constant of the module in place; expected an operand that is computed")
        sharing = self._sharing.setdefault(operand, {operand})
        if in_place and result != before:
            for other in sharing:
                if self._results[other] == before:
                    self._results[other] = result
                else:
                    self._stale.add(other)
        sharing.add(node)
        self._sharing[node] = sharing


def _inplace_argument(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    rule = FUNCTION_RULES.get(node.target)
    if rule is None or "inplace" not in inspect.signature(rule).parameters:
        return False
    return bool(inspect.signature(rule).bind(None, *args, **kwargs).arguments.get("inplace", False))


_SHARING_MODULES = (
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_SHARING = {
    *("flatten", "reshape", "view", "squeeze", "unsqueeze", "contiguous", "detach", "float", "double"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d"),
}
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
