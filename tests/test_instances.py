"""Specifications and instance lists: what is written is read again; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from stbp_milp.errors import InputError
from stbp_milp.instance_list import Instance, read_instances
from stbp_milp.instances import Specification, read_specification, write_specification
from stbp_milp.network.model import load_model
from stbp_milp.sets import SetSpecification

SET = SetSpecification("window:2", 0.05, (0.0, 2.0))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = Specification("clips.npz:clips[3]", SET, tmp_path, label=2, top_k=2, expected="verified")
    write_specification(written, tmp_path / "one.json")
    assert read_specification(tmp_path / "one.json") == written


def test_a_specification_becomes_a_query_about_a_model(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.full((1, 2, 2, 2), 0.5, dtype=np.float32))
    model = load_model(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), (1, 2, 2, 2))
    query = Specification("clip.npy", SET, tmp_path, label=1).query(model)
    assert query.property.text == "class 1 stays first"
    assert query.set is SET
    other = load_model(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (2, 2, 2, 2))
    with pytest.raises(InputError, match="has shape"):
        Specification("clip.npy", SET, tmp_path).query(other)


def test_a_list_is_read_relative_to_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "instances.csv"
    path.write_text("onnx/a.onnx, specs/b.json, 60\n\nonnx/c.onnx,vnnlib/d.vnnlib.gz,0.5\n")
    assert read_instances(path) == [
        Instance(tmp_path / "onnx/a.onnx", tmp_path / "specs/b.json", 60.0),
        Instance(tmp_path / "onnx/c.onnx", tmp_path / "vnnlib/d.vnnlib.gz", 0.5),
    ]


@pytest.mark.parametrize("line", ["a.onnx,b.json", "a.onnx,b.json,soon", "a.onnx,b.json,0", "a,b,c,1", "a,b,nan"])
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "instances.csv").write_text("a.onnx,b.json,1\n" + line + "\n")
    with pytest.raises(InputError, match="line 2 of"):
        read_instances(tmp_path / "instances.csv")


def test_an_empty_or_missing_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("\n")
    with pytest.raises(InputError, match="no instances"):
        read_instances(tmp_path / "empty.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_instances(tmp_path / "missing.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"sett": "window:2"}, "unknown fields: sett"),
        ({"clip": 3}, "clip 3"),
        ({"epsilon": "1/255"}, "epsilon '1/255'"),
        ({"epsilon": True}, "epsilon True"),
        ({"domain": [0, 1, 2]}, "domain"),
        ({"label": 1.5}, "label 1.5"),
        ({"tolerance": "small"}, "tolerance 'small'"),
        ({"expected": "robust"}, "expected 'robust'"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    entries = {"schema": 1, "clip": "clip.npy", "set": "window:2", "epsilon": 0.1} | change
    (tmp_path / "one.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=message):
        read_specification(tmp_path / "one.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '"text"', "{", '{"schema": 1}'])
def test_what_is_no_specification_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "one.json").write_text(content)
    with pytest.raises(InputError, match=r"one\.json"):
        read_specification(tmp_path / "one.json")
