"""Jobs that behave as badly as instances can; what a job does stands in its specification, as {"plant": "hang"}.

Imported by the children of keepers, so nothing heavy here.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stbp_milp.batch.supervised import Tell
from stbp_milp.batch.task import Part, Task

LONG = 600  # seconds: longer than any test
WORDS = {
    "verified": "verified",
    "falsified": "falsified",
    "unknown": "unknown",
    "hang": "timeout",
    "stubborn": "timeout",
    "forks": "timeout",
    "deaf": "timeout",
    "hog": "memout",
    "hogs": "memout",
    "abort": "error",
    "raises": "error",
    "orphans": "verified",
}  # how each of them must end


def by_specification(task: Task, tell: Tell) -> dict[str, Any]:
    """What the task's specification says; with a record of a verdict, as the real job's, but no evidence."""
    entries = json.loads(Path(task.specification).read_text())
    log = entries.get("log")
    if log:
        with Path(log).open("a") as stream:
            stream.write(f"{task.key}\n")
    by_part = entries.get("by_part")
    answer = do(by_part[_number(task.part)] if by_part and task.part else entries["plant"], tell)
    return with_record(task.listed["model_sha256"], answer, task.part)


def with_record(model: str, answer: dict[str, Any], part: Part | None = None) -> dict[str, Any]:
    """The answer, and where it is a verdict, a record that says the same."""
    word = answer.get("word")
    if word not in ("verified", "falsified"):
        return answer
    bound = 0.5 if word == "verified" else -0.5
    asked: dict[str, Any] = {"text": "window:2", "epsilon": 0.1, "domain": [0.0, 1.0]}
    if part is not None:
        asked |= {"part": [part.index, part.count]} if part.count > 1 else {}
        asked |= {"phases": [list(phase) for phase in part.phases]} if part.phases else {}
    record = {
        "key": "of the record",
        "clip": {"sha256": "2"},
        "set": asked,
        "property": {"sha256": "3"},
        "configuration": {"timeout": 60.0},
        "seconds": 1.0,
        "counts": {},
        "verdict": word,
        "model": {"digest": model},
        "margin": {"lower": bound, "upper": bound},
        "certificate": {"lower": bound, "closed": {}, "leaves": []} if word == "verified" else None,
        "counterexample": {"margin": bound} if word == "falsified" else None,
    }
    return answer | {"record": record}


def _number(part: Part) -> int:
    """Of a part, or of a subtree in the order of `Task.subtrees`."""
    signs = [sign for _, _, sign in reversed(part.phases)]
    return part.index + sum(2**place for place, sign in enumerate(signs) if sign < 0)


def cut(task: Task, tell: Tell) -> dict[str, Any]:
    """Into as many parts as the specification has plants, or one part by the neurons that it names."""
    entries = json.loads(Path(task.specification).read_text())
    neurons = entries.get("neurons", [])
    parts = 1 if neurons else len(entries.get("by_part", [0]))
    return {"parts": parts, "neurons": [neurons] * parts}


def never_cut(task: Task, tell: Tell) -> dict[str, Any]:
    """Hangs over where to cut."""
    return do("hang", tell)


def do(plant: str, tell: Tell) -> dict[str, Any]:
    """Behave so."""
    tell({"margin": {"lower": -1.5, "upper": 2.0}, "stage_seconds": {"attack": 0.1}})
    return _PLANTS[plant]()


def _says(word: str) -> Callable[[], dict[str, Any]]:
    return lambda: {"word": word}


def _hang() -> dict[str, Any]:
    """In C, holding the interpreter's lock: no signal handler and no thread of Python's runs."""
    ctypes.PyDLL(None).sleep(LONG)
    return {}


def _stubborn() -> dict[str, Any]:
    """Ignores every signal that can be ignored, and computes."""
    for number in range(1, signal.NSIG):
        with suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    re.match(r"(a+)+$", "a" * 60 + "b")
    return {}


def _leave_orphans() -> None:
    """Grandchildren in sessions of their own, whose parents are gone."""
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                time.sleep(LONG)
            os._exit(0)
    subprocess.Popen(["sleep", str(LONG)], start_new_session=True)


def _forks() -> dict[str, Any]:
    _leave_orphans()
    return _hang()


def _orphans() -> dict[str, Any]:
    _leave_orphans()
    return {"word": "verified"}


def _hog() -> dict[str, Any]:
    kept = []
    while True:
        kept.append(bytearray(b"x" * (1 << 24)))


def _hogs() -> dict[str, Any]:
    """Memory that only the sum over the tree shows."""
    for _ in range(4):
        if os.fork() == 0:
            kept = bytearray(b"x" * (100 << 20))
            time.sleep(LONG)
            os._exit(len(kept) % 2)
    return _hang()


def _deaf() -> dict[str, Any]:
    """Prints without end."""
    while True:
        os.write(1, b"x" * (1 << 16))


def _abort() -> dict[str, Any]:
    os.abort()


def _raises() -> dict[str, Any]:
    raise ValueError("planted")


def _kills_keeper() -> dict[str, Any]:
    _leave_orphans()
    return _kills_keeper_alone()


def _kills_keeper_alone() -> dict[str, Any]:
    os.kill(os.getppid(), signal.SIGKILL)
    return _hang()


def _kills_worker() -> dict[str, Any]:
    keeper = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()
    os.kill(int(keeper[1]), signal.SIGKILL)
    return _hang()


def _device() -> dict[str, Any]:
    return {"word": "unknown", "reason": os.environ.get("CUDA_VISIBLE_DEVICES")}


def _slow() -> dict[str, Any]:
    time.sleep(0.5)
    return {"word": "falsified"}


_PLANTS: dict[str, Callable[[], dict[str, Any]]] = {
    **{word: _says(word) for word in ("verified", "falsified", "unknown")},
    "hang": _hang,
    "stubborn": _stubborn,
    "forks": _forks,
    "orphans": _orphans,
    "hog": _hog,
    "hogs": _hogs,
    "deaf": _deaf,
    "abort": _abort,
    "raises": _raises,
    "kills keeper": _kills_keeper,
    "kills keeper alone": _kills_keeper_alone,
    "kills worker": _kills_worker,
    "slowly falsified": _slow,
    "device": _device,
}


# Jobs for a keeper alone: the argument is the plant.
def directly(plant: str, tell: Tell) -> dict[str, Any]:
    """Behave as the argument says."""
    return do(plant, tell)


def settles(argument: object, tell: Tell) -> dict[str, Any]:
    """Has its verdict in time, and takes longer to write it down."""
    tell({"settled": True})
    time.sleep(1.2)
    return {"word": "falsified"}
