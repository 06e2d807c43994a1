"""What a child answers about real questions, without the child.

By hand: a network that sums the clip and says class 0 when the sum is above 0.5, on a clip of four frames of four
voxels of 0.1: the margin is 1.1, and an attacker on two frames takes at most 8 x eps of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from stbp_milp.batch import answer as answering
from stbp_milp.batch.answer import answer, cut, word_of
from stbp_milp.batch.folder import Folder
from stbp_milp.batch.split import whole_of
from stbp_milp.batch.supervised import Ended, Limits
from stbp_milp.batch.task import Part, Settings, Task, read_tasks
from stbp_milp.batch.worker import result_of
from stbp_milp.instances import read_specification
from stbp_milp.network.model import load_model
from stbp_milp.query import Configuration
from stbp_milp.records import Record, query_key
from stbp_milp.results import InstanceResult
from stbp_milp.st_bench import SHIPPED
from stbp_milp.verdict import Outcome, Reason, Unknown
from stbp_milp.verify import verify

CLIP = (1, 4, 2, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """f(x) = (sum of relu(x), 0.5) over 16 voxels, as an ONNX file."""
    clip = helper.make_tensor_value_info("clip", TensorProto.FLOAT, [1, *CLIP])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])
    weight = np.stack([np.ones(16), np.zeros(16)]).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["clip"], ["positive"]),
        helper.make_node("Flatten", ["positive"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["scores"], transB=1),
    ]
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.array([0.0, 0.5], dtype=np.float32), "bias"),
    ]
    graph = helper.make_graph(nodes, "sum", [clip], [scores], constants)
    path = tmp_path_factory.mktemp("model") / "sum.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture
def ask(tmp_path: Path, model: Path) -> Callable[..., Task]:
    def make(**entries: Any) -> Task:
        np.save(tmp_path / "clip.npy", np.full(CLIP, 0.1, dtype=np.float32))
        asked = {"schema": 1, "clip": "clip.npy", "set": "any-frames:2", "epsilon": 0.05} | entries
        (tmp_path / "one.json").write_text(json.dumps(asked))
        (tmp_path / "instances.csv").write_text(f"{model},one.json,20\n")
        folder = Folder(tmp_path / "out").prepared()
        (task,) = read_tasks(tmp_path / "instances.csv", folder.path, Settings(memory_bytes=2 << 30))
        return task

    return make


def told(task: Task) -> InstanceResult:
    heard: dict[str, Any] = {}
    found = answer(task, heard.update)
    return result_of(task, Ended("itself", 1.0, 1 << 20, heard | {"answer": found}, ""), 1, {"node": "", "worker": ""})


def test_a_verified_instance_has_its_record(ask: Callable[..., Task]) -> None:
    result = told(ask())
    assert result.word == "verified"
    assert result.record is not None
    record = Record(**result.record)
    assert record.configuration["timeout"] == 20.0  # as asked, though reading the model took some of it
    assert record.set["text"] == "any-frames:2"
    assert result.bounds()[0] == pytest.approx(1.1 - 8 * 0.05, abs=1e-4)
    json.loads(result.to_json())


def test_a_falsified_instance_has_its_evidence(ask: Callable[..., Task]) -> None:
    task = ask(epsilon=0.1, set="everywhere")
    result = told(task)
    assert result.word == "falsified"
    assert sorted(result.evidence) == ["animation", "clip", "picture"]
    attacked = np.load(task.folder / result.evidence["clip"])["attacked"]
    assert attacked.sum() <= 0.5 + 1e-6


def test_parts_make_the_whole(ask: Callable[..., Task], model: Path) -> None:
    task = ask()
    assert cut(replace(task, part=Part(0, 4, task.key)), print) == {"parts": 4, "neurons": [[]] * 4}
    assert cut(replace(task, part=Part(0, 11, task.key)), print) == {"parts": 6, "neurons": [[]] * 6}
    whole = whole_of(task, [told(task.of_part(index, 4)) for index in range(4)], 4)
    assert whole.word == "verified"
    assert whole.record is not None
    single = told(task)
    assert single.record is not None
    assert whole.record["key"] == single.record["key"]
    assert whole.record["clip"] == single.record["clip"]
    query = read_specification(task.specification).query(load_model(model))
    assert whole.record["key"] == query_key(query, Configuration(20.0, memory_bytes=int(0.95 * (2 << 30))))
    assert json.loads(whole.to_json())["record"]["certificate"]["parts"]


def test_a_set_of_one_member_is_cut_by_neurons(
    ask: Callable[..., Task], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (relu,) = load_model(model).network.relus
    monkeypatch.setattr(
        answering, "neurons_to_split", lambda query, configuration, count: ((relu, 0), (relu, 3))[:count]
    )
    task = ask(set="frames:1,2")
    found = cut(replace(task, part=Part(0, 7, task.key)), print)
    assert found == {"parts": 1, "neurons": [[[relu, 0], [relu, 3]]]}
    subtrees = task.subtrees(0, 1, found["neurons"][0])
    results = [told(subtree) for subtree in subtrees]
    assert [result.part for result in results] == [subtree.part and subtree.part.in_words() for subtree in subtrees]
    whole, single = whole_of(task, results, 1), told(task)
    assert (whole.word, single.word) == ("verified", "verified")
    assert whole.record is not None
    assert single.record is not None
    assert whole.record["key"] == single.record["key"] != results[0].record["key"]  # type: ignore[index]
    assert whole.record["set"] == single.record["set"]
    easy = ask()
    assert cut(replace(easy, part=Part(0, 12, easy.key)), print) == {"parts": 6, "neurons": [[[relu, 0]]] * 6}


def test_what_first_bounds_settle_is_not_cut(ask: Callable[..., Task]) -> None:
    task = ask(set="frames:1,2")
    assert cut(replace(task, part=Part(0, 4, task.key)), print) == {"parts": 1, "neurons": [[]]}


def test_bad_input_is_an_error_with_its_sentence(ask: Callable[..., Task]) -> None:
    result = told(ask(set="nowhere"))
    assert (result.word, result.record) == ("error", None)
    assert "unknown set 'nowhere'" in str(result.reason)
    assert cut(replace(ask(set="nowhere"), part=Part(0, 4, "")), print)["word"] == "error"


def test_time_that_reading_took_is_not_there_to_verify(ask: Callable[..., Task]) -> None:
    task = replace(ask(), limits=Limits(1e-6, 0.3, 1 << 30))
    assert told(task).word == "timeout"


@pytest.mark.parametrize(
    ("kind", "word"),
    [(Reason.TIME, "timeout"), (Reason.MEMORY, "memout"), (Reason.TOLERANCE, "unknown"), (Reason.ROUNDING, "unknown")],
)
def test_words_of_what_stays_open(kind: Reason, word: str) -> None:
    assert word_of(Outcome(Unknown(kind, "why"), -1.0, 1.0, (0.0,), None, 1.0)) == (word, "why")


def test_out_of_time_is_what_the_verifier_calls_it() -> None:
    """The words above are the verifier's own."""
    hard = SHIPPED / "specifications" / "activity-S-pgd-chosen-04.json"
    query = read_specification(hard).query(load_model(SHIPPED / "onnx" / "activity-S-pgd.onnx"))
    assert word_of(verify(query, Configuration(timeout=1e-3)))[0] == "timeout"


def test_what_was_asked_is_told_before_it_is_answered(ask: Callable[..., Task]) -> None:
    heard: list[dict[str, Any]] = []
    answer(ask(set="window:2"), heard.append)
    first = heard[0]["asked"]
    assert (first["set"], first["epsilon"]) == ("window:2", 0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_not_replaced_by_the_cpu(ask: Callable[..., Task]) -> None:
    result = told(replace(ask(), gpu=True))
    assert result.word == "error"
    assert "CUDA" in (result.reason or "")


def test_a_model_that_changed_is_not_answered_for(ask: Callable[..., Task]) -> None:
    task = ask()
    result = told(replace(task, listed=task.listed | {"model_sha256": "0" * 64}))
    assert result.word == "error"
    assert "not what it was" in (result.reason or "")
