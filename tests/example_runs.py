"""A model file small enough to read, a question about it and outcomes as `verify` would return them.

    clip (1, 4, 6, 6) -> flatten -> ReLU(W clip) = scores: class 0 sums frames 0 and 1, class 1 frames 2 and 3,
    class 2 is 0.

On a clip that is 0.6 in frames 0 and 1 and 0.5 elsewhere, class 0 leads by 72 * 0.1 = 7.2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from stbp_milp.network.model import load_model
from stbp_milp.properties import same_class
from stbp_milp.query import Query
from stbp_milp.sets import SetSpecification
from stbp_milp.verdict import Certificate, Counterexample, Falsified, Leaf, Outcome, Reason, Unknown, Verified

SHAPE = (1, 4, 6, 6)
CLEAN_OUTPUTS = (43.2, 36.0, 0.0)


def clip() -> Tensor:
    values = torch.full(SHAPE, 0.5, dtype=torch.float64)
    values[:, :2] = 0.6
    return values.float().double()


def write_model(path: Path, outputs: int = 3, shape: tuple[int, ...] = SHAPE) -> Path:
    """The model above as ONNX; with `outputs=1` a regressor that returns the first score."""
    weight = np.zeros((outputs, 144), dtype=np.float32)
    weight[0, :72] = 1
    if outputs > 1:
        weight[1, 72:] = 1
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["clip"], ["flat"], axis=1),
            helper.make_node("Gemm", ["flat", "W"], ["sums"], transB=1),
            helper.make_node("Relu", ["sums"], ["hidden"]),
            helper.make_node("Gemm", ["hidden", "I"], ["scores"]),
        ],
        "example",
        [helper.make_tensor_value_info("clip", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", outputs])],
        [numpy_helper.from_array(weight, "W"), numpy_helper.from_array(np.eye(outputs, dtype=np.float32), "I")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def query(model: Path, set_text: str = "window:2", epsilon: float = 0.25) -> Query:
    return Query(load_model(model), clip(), SetSpecification(set_text, epsilon), same_class(0, 3))


def verified() -> Outcome:
    leaves = (
        Leaf(0, {"patch": [2, 6, 6], "first": [0, 0, 0], "last": [1, 0, 0]}, 0, 0.4, "union bound"),
        Leaf(1, {"patch": [2, 6, 6], "first": [2, 0, 0], "last": [2, 0, 0]}, 3, float("inf"), "milp"),
    )
    certificate = Certificate(0.4, {"union bound": 1, "milp": 1}, leaves)
    seconds = {"attack": 0.5, "milp": 1.0}
    return Outcome(Verified(certificate), 0.4, 7.2, CLEAN_OUTPUTS, "milp", 1.5, seconds, {"programs": 1})


def falsified(query: Query, stage: str = "attack") -> Outcome:
    """The darkest first frames of the set; class 1 leads."""
    attacked = query.clip.clone()
    if stage != "clean":
        attacked[:, :2] = query.set.build(query.clip).lower[:, :2]
        attacked = attacked.float().double().clamp(min=query.set.build(query.clip).lower)
    verdict = Falsified(Counterexample(attacked, (25.2, 36.0, 0.0), -10.8, stage))
    return Outcome(verdict, float("-inf"), -10.8, CLEAN_OUTPUTS, stage, 0.1, {"attack": 0.1}, {})


def unknown() -> Outcome:
    return Outcome(
        Unknown(Reason.TIME, "out of time after 60 s with 3 parts left"), -0.5, 0.7, CLEAN_OUTPUTS, None, 60.0
    )
