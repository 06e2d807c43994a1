"""Instance lists of planted jobs, and who is left of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from planted import WORDS

TOKEN = "STBP_PLANTED"  # an environment variable that all processes of a test have


def timeout_of(plant: str) -> float:
    """Seconds: short for what must be killed for its time, else far more than even a busy machine needs."""
    return 1.0 if WORDS.get(plant) == "timeout" else 60.0


def write_list(folder: Path, plants: Sequence[Any], log: Path | None = None) -> Path:
    """An instance list with a plant a line.

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
    here = Path(__file__).parent
    environment = {**os.environ, TOKEN: token, "PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    return subprocess.Popen([sys.executable, str(here / "planted_driver.py"), *arguments], env=environment)


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
