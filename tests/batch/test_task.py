"""The key: the same for the same question asked in the same way, another for any other; and no torch for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stbp_milp.batch.task import Settings, Task, read_tasks
from stbp_milp.errors import InputError

ENTRIES = {"schema": 1, "clip": "clips.npz:clips[0]", "set": "window:2", "epsilon": 0.1, "expected": "verified"}


def write(
    folder: Path, entries: dict[str, Any] = ENTRIES, *, model: bytes = b"model", indent: int | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "net.onnx").write_bytes(model)
    np.savez(folder / "clips.npz", clips=np.zeros((2, 1, 2, 2, 2), dtype=np.float32))
    (folder / "one.json").write_text(json.dumps(entries, indent=indent))
    (folder / "instances.csv").write_text("net.onnx,one.json,7\n")
    return folder / "instances.csv"


DEFAULT = Settings()


def only(path: Path, settings: Settings = DEFAULT) -> Task:
    (task,) = read_tasks(path, path.parent, settings)
    return task


def test_a_task_says_what_the_list_says(tmp_path: Path) -> None:
    task = only(write(tmp_path), Settings(memory_bytes=1 << 30, threads=3))
    assert task.limits.timeout == 7
    assert (task.limits.memory_bytes, task.limits.threads) == (1 << 30, 3)
    assert task.expected == "verified"
    assert task.listed["model"] == "net.onnx"
    assert task.model == tmp_path / "net.onnx"


def test_place_layout_expectation_and_threads_are_not_in_the_key(tmp_path: Path) -> None:
    key = only(write(tmp_path / "a")).key
    changed = {name: ENTRIES[name] for name in reversed(ENTRIES)} | {"expected": "falsified"}
    assert only(write(tmp_path / "b", changed, indent=2), Settings(threads=5, grace=2.0)).key == key


@pytest.mark.parametrize(
    "change", [{"set": "window:1"}, {"epsilon": 0.2}, {"label": 1}, {"clip": "clips.npz:clips[1]"}]
)
def test_another_question_has_another_key(tmp_path: Path, change: dict[str, Any]) -> None:
    assert only(write(tmp_path / "a")).key != only(write(tmp_path / "b", ENTRIES | change)).key


def test_other_files_and_other_ways_have_other_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    keys = {only(path).key}
    keys |= {only(path, s).key for s in (Settings(timeout=8), Settings(memory_bytes=1), Settings(seed=1))}
    keys.add(only(path, Settings(solver="none")).key)
    keys.add(only(write(tmp_path / "b", model=b"other")).key)
    other = write(tmp_path / "c")
    np.savez(tmp_path / "c" / "clips.npz", clips=np.ones((2, 1, 2, 2, 2), dtype=np.float32))
    keys.add(only(other).key)
    assert len(keys) == 7


def test_tensors_in_other_files_count(tmp_path: Path) -> None:
    entry = b"\x0a\x08location\x12\x0bweights.bin"  # as onnx.save writes where a tensor's values lie
    path = write(tmp_path, model=b"model" + entry)
    (tmp_path / "weights.bin").write_bytes(b"1")
    key = only(path).key
    (tmp_path / "weights.bin").write_bytes(b"2")
    assert only(replace_file(tmp_path, path)).key != key


def replace_file(folder: Path, path: Path) -> Path:
    """The list again under another name of its folder: digests are kept by path during a run."""
    moved = folder.with_name(folder.name + "-moved")
    folder.rename(moved)
    return moved / path.name


def test_parts_have_keys_of_their_own(tmp_path: Path) -> None:
    task = only(write(tmp_path))
    parts = [task.of_part(index, count) for count in (2, 3) for index in range(count)]
    assert len({task.key, *(part.key for part in parts)}) == 6
    assert replace(parts[0], part=None, key=task.key) == task


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "clips.npz").unlink()
    with pytest.raises(InputError, match=r"clips\.npz"):
        only(path)


def test_driver_and_worker_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, stbp_milp.cli.batch, stbp_milp.batch.engine, stbp_milp.cli.batch_display, stbp_milp.inputs;"
        "sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_all_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_bytes(b"model")
    (tmp_path / "list.csv").write_text("there.onnx,first.json,5\nsecond.onnx,first.json,5\n")
    with pytest.raises(InputError) as refused:
        read_tasks(tmp_path / "list.csv", tmp_path, Settings())
    assert all(name in str(refused.value) for name in ("first.json", "second.onnx"))
    assert "there.onnx" not in str(refused.value).replace("not there", "")


@pytest.mark.parametrize(("first", "second"), [({}, {"expected": "maybe"}), ({}, {"name": 7})])
def test_a_question_that_the_reader_refuses_has_a_key_of_its_own(
    tmp_path: Path, first: dict[str, object], second: dict[str, object]
) -> None:
    usual = {"schema": 1, "clip": "c.npy", "set": "window:1", "epsilon": 0.1}
    (tmp_path / "m.onnx").write_bytes(b"model")
    (tmp_path / "c.npy").write_bytes(b"clip")
    for name, entries in (("a", first), ("b", second)):
        (tmp_path / f"{name}.json").write_text(json.dumps(usual | entries))
    (tmp_path / "list.csv").write_text("m.onnx,a.json,5\nm.onnx,b.json,5\n")
    one, other = read_tasks(tmp_path / "list.csv", tmp_path, Settings())
    assert one.key != other.key


def test_a_list_may_leave_out_the_compression_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "m.onnx.gz").write_bytes(b"model")
    (tmp_path / "p.vnnlib.gz").write_bytes(b"property")
    (tmp_path / "list.csv").write_text("\ufeffm.onnx,p.vnnlib,5\n")
    (one,) = read_tasks(tmp_path / "list.csv", tmp_path, Settings())
    assert (one.model.name, one.specification.name) == ("m.onnx.gz", "p.vnnlib.gz")
