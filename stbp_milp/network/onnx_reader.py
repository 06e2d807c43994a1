"""Reads an ONNX file operator by operator; `onnx_rules` says what the operators mean.

What does not depend on the input (initialisers, shapes, arithmetic on them) is folded into constants with ONNX's own
reference implementation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from stbp_milp.errors import InputError
from stbp_milp.network.graph import Network, NetworkBuilder
from stbp_milp.network.onnx_file import OnnxFile
from stbp_milp.network.onnx_rules import RULES, SUPPORTED, Operator
from stbp_milp.network.shaping import Site, Value, no_rules

_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def read_onnx(file: OnnxFile) -> Network:
    """The model of a file as a float64 network.

    Raises:
        UnsupportedLayerError: an operator has no rule.
        InputError: the file is not of one input and one flat output.
    """
    builder = NetworkBuilder(file.input_shape, file.input_name)
    results: dict[str, Value | np.ndarray] = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in file.model.graph.initializer
    }
    results[file.input_name] = Value(file.input_name, file.input_shape, file.batch or 1)
    needed = _needed(file.model.graph, file.output_name)
    _refuse_unknown(builder, needed, file.input_name)
    for node in needed:
        found = _read(file, builder, node, results)
        if isinstance(found, list):
            results.update(zip(node.output, found, strict=False))
        else:
            results[node.output[0]] = found
    output = results.get(file.output_name)
    if not isinstance(output, Value):
        raise InputError(f"output {file.output_name!r} of {file.path} does not depend on the input; export it again")
    return builder.build(output.name)


def _needed(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    needed, kept = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]


def _refuse_unknown(builder: NetworkBuilder, nodes: Sequence[onnx.NodeProto], start: str) -> None:
    """One sentence with all operators on the input's way to the output that have no rule."""
    reached, unknown = {start}, []
    for node in nodes:
        if not reached.isdisjoint(node.input):
            reached.update(node.output)
            known = node.domain in ("", "ai.onnx") and (node.op_type in RULES or node.op_type == "Shape")
            if not known:
                unknown.append(_site(builder, node))
    if unknown:
        raise no_rules(unknown, SUPPORTED)


def _site(builder: NetworkBuilder, node: onnx.NodeProto) -> Site:
    return Site(builder, node.name or node.output[0], node.op_type)


def _read(
    file: OnnxFile, builder: NetworkBuilder, node: onnx.NodeProto, results: dict[str, Value | np.ndarray]
) -> Value | np.ndarray | list[Value]:
    site = _site(builder, node)
    missing = [name for name in node.input if name and name not in results]
    if missing:
        raise site.unsupported(f"reads {missing[0]!r}, a second output of another operator or of a subgraph")
    operands = tuple(results[name] if name else None for name in node.input)
    if not any(isinstance(operand, Value) for operand in operands):
        return _folded(file, site, node, results)
    if node.op_type == "Shape" and isinstance(operands[0], Value):
        settings = {attribute.name: attribute.i for attribute in node.attribute}
        whole = np.array(operands[0].whole, dtype=np.int64)
        return whole[settings.get("start", 0) : settings.get("end", len(whole))]
    rule = RULES[node.op_type]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    opset = next((own.version for own in file.model.opset_import if own.domain in ("", "ai.onnx")), 1)
    return rule(Operator(site, operands, attributes, opset, len(node.output)))


def _folded(file: OnnxFile, site: Site, node: onnx.NodeProto, results: dict[str, Value | np.ndarray]) -> np.ndarray:
    if node.op_type in _RANDOM:
        raise no_rules([site], SUPPORTED)
    names = [name for name in dict.fromkeys(node.input) if name]
    untyped = [helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in names]
    results_info = [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UNDEFINED, None)]
    graph = helper.make_graph([node], "constant", untyped, results_info)
    alone = helper.make_model(graph, opset_imports=file.model.opset_import, functions=file.model.functions)
    try:
        (value,) = ReferenceEvaluator(alone).run(None, {name: results[name] for name in names})
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise site.unsupported(f"a constant that cannot be computed: {error}") from error
    return np.asarray(value)
