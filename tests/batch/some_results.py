"""Results as workers write them, without workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from stbp_milp.batch.supervised import Limits
from stbp_milp.batch.task import Part, Task
from stbp_milp.batch.worker import unfinished
from stbp_milp.results import InstanceResult, key_of
from tests.batch.planted import with_record


def task(folder: Path, key: str = "", part: Part | None = None, question: str = "2") -> Task:
    """A task with the key that its question has, or another."""
    listed = {"model": "m.onnx", "specification": "s.json", "model_sha256": "1", "specification_sha256": question}
    key = key or key_of("1", question, 60, 1 << 30, "auto", 0)
    return Task(
        key=key,
        folder=folder,
        model=Path("m.onnx"),
        specification=Path("s.json"),
        listed=listed,
        expected=None,
        limits=Limits(60, 0.3, 1 << 30),
        solver="auto",
        seed=0,
        part=part,
    )


def result(task: Task, word: str = "verified", **changes: Any) -> InstanceResult:
    one = unfinished(task, "planted", "itself", 1, {"node": "n", "worker": "w"})
    known = with_record(task.listed["model_sha256"], {"word": word}, task.part).get("record")
    if known is not None:
        changes = {"record": known, "margin": known["margin"]} | changes
    return replace(one, word=word, reason=None, seconds=1.0, **changes)


def record(lower: float, **changes: Any) -> dict[str, Any]:
    """A verified part's."""
    leaf = {"clause": 0, "part": {}, "phases": 0, "lower": lower, "method": "split"}
    return {
        "key": "of the part",
        "model": {"digest": "1"},
        "clip": {"sha256": "2"},
        "set": {"text": "window:2", "epsilon": 0.1, "domain": [0.0, 1.0], "part": [0, 2]},
        "property": {"sha256": "3"},
        "configuration": {"timeout": 60.0},
        "verdict": "verified",
        "margin": {"lower": lower, "upper": lower + 1},
        "seconds": 2.0,
        "counts": {"subproblems": 5},
        "certificate": {"lower": lower, "closed": {"split": 2}, "leaves": [leaf, leaf]},
    } | changes
