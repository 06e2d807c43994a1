"""Instance lists of planted jobs, and who is left of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from stbp_milp.st_bench import SHIPPED
from tests.batch.planted import WORDS

MIX = {
    "verified": 100,
    "falsified": 30,
    "unknown": 20,
    "hang": 10,
    "stubborn": 5,
    "forks": 5,
    "hog": 10,
    "hogs": 5,
    "abort": 10,
    "orphans": 5,
}
"""200 planted jobs: how many of each kind."""

TOKEN = "STBP_PLANTED"  # an environment variable that all processes of a test have


def timeout_of(plant: str) -> float:
    """Seconds: short for what must be killed for its time, else far more than even a busy machine needs."""
    return 1.0 if WORDS.get(plant) == "timeout" else 60.0


def write_list(folder: Path, plants: Sequence[Any], log: Path | None = None) -> Path:
    """An instance list with one planted job per line.

    A tuple is an instance whose parts do as its entries say, a list one (of one part) whose subtrees do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(b"planted")
    lines = []
    for number, plant in enumerate(plants):
        entries: dict[str, Any] = {"number": number, "plant": plant, "log": log and str(log)}
        timeout = timeout_of(plant) if isinstance(plant, str) else 2.0
        if isinstance(plant, tuple | list):
            entries |= {"plant": plant[0], "by_part": list(plant)}
        if isinstance(plant, list):
            entries["neurons"] = [[1, at] for at in range(len(plant).bit_length() - 1)]
        (folder / f"{number:04d}.json").write_text(json.dumps(entries))
        lines.append(f"model.onnx,{number:04d}.json,{timeout}\n")
    (folder / "instances.csv").write_text("".join(lines))
    return folder / "instances.csv"


def start_driver(path: Path, out: Path, jobs: int, token: str, scheduler: str = "") -> subprocess.Popen[bytes]:
    """A driver of planted instances in a process of its own, as `scripts/run_batch.py` is of real ones."""
    arguments = [str(path), str(out), str(jobs), *([scheduler] if scheduler else [])]
    command = [sys.executable, "-m", "tests.batch.planted_driver", *arguments]
    return subprocess.Popen(command, env=environment(token))


def environment(token: str) -> dict[str, str]:
    """The environment of processes that find this package, and that are recognised by the token."""
    return {**os.environ, TOKEN: token, "PYTHONPATH": os.pathsep.join(sys.path)}


def all_planted(mix: Mapping[str, int]) -> list[str]:
    """So many of every kind, well mixed, in the same order every time; their number must not be a multiple of 7."""
    plants = [plant for plant, number in mix.items() for _ in range(number)]
    return [plants[(7 * i) % len(plants)] for i in range(len(plants))]


def trivial_list(folder: Path, count: int) -> Path:
    """Questions that one bound answers, on the shipped driving network."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        clip = f"{SHIPPED}/clips/driving-S.npz:clips[1]"
        asked = {"schema": 1, "clip": clip, "set": "frames:0", "epsilon": 1e-4 + 1e-7 * number, "tolerance": 8.0}
        (folder / f"{number:04d}.json").write_text(json.dumps(asked))
        lines.append(f"{SHIPPED}/onnx/driving-S-pgd.onnx,{number:04d}.json,30\n")
    (folder / "instances.csv").write_text("".join(lines))
    return folder / "instances.csv"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until the condition holds, at most so many."""
    began = time.monotonic()
    while not condition() and time.monotonic() - began < seconds:
        time.sleep(0.05)
    return time.monotonic() - began


def living(token: str) -> list[int]:
    """Processes that have the token in their environment, but those that wait to be reaped."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TOKEN) == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def has_orphans(token: str) -> bool:
    """Is there what a "forks" leaves behind?"""
    commands = []
    for pid in living(token):
        with suppress(psutil.Error):
            commands.append(psutil.Process(pid).cmdline()[:1])
    return ["sleep"] in commands


def gone(token: str, seconds: float = 3.0) -> bool:
    """Are all processes with the token gone within so long?"""
    end = time.monotonic() + seconds
    while living(token):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
