"""Folders of runs as `run_batch.py` and `verify_complete.py` leave them, made without verifying anything.

The clip is (1, 4, 6, 6); a counterexample changes the frames 1 and 2 of it, by 0.25 downwards.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ("verified", "falsified", "unknown", "timeout", "memout", "error")
ENDED = {"timeout": "timeout", "memout": "memory", "error": "signal SIGABRT"}


@dataclass(frozen=True)
class Made:
    """An instance as a test wants it."""

    specification: str
    word: str = "verified"
    seconds: float = 1.0
    lower: float = 0.5
    upper: float = 2.0
    model: str = "video"
    set: str = "window:2"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def record(made: Made, files: dict[str, str] | None = None) -> dict[str, Any]:
    """What `stbp_milp.records` writes."""
    found = {"margin": -1.0, "outputs": [1.0, 2.0, 0.0], "stage": "attack", "clip_sha256": "", "files": files or {}}
    return {
        "schema": 1,
        "key": digest(f"{made.model} {made.specification}"),
        "date": "2026-11-24T12:00:00.000+00:00",
        "command": "verify_complete --set window:2",
        "model": {"name": made.model, "digest": digest(made.model), "source": f"onnx/{made.model}.onnx"},
        "clip": {
            "source": f"clips.npz:{made.specification}",
            "sha256": digest(made.specification),
            "shape": [1, 4, 6, 6],
        },
        "set": {"text": made.set, "epsilon": 0.25, "domain": [0.0, 1.0]},
        "property": {"text": "class 0 stays first", "sha256": digest("class 0")},
        "configuration": {"timeout": 60.0, "solver": "auto", "seed": 0, "threads": 1, "memory_bytes": None},
        "verdict": made.word,
        "reason": "out of time after 60 s with 3 parts left" if made.word == "unknown" else None,
        "margin": margin(made),
        "clean_outputs": [3.0, 1.0, 0.0],
        "decided_by": {"verified": "split", "falsified": "attack"}.get(made.word),
        "seconds": made.seconds,
        "stage_seconds": {"attack": made.seconds / 4, "split": made.seconds / 2},
        "counts": {"subproblems": 12, "attack trials": 345},
        "certificate": {"lower": made.lower, "closed": {"split": 3, "milp": 0}, "leaves": []}
        if made.word == "verified"
        else None,
        "counterexample": found if made.word == "falsified" else None,
        "versions": {"python": "3.11.7", "stbp-milp": "0.1.0", "commit": "0" * 40},
        "machine": {"node": "node-a", "system": "Linux", "cores": 2},
    }


def margin(made: Made) -> dict[str, Any]:
    if made.word == "verified":
        return {"lower": made.lower, "upper": made.upper}
    return {"lower": "-inf", "upper": -1.0} if made.word == "falsified" else {"lower": -0.5, "upper": "inf"}


def result(made: Made, evidence: dict[str, str] | None = None) -> dict[str, Any]:
    """What a batch writes; instances that were killed have no record inside."""
    key = digest(f"{made.model} {made.specification}")
    return {
        "schema": 1,
        "key": key,
        "word": made.word,
        "reason": f"ended by {ENDED[made.word]}" if made.word in ENDED else None,
        "instance": {
            "model": f"onnx/{made.model}.onnx",
            "specification": f"specs/{made.specification}.json",
            "model_sha256": digest(made.model),
            "specification_sha256": digest(made.specification),
        },
        "expected": None,
        "margin": margin(made),
        "decided_by": {"verified": "split", "falsified": "attack"}.get(made.word),
        "stage_seconds": {"attack": made.seconds / 4},
        "seconds": made.seconds,
        "memory_bytes": 300_000_000,
        "limits": {"timeout": 60.0, "grace": 0.5, "memory_bytes": 4 * 1024**3, "threads": 1},
        "configuration": {"solver": "auto", "seed": 0},
        "attempt": 1,
        "began": "2026-11-24T12:00:00.000+00:00",
        "node": "node-a",
        "worker": "tcp://127.0.0.1:40000",
        "ended_by": ENDED.get(made.word, "itself"),
        "output": "Aborted (core dumped)" if made.word == "error" else "",
        "evidence": evidence or {},
        "part": None,
        "parts": None,
        "versions": {"python": "3.11.7", "stbp-milp": "0.1.0", "commit": "0" * 40},
        "record": None if made.word in ENDED else record(made),
    }


def write_clips(path: Path, shape: tuple[int, ...] = (1, 4, 6, 6)) -> Path:
    """A clean clip with a gradient, and the same with frames 1 and 2 darker by 0.25."""
    clean = np.broadcast_to(np.linspace(0.3, 0.9, shape[-1]), shape).astype(np.float32)
    delta = np.zeros(shape, dtype=np.float32)
    delta[:, 1:3] = -0.25
    scores = {"clean_scores": np.array([3.0, 1.0, 0.0]), "attacked_scores": np.array([1.0, 2.0, 0.0])}
    np.savez(path, clean=clean, attacked=clean + delta, delta=delta, **scores)
    return path


def write_batch(folder: Path, instances: Sequence[Made], pending: Sequence[str] = ()) -> Path:
    """The folder of a batch with these results, in this order in its list, and some instances still to run."""
    for name in ("records", "evidence", "runs"):
        (folder / name).mkdir(parents=True)
    clips = write_clips(folder / "clips.npz").read_bytes()
    lines = []
    for made in instances:
        content = result(made)
        if made.word == "falsified":
            name = f"evidence/{content['key'][:12]}-attack.npz"
            (folder / name).write_bytes(clips)
            content["evidence"] = {"clip": name}
        (folder / "records" / f"{content['key']}.json").write_text(json.dumps(content))
        lines.append((content["instance"]["model"], content["instance"]["specification"], content["key"]))
    lines += [("onnx/video.onnx", f"specs/{name}.json", digest(name)) for name in pending]
    start = {"command": "run_batch instances.csv", "list": str(folder / "instances.csv")}
    (folder / "runs" / "20261124T120000.json").write_text(json.dumps(start))
    with closing(sqlite3.connect(folder / "batch.sqlite")) as connection:
        connection.execute("CREATE TABLE instances (position, model, specification, timeout, key, expected)")
        rows = [(i, model, specification, 60.0, key, None) for i, (model, specification, key) in enumerate(lines)]
        connection.executemany("INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
    return folder


def write_records(folder: Path, instances: Sequence[Made]) -> Path:
    """The folder of runs of `verify_complete.py`."""
    folder.mkdir(parents=True)
    for i, made in enumerate(instances):
        stem = f"20261124T12{i:02d}00000Z-{i:02d}-{made.specification}-{digest(made.specification)[:8]}"
        files = {}
        if made.word == "falsified":
            files = {"clip": write_clips(folder / f"{stem}-attack.npz").name}
        (folder / f"{stem}.json").write_text(json.dumps(record(made, files)))
    return folder


def many(count: int, seed: int = 0) -> list[Made]:
    """A run as it may come out: half verified, some falsified, the rest open; times over four decades."""
    draw = np.random.default_rng(seed)
    words = draw.choice(WORDS, count, p=(0.5, 0.2, 0.15, 0.1, 0.03, 0.02))
    seconds = np.exp(draw.normal(0, 1.8, count)).clip(0.005, 60)
    sets = ("window:2", "any-frames:2", "everywhere")
    models = ("video", "volume", "steering")
    return [
        Made(
            f"clip-{i:05d}",
            str(words[i]),
            60.0 if words[i] in ("unknown", "timeout") else float(seconds[i]),
            float(draw.exponential(0.8)) + 1e-3,
            5.0,
            models[i % 3],
            sets[i // 3 % 3],
        )
        for i in range(count)
    ]
