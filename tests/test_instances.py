"""Specifications and instance lists: what is written is read again; what is wrong is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stbp_milp.errors import InputError
from stbp_milp.inputs import parse_domain
from stbp_milp.instance_list import ListedInstance, read_instances
from stbp_milp.instances import Specification, read_specification, write_specification
from stbp_milp.interop.writer import write_vnnlib
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


def test_a_specification_names_the_axes(tmp_path: Path) -> None:
    clip = np.linspace(0, 1, 24, dtype=np.float32).reshape(3, 2, 2, 2)  # (T, H, W, C)
    np.save(tmp_path / "clip.npy", clip)
    model = load_model(nn.Sequential(nn.Flatten(), nn.Linear(24, 3)), (3, 2, 2, 2))
    written = Specification("clip.npy", SET, tmp_path, layout="THWC")
    write_specification(written, tmp_path / "one.json")
    query = read_specification(tmp_path / "one.json").query(model)
    assert query.clip.shape == query.model.network.input_shape == (2, 3, 2, 2)
    np.testing.assert_array_equal(query.clip.numpy(), np.moveaxis(clip, -1, 0))
    with pytest.raises(InputError, match="another order"):
        write_vnnlib(query, tmp_path / "one.vnnlib")


def test_a_specification_whose_axes_are_in_doubt_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.full((4, 3, 3, 1), 0.5, dtype=np.float32))
    model = load_model(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), (4, 3, 3, 1))
    with pytest.raises(InputError, match="THWC"):
        Specification("clip.npy", SET, tmp_path).query(model)
    assert Specification("clip.npy", SetSpecification("everywhere", 0.1), tmp_path).query(model).clip.shape == (
        4,
        3,
        3,
        1,
    )


def test_a_list_is_read_relative_to_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "instances.csv"
    path.write_text("onnx/a.onnx, specs/b.json, 60\n\nonnx/c.onnx,vnnlib/d.vnnlib.gz,0.5\n")
    assert read_instances(path) == [
        ListedInstance(tmp_path / "onnx/a.onnx", tmp_path / "specs/b.json", 60.0),
        ListedInstance(tmp_path / "onnx/c.onnx", tmp_path / "vnnlib/d.vnnlib.gz", 0.5),
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
    with pytest.raises(InputError, match=r"there is no file .*missing\.csv"):
        read_instances(tmp_path / "missing.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"sett": "window:2"}, "unknown fields: sett"),
        ({"clip": 3}, "clip 3"),
        ({"epsilon": "1//255"}, "1//255"),
        ({"epsilon": [0.1]}, "epsilon \\[0.1\\]"),
        ({"epsilon": True}, "epsilon True"),
        ({"domain": [0, 1, 2]}, "domain"),
        ({"label": 1.5}, "label 1.5"),
        ({"tolerance": "small"}, "tolerance 'small'"),
        ({"expected": "robust"}, "expected 'robust'"),
        ({"layout": "ABCD"}, "layout 'ABCD'"),
        ({"layout": 4}, "layout 4"),
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


def test_a_byte_order_mark_does_not_count(tmp_path: Path) -> None:
    entries = json.dumps({"schema": 1, "clip": "clip.npy", "set": "window:2", "epsilon": 0.1})
    (tmp_path / "one.json").write_text(entries, encoding="utf-8-sig")
    assert read_specification(tmp_path / "one.json").clip == "clip.npy"
    (tmp_path / "instances.csv").write_text("a.onnx,one.json,1\n", encoding="utf-8-sig")
    assert read_instances(tmp_path / "instances.csv")[0].model == tmp_path / "a.onnx"


def test_a_nul_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "instances.csv").write_text("a.onnx,b.json,1\n\na\0.onnx,b.json,1\n")
    with pytest.raises(InputError, match=r"line 3 of .* NUL"):
        read_instances(tmp_path / "instances.csv")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"schema": 1, "set": "window:2", "epsilon": 0.1}, "no field clip;"),
        (
            {"schema": 1, "clip": "c.npy", "epsilon": 0.1, "Clip": 2},
            "unknown fields: Clip and no field set",
        ),
    ],
)
def test_missing_fields_and_unknown_ones_are_told_apart(
    tmp_path: Path, entries: dict[str, object], message: str
) -> None:
    (tmp_path / "one.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=message):
        read_specification(tmp_path / "one.json")


@pytest.mark.parametrize("depth", [3, 400, 100_000])
def test_what_is_nested_is_refused_at_every_depth(tmp_path: Path, depth: int) -> None:
    value = "[" * depth + "]" * depth
    (tmp_path / "one.json").write_text(f'{{"schema": 1, "clip": "c.npy", "set": {value}, "epsilon": 0.1}}')
    with pytest.raises(InputError, match=r"nested too deeply|lists or objects in set"):
        read_specification(tmp_path / "one.json")


def test_a_compressed_file_stands_for_the_one_that_is_listed(tmp_path: Path) -> None:
    for name in ("a.onnx.gz", "b.vnnlib", "b.vnnlib.gz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "instances.csv").write_text("a.onnx,b.vnnlib,1\n")
    assert read_instances(tmp_path / "instances.csv") == [
        ListedInstance(tmp_path / "a.onnx.gz", tmp_path / "b.vnnlib", 1.0)
    ]


def test_bytes_are_divided_where_no_domain_is_given(tmp_path: Path) -> None:
    np.save(tmp_path / "clip.npy", np.full((1, 2, 2, 2), 51, dtype=np.uint8))
    model = load_model(nn.Sequential(nn.Flatten(), nn.Linear(8, 3)), (1, 2, 2, 2))
    common = {"schema": 1, "clip": "clip.npy", "set": "window:2", "epsilon": 0.1}
    for domain, value in ((None, float(np.float32(51) / np.float32(255))), ([0, 255], 51.0)):
        (tmp_path / "one.json").write_text(json.dumps(common | ({} if domain is None else {"domain": domain})))
        specification = read_specification(tmp_path / "one.json")
        assert float(specification.query(model).clip.max()) == value
        write_specification(specification, tmp_path / f"again-{domain}.json")
        assert read_specification(tmp_path / f"again-{domain}.json") == specification


def test_numbers_of_a_refusal_can_be_copied_into_the_domain() -> None:
    clip = torch.tensor([-2.1179039478302, 1 / 3, 2.64], dtype=torch.float32).double().reshape(1, 1, 1, 3)
    with pytest.raises(InputError) as refused:
        SetSpecification("everywhere", 0.1).build(clip)
    low, high = re.findall(r"from (\S+) to (\S+),", str(refused.value))[0]
    SetSpecification("everywhere", 0.1, parse_domain(f"{low},{high}")).build(clip)


@pytest.mark.parametrize("text", ["window:0", "patch:0x0@1", "patch:3x0@1", "patch:1x1@0", "moving-patch:0x1@1"])
def test_sets_without_a_voxel_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"set '{text}' is empty"):
        SetSpecification(text, 0.1).build(torch.zeros(1, 3, 3, 3))
