"""Reads a torch module through `torch.export`: a program of functional ATen operators on one clip.

Exporting removes what makes modules hard to read: aliases and in-place operators, Python's control flow, views of one
another. Every node of the program becomes a value (a node of the network), a constant tensor, or a plain Python object;
`torch_rules` says what the operators mean. What exporting cannot see is refused by `torch_admission`.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from stbp_milp.errors import InputError, StbpError, UnsupportedLayerError
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.shaping import Site, Value, no_rules
from stbp_milp.network.torch_admission import attributes, changed, check_module
from stbp_milp.network.torch_rules import RULES, SUPPORTED, Call


def read_module(module: nn.Module, input_shape: Sequence[int]) -> Network:
    """The module in eval mode as a float64 network for inputs of `input_shape` (without the batch axis).

    The module is copied first: its weights, its training flag and its device stay as they are.

    Raises:
        UnsupportedLayerError: an operator has no rule, or the module does what exporting cannot follow: it branches on
            its input, has hooks, or changes itself.
        InputError: shapes do not fit, a weight is not finite, or the module does not map one tensor to one flat tensor.
    """
    own = private_copy(module).cpu()
    check_module(own)
    changes: list[str] = []
    program = _exported(_Whole(own, changes.append), type(module).__name__, input_shape)
    changed_buffers = program.graph_signature.buffers_to_mutate.values()
    if remembered := next((name.removeprefix("model.") for name in [*changed_buffers, *changes]), None):
        raise UnsupportedLayerError(
            f"the forward method of {type(module).__name__} changes its attribute {remembered!r}, so that "
            "its answers may depend on what it was asked before; give a module whose forward method changes nothing"
        )
    with torch.no_grad():
        return _read(program, NetworkBuilder(input_shape), tuple(input_shape))


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


# --- exporting --------------------------------------------------------------------------------------------


def _exported(module: _Whole, name: str, input_shape: Sequence[int]) -> ExportedProgram:
    """The program without operators in place; operators without a rule are decomposed as far as torch can."""
    sample = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))
    clip = torch.zeros(1, *input_shape, dtype=sample.dtype if sample.is_floating_point() else torch.float32)
    try:
        with _silently():
            program = torch.export.export(module, (clip,), strict=False)
            if any(map(_changes_an_operand, program.graph.nodes)):
                program = program.run_decompositions({})  # the same without operators in place
            program = _decomposed(program)
    except StbpError:
        raise
    except Exception as error:  # whatever the user's own code raises when it is exported
        reason = " ".join(str(error).split())[:400]
        raise UnsupportedLayerError(
            f"torch.export cannot follow {name}: {reason}. The forward method must accept inputs of shape "
            f"{tuple(clip.shape)} and apply the same operators to each; change it, or export the module to ONNX"
        ) from error
    assert isinstance(program, ExportedProgram)
    return program


def _decomposed(program: ExportedProgram) -> ExportedProgram:
    """Operators without a rule in terms of others, as far as torch can and where that helps.

    Nothing else is touched: what the module computes from its weights alone stays what it predicts with.
    """
    if not _unknown(program):
        return program
    table: Any = torch.export.default_decompositions()
    while names := {str(_operator(node)) for node in _unknown(program)}:
        own = [known for known in list(table) if _name(known) in names]
        if not own:
            break
        program = program.run_decompositions({known: table.pop(known) for known in own})
    return program


class _Whole(nn.Module):
    """The user's module, in which dropout that does nothing is nothing: torch then returns its operand itself, which an
    operator in place may change, while an exported program has a new tensor there.

    Args:
        note: gets the attribute that the module's forward method changes; exporting would put it back silently.
    """

    def __init__(self, model: nn.Module, note: Callable[[str], None]) -> None:
        super().__init__()
        self.model, self._note = model, note

    def forward(self, x: Tensor) -> Any:
        before = attributes(self.model)
        with _WithoutDropout():
            outputs = self.model(x)
        if (name := changed(before, attributes(self.model))) is not None:
            self._note(name)
        return outputs


class _WithoutDropout(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in _DROPOUTS:
            given = inspect.signature(func).bind(*args, **named).arguments
            if not given.get("training", True):
                return given["input"]
        elif func in (torch.dropout, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout):
            operand, _, train = [*args, *named.values()]
            if not train:
                return operand
        elif func is Tensor.type_as:
            return args[0].to(args[1].dtype)
        return func(*args, **named)


_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}


@contextmanager
def _silently() -> Iterator[None]:
    """Without torch's own remarks about the user's code."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _changes_an_operand(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def _operator(node: fx.Node) -> str | None:
    """The name of an ATen operator, without its overload; None of what is no call of one, or is never read."""
    if node.op != "call_function" or not node.users or not isinstance(node.target, torch._ops.OpOverload):
        return None
    return _name(node.target)


def _name(target: Any) -> str:
    return str(target.name()).removeprefix("aten::").split(".")[0]


# --- reading ----------------------------------------------------------------------------------------------


def _read(program: ExportedProgram, builder: NetworkBuilder, input_shape: tuple[int, ...]) -> Network:
    results: dict[fx.Node, Any] = _constants(program)
    results[_clip(program)] = Value("input", input_shape)
    if unknown := _unknown(program):
        raise no_rules([_site(builder, node) for node in unknown], SUPPORTED)
    for node in program.graph.nodes:
        if node.op == "call_function" and node.users:
            results[node] = _call(builder, node, results)
    (end,) = (node for node in program.graph.nodes if node.op == "output")
    names = [spec.arg.name for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    by_name = {node.name: results.get(node) for node in end.all_input_nodes}
    outputs = [by_name.get(name) for name in names]
    if len(outputs) != 1 or not isinstance(outputs[0], Value):
        what = f"{len(outputs)} tensors" if len(outputs) != 1 else "a tensor that is not computed from its input"
        raise InputError(f"the module returns {what}; expected one tensor of scores")
    return builder.build(outputs[0].name)


def _constants(program: ExportedProgram) -> dict[fx.Node, Tensor]:
    """Parameters, buffers and constants by the nodes that stand for them, in the module's own arithmetic: what it
    computes from them (a weight norm) is what it predicts with."""
    signature = program.graph_signature
    owners: Mapping[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    found = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in owners:
            name = owners[node.name]
            tensor = program.state_dict[name] if name in program.state_dict else program.constants[name]
            found[node] = tensor.detach()
    return found


def _clip(program: ExportedProgram) -> fx.Node:
    """The node that stands for the clip."""
    (name,) = program.graph_signature.user_inputs
    (clip,) = (node for node in program.graph.nodes if node.name == name)
    assert isinstance(clip, fx.Node)
    return clip


def _unknown(program: ExportedProgram) -> list[fx.Node]:
    """Operators on the clip's way to the output that have no rule."""
    reached, unknown = {_clip(program)}, []
    for node in program.graph.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
            if (name := _operator(node)) is not None and name not in RULES:
                unknown.append(node)
    return unknown


def _call(builder: NetworkBuilder, node: fx.Node, results: Mapping[fx.Node, Any]) -> Any:
    site = _site(builder, node)
    args: Any = fx.node.map_arg(node.args, lambda read: results[read])
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda read: results[read])
    if node.target is operator.getitem:
        found = args[0][args[1]]
        if found is None:
            raise site.unsupported("reads indices or statistics besides the values; expected the values alone")
        return found
    if not isinstance(node.target, torch._ops.OpOverload):
        assert callable(node.target)
        return node.target(*args, **kwargs)
    name = _operator(node)
    if not _mentions_value((args, kwargs)):
        return _folded(site, node.target, args, kwargs)
    schema = node.target._schema.arguments
    arguments = {own.name: own.default_value for own in schema if own.has_default_value()}
    arguments |= dict(zip((own.name for own in schema), args, strict=False)) | kwargs
    return RULES[str(name)](Call(site, arguments))


def _folded(site: Site, target: Any, args: Any, kwargs: Any) -> Any:
    """What is computed from constants alone."""
    if torch.Tag.nondeterministic_seeded in target.tags or _name(target).startswith("empty"):
        raise site.unsupported("draws random numbers or reads memory that nothing was written to")
    return target(*args, **kwargs)


def _site(builder: NetworkBuilder, node: fx.Node) -> Site:
    """The operator as the user knows it: the module of torch's own that it belongs to, or the operator itself."""
    modules = list((node.meta.get("nn_module_stack") or {}).values())  # (path, class), the user's own first
    if len(modules) > 1 and str(modules[-1][1]).startswith("torch.nn.modules"):
        path, kind = (str(part) for part in modules[-1])
        if path := path.removeprefix("model").removeprefix("."):
            return Site(builder, path, kind.rsplit(".", 1)[-1])
    return Site(builder, node.name, _operator(node) or str(getattr(node.target, "__name__", node.target)))


def _mentions_value(argument: Any) -> bool:
    if isinstance(argument, dict):
        return any(_mentions_value(item) for item in argument.values())
    if isinstance(argument, (tuple, list)):
        return any(_mentions_value(item) for item in argument)
    return isinstance(argument, Value)
