"""`read_onnx` equals the module that was exported, and what onnxruntime computes for hand-made graphs."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from stbp_milp.errors import InputError, UnsupportedLayerError
from stbp_milp.network import onnx_reader
from stbp_milp.network.graph import Network
from stbp_milp.network.model import load_model
from stbp_milp.network.onnx_file import open_onnx
from stbp_milp.st_bench.export import write_network
from tests.network.small_modules import MODULES, NOT_EXPORTED, build

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def read_onnx(path: Path, input_shape: tuple[int, ...] | None = None) -> Network:
    return onnx_reader.read_onnx(open_onnx(path, input_shape))


def export(module: nn.Module, shape: tuple[int, ...], path: Path, **settings: Any) -> Path:
    torch.onnx.export(module, (torch.rand(2, *shape),), path, input_names=["x"], verbose=False, **settings)
    return path


def agree(module: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    network = read_onnx(path)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(x.double()).float(), module(x.clone()), **CLOSE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", ["open", "fixed"])
@pytest.mark.parametrize("name", [name for name in MODULES if name not in NOT_EXPORTED])
def test_network_equals_the_module_exported_the_older_way(name: str, batch: str, tmp_path: Path) -> None:
    module, shape = build(name)
    axes = {"x": {0: "N"}} if batch == "open" else None
    agree(module, shape, export(module, shape, tmp_path / "model.onnx", dynamo=False, dynamic_axes=axes))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["residual", "functional", "avgpool2d_ceil_inner", "adaptive_max", "normalise"])
def test_network_equals_the_module_exported_by_dynamo(name: str, tmp_path: Path) -> None:
    module, shape = build(name)
    path = export(module, shape, tmp_path / "model.onnx", dynamo=True, external_data=name != "residual")
    agree(module, shape, path)
    load_model(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["joined", "shaped", "frames", "padded", "resized", "kinked", "conv_transpose3d"])
def test_network_equals_the_module_exported_for_one_clip(name: str, tmp_path: Path) -> None:
    module, shape = build(name)
    path = tmp_path / "model.onnx"
    torch.onnx.export(module, (torch.rand(1, *shape),), path, verbose=False, dynamo=True)
    network = read_onnx(path)
    clips = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone = torch.cat([module(clip.unsqueeze(0)) for clip in clips])
    torch.testing.assert_close(network(clips.double()).float(), alone, **CLOSE)
    load_model(path)


# --- graphs by hand ---------------------------------------------------------------------------------------


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    shape: list[int | str | None],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """A graph from input `x` to output `y`."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, path)
    return path


def flat(*nodes: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [*nodes, helper.make_node("Flatten", ["h"], ["y"])]


def node(kind: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs) or ["x"], ["h"], **attributes)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


CONSTANTS = {
    "W": weights(2, 2, 3, 3),
    "G": weights(12, 3),
    "T": weights(3, 12),
    "b": weights(3),
    "axes": np.array([2, 3]),
    "positive": np.abs(weights(2, 1, 1)) + 1.0,
}
ON_2_5_6: dict[str, list[onnx.NodeProto]] = {
    "conv_same_upper": flat(node("Conv", "x", "W", auto_pad="SAME_UPPER", strides=[2, 2])),
    "conv_same_lower": flat(node("Conv", "x", "W", auto_pad="SAME_LOWER", strides=[1, 2])),
    "conv_valid": flat(node("Conv", "x", "W", auto_pad="VALID")),
    "conv_uneven": flat(node("Conv", "x", "W", pads=[2, 0, 1, 3])),
    "average_uneven": flat(node("AveragePool", kernel_shape=[3, 2], pads=[1, 0, 0, 1], strides=[2, 2])),
    "average_counting": flat(node("AveragePool", kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1)),
    "average_same": flat(node("AveragePool", kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2])),
    "average_ceil": flat(node("AveragePool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)),
    "max_uneven": flat(node("MaxPool", kernel_shape=[3, 2], pads=[2, 0, 1, 1], strides=[2, 1])),
    "max_same_lower": flat(node("MaxPool", kernel_shape=[2, 3], auto_pad="SAME_LOWER", strides=[2, 2])),
    "max_dilated": flat(node("MaxPool", kernel_shape=[2, 2], dilations=[2, 3], ceil_mode=1, strides=[2, 2])),
    "global_average": flat(node("GlobalAveragePool")),
    "global_max": flat(node("GlobalMaxPool")),
    "mean": flat(node("ReduceMean", "x", "axes", keepdims=0)),
    "largest": flat(node("ReduceMax", "x", "axes")),
    "divided": flat(node("Div", "x", "positive")),
    "subtracted_from": flat(node("Sub", "positive", "x")),
    "negated": flat(node("Neg")),
    "cast": flat(node("Cast", to=TensorProto.FLOAT)),
    "unsqueezed": flat(
        helper.make_node("Constant", [], ["last"], value_ints=[-1]),
        helper.make_node("Unsqueeze", ["x", "last"], ["u"]),
        helper.make_node("Squeeze", ["u", "last"], ["s"]),
        node("Dropout", "s"),
    ),
    "shape_folded": [
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Constant", [], ["rest"], value_ints=[-1]),
        helper.make_node("Concat", ["shape", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ],
    "reshape_keeps_zero": [
        helper.make_node("Constant", [], ["target"], value_ints=[0, -1]),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ],
}


@pytest.mark.parametrize("batch", ["N", 1, 3])
@pytest.mark.parametrize("name", ON_2_5_6)
def test_hand_made_graph_equals_onnxruntime(name: str, batch: int | str, tmp_path: Path) -> None:
    load_model(save(tmp_path / "model.onnx", ON_2_5_6[name], [batch, 2, 5, 6], CONSTANTS))


GEMM = {"alpha": 0.5, "beta": 2.0}


@pytest.mark.parametrize(
    "last",
    [
        helper.make_node("Gemm", ["x", "G", "b"], ["y"], **GEMM),
        helper.make_node("Gemm", ["x", "T"], ["y"], transB=1),
        helper.make_node("MatMul", ["x", "G"], ["y"]),
    ],
    ids=["gemm", "gemm_transposed", "matmul"],
)
def test_fully_connected(last: onnx.NodeProto, tmp_path: Path) -> None:
    load_model(save(tmp_path / "model.onnx", [last], ["N", 12], CONSTANTS))


@given(st.integers(1, 7), st.integers(1, 4), st.integers(1, 3), st.tuples(*[st.integers(0, 2)] * 2), st.booleans())
def test_average_pool(
    tmp_path_factory: pytest.TempPathFactory, size: int, kernel: int, stride: int, pads: tuple[int, int], count: bool
) -> None:
    assume(max(pads) < kernel <= size + sum(pads))
    pool = node("AveragePool", kernel_shape=[kernel], strides=[stride], pads=list(pads), count_include_pad=int(count))
    load_model(save(tmp_path_factory.mktemp("pool") / "model.onnx", flat(pool), ["N", 2, size]))


def test_fixed_reshape_to_one_clip_predicts_one_by_one(tmp_path: Path) -> None:
    """The file leaves the batch axis open, yet its Reshape holds a 1 there."""
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["h"]),
        helper.make_node("MatMul", ["h", "G"], ["y"]),
    ]
    constants = {**CONSTANTS, "target": np.array([1, 12])}
    model = load_model(save(tmp_path / "model.onnx", nodes, ["N", 3, 4], constants))
    assert model.predict(np.zeros((5, 3, 4), dtype=np.float32)).shape == (5, 3)


def test_unused_operator_needs_no_rule(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sigmoid", ["x"], ["unused"]), helper.make_node("Relu", ["x"], ["y"])]
    assert len(read_onnx(save(tmp_path / "model.onnx", nodes, ["N", 2])).relus) == 1


UNSUPPORTED: dict[str, tuple[onnx.NodeProto, str]] = {
    "sine": (helper.make_node("Sin", ["x"], ["y"], name="wave"), r"Sin \(node 'wave'\).*Supported are: Abs"),
    "integers": (helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64), "rounds"),
    "random": (helper.make_node("RandomNormal", [], ["y"], shape=[1]), "RandomNormal"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported(name: str, tmp_path: Path) -> None:
    last, message = UNSUPPORTED[name]
    with pytest.raises(UnsupportedLayerError, match=message):
        read_onnx(save(tmp_path / "model.onnx", [last], [1, 2, 5, 6], CONSTANTS))


RELU = [helper.make_node("Relu", ["x"], ["y"])]


@pytest.mark.parametrize(
    ("shape", "message"), [([2], "has 1 axes"), (["N", "K"], "expected fixed lengths"), (["N", None], "fixed lengths")]
)
def test_input_without_a_known_shape(shape: list[int | str | None], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_onnx(save(tmp_path / "model.onnx", RELU, shape))


def test_input_shape_settles_open_axes(tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", RELU, ["N", "K"])
    assert read_onnx(path, (3,)).input_shape == (3,)
    with pytest.raises(InputError, match=r"input shape given is \(3, 4\)"):
        read_onnx(path, (3, 4))


def test_integer_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds INT64; expected FLOAT"):
        read_onnx(save(tmp_path / "model.onnx", RELU, ["N", 2], kind=TensorProto.INT64))


def test_double_input(tmp_path: Path) -> None:
    load_model(save(tmp_path / "model.onnx", RELU, ["N", 2], kind=TensorProto.DOUBLE))


Damage = Callable[[Path, bytes], Path]


def _named(name: str, change: Callable[[bytes], bytes]) -> Damage:
    def write(folder: Path, content: bytes) -> Path:
        (folder / name).write_bytes(change(content))
        return folder / name

    return write


DAMAGED: dict[str, tuple[Damage, str]] = {
    "missing": (lambda folder, content: folder / "nothing.onnx", "there is no file"),
    "folder": (lambda folder, content: folder, "no ONNX file by its name"),
    "text": (_named("a.onnx", lambda content: b"a text, not a model"), "is not an ONNX model|holds no operator"),
    "empty": (_named("a.onnx", lambda content: b""), "holds no operator"),
    "truncated": (_named("a.onnx", lambda content: content[: len(content) // 2]), "cut off|no operator|no valid"),
    "truncated_gz": (_named("a.onnx.gz", lambda content: gzip.compress(content)[:-20]), "damaged"),
    "no_gz": (_named("a.onnx.gz", lambda content: content), "damaged or not gzip-compressed"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file(name: str, tmp_path: Path) -> None:
    content = save(tmp_path / "whole.onnx", RELU, ["N", 2]).read_bytes()
    damage, message = DAMAGED[name]
    with pytest.raises(InputError, match=message):
        read_onnx(damage(tmp_path, content))


def test_truncation_anywhere_is_an_input_error(tmp_path: Path) -> None:
    content = save(tmp_path / "whole.onnx", RELU, ["N", 2]).read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut.onnx").write_bytes(content[:length])
        try:
            read_onnx(tmp_path / "cut.onnx")
        except InputError:
            continue
        load_model(tmp_path / "cut.onnx")  # what was cut off was not needed


def test_gz_equals_plain(tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", RELU, ["N", 2])
    (tmp_path / "model.onnx.gz").write_bytes(gzip.compress(path.read_bytes()))
    model = load_model(tmp_path / "model.onnx.gz")
    assert model.name == "model"
    own = [node.name for node in model.network.nodes if node.name != "x/view"]
    assert own == [node.name for node in read_onnx(path).nodes]


@pytest.mark.filterwarnings("ignore")
def test_a_convolution_without_a_bias_is_written_so_that_it_can_be_read(tmp_path: Path) -> None:
    """The unoptimised exporter gives it a bias of a wrong shape; our writer does not, and our reader refuses that."""
    torch.manual_seed(2)
    layers = (nn.Conv3d(1, 2, 3, bias=False), nn.BatchNorm3d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    module = nn.Sequential(*layers).eval()
    write_network(module, torch.rand(2, 1, 4, 4, 4), tmp_path / "ours.onnx")
    agree(module, (1, 4, 4, 4), tmp_path / "ours.onnx")
    assert layers[0].bias is None
    with pytest.raises((InputError, UnsupportedLayerError), match="node_"):
        read_onnx(export(module, (1, 4, 4, 4), tmp_path / "theirs.onnx", dynamo=True, optimize=False))
