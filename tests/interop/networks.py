"""ONNX files of the shapes that competitions use, small enough to enumerate.

flat    (N, 3)        -> Gemm -> ReLU -> Gemm
acas    (1, 1, 1, 3)  -> Sub mean -> Flatten -> MatMul -> Add -> ReLU -> MatMul -> Add
column  (1, 3, 1)     -> Flatten -> Gemm -> ReLU -> Gemm
image   (1, 1, 2, 2)  -> Sub, Div -> Conv -> ReLU -> Reshape -> Gemm
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

NAMES = ("flat", "acas", "column", "image")
_SHAPES: dict[str, list[object]] = {
    "flat": ["N", 3],
    "acas": [1, 1, 1, 3],
    "column": [1, 3, 1],
    "image": [1, 1, 2, 2],
}
INPUTS = {"flat": 3, "acas": 3, "column": 3, "image": 4}
_HIDDEN, OUTPUTS = 4, 2


def write(path: Path, name: str, seed: int = 0) -> Path:
    """The network of this name as a file (`.gz`: compressed)."""
    random = np.random.default_rng(seed)
    size = INPUTS[name]
    hidden = 3 if name == "image" else _HIDDEN
    shapes = {
        "W": (hidden, size),
        "b": (hidden,),
        "V": (OUTPUTS, hidden),
        "c": (OUTPUTS,),
        "Wt": (size, hidden),
        "Vt": (hidden, OUTPUTS),
        "K": (3, 1, 2, 2),
        "mean": (1, 1, 1, size) if name == "acas" else (1, 1, 1, 1),
    }
    constants = {key: random.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}
    constants |= {"two": np.float32(2.0), "target": np.array([1, -1], dtype=np.int64)}
    nodes = _NODES[name]()
    used = {operand for node in nodes for operand in node.input}
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, _SHAPES[name])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [_SHAPES[name][0], OUTPUTS])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items() if key in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    content = model.SerializeToString()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    onnx.checker.check_model(model)
    return path


def _gemms(first: str) -> list[NodeProto]:
    return [
        helper.make_node("Gemm", [first, "W", "b"], ["z"], transB=1),
        helper.make_node("Relu", ["z"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "V", "c"], ["scores"], transB=1),
    ]


_NODES = {
    "flat": lambda: _gemms("input"),
    "column": lambda: [helper.make_node("Flatten", ["input"], ["row"], axis=1), *_gemms("row")],
    "acas": lambda: [
        helper.make_node("Sub", ["input", "mean"], ["centred"]),
        helper.make_node("Flatten", ["centred"], ["row"]),
        helper.make_node("MatMul", ["row", "Wt"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["z"]),
        helper.make_node("Relu", ["z"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "Vt"], ["last"]),
        helper.make_node("Add", ["last", "c"], ["scores"]),
    ],
    "image": lambda: [
        helper.make_node("Sub", ["input", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "two"], ["normal"]),
        helper.make_node("Conv", ["normal", "K", "b"], ["z"], kernel_shape=[2, 2]),
        helper.make_node("Relu", ["z"], ["map"]),
        helper.make_node("Reshape", ["map", "target"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "V", "c"], ["scores"], transB=1),
    ],
}
