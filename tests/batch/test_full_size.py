"""Batches at full size, on demand: planted misbehaviour on two nodes, limits, resuming, throughput.

python -m pytest -m slow tests/batch/test_full_size.py
"""

from __future__ import annotations

import os
import resource
import secrets
import signal
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from stbp_milp.batch import nodes
from stbp_milp.batch.engine import EngineOptions, run_batch
from stbp_milp.batch.folder import Folder
from stbp_milp.batch.mirror import FILE, Mirror, in_file
from stbp_milp.batch.task import Settings, read_tasks
from stbp_milp.results import read_result
from tests.batch.lists import (
    MIX,
    all_planted,
    environment,
    free_port,
    living,
    start_driver,
    trivial_list,
    wait_for,
    write_list,
)
from tests.batch.planted import WORDS

pytestmark = pytest.mark.slow

WITHIN, BEYOND = 0.5, 0.10  # seconds after a timeout, share of a memory limit
LEFT_SECONDS, OVERHEAD_SECONDS = 3.0, 0.3
TRIVIAL = 1000


@contextmanager
def scheduler(token: str) -> Iterator[str]:
    """A Dask scheduler of its own, as a cluster has one."""
    port = free_port()
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen([*command, "--no-dashboard"], env=environment(token), stderr=subprocess.DEVNULL)
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def start_node(address: str, token: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--memory-limit", "0"]
    command += ["--host", "127.0.0.1", "--no-dashboard"]
    return subprocess.Popen(command, env=environment(token), stderr=subprocess.DEVNULL)


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """SIGKILL to Dask's processes of the node, as when its machine resets them; the keeper has to see to the rest."""
    workers = [child for child in psutil.Process(node.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    for process in [psutil.Process(node.pid), *workers]:
        process.send_signal(signal.SIGKILL)
    node.wait()


def of_instances(token: str) -> list[int]:
    """Processes of instances: what keepers forked (their command line is the keeper's), and what those started."""
    found = []
    for pid in living(token):
        try:
            process = psutil.Process(pid)
            command, parent = process.cmdline(), process.parent()
        except psutil.Error:
            continue
        is_keeper = "stbp_milp.batch.keeper_process" in command
        parent_is_keeper = parent is not None and "stbp_milp.batch.keeper_process" in parent.cmdline()
        if command[:1] == ["sleep"] or (is_keeper and (parent_is_keeper or parent is None or parent.pid == 1)):
            found.append(pid)
    return found


def test_a_killed_node_and_a_killed_driver_lose_nothing(tmp_path: Path) -> None:
    """200 planted jobs on two nodes; a node is killed at 50 results, and the driver at 100."""
    shuffled = all_planted(MIX)
    path, out, token = write_list(tmp_path, shuffled), tmp_path / "out", secrets.token_hex(8)
    records = out / "records"

    def done() -> int:
        return len(list(records.glob("*.json"))) if records.exists() else 0

    with scheduler(token) as address:
        first, second = start_node(address, token), start_node(address, token)
        driver = start_driver(path, out, 0, token, address)
        wait_for(lambda: done() >= 50, 300)
        kill_node(second)
        wait_for(lambda: done() >= 100, 300)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        third = start_node(address, token)
        assert start_driver(path, out, 0, token, address).wait(600) == 0
        assert wait_for(lambda: not of_instances(token), 10) <= LEFT_SECONDS
        for node in (first, third):
            node.terminate()
            node.wait()
    assert wait_for(lambda: not living(token), 10) <= LEFT_SECONDS
    query = "SELECT position, word FROM instances LEFT JOIN results USING (key) ORDER BY position"
    assert [word for _, word in in_file(out / FILE, query)] == [WORDS[plant] for plant in shuffled]


def test_limits_are_kept_beside_jobs_that_hang_and_hog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that hang in C with the interpreter's lock, are deaf to signals, leave orphans, or take memory."""
    plants = [plant for _ in range(5) for plant in ("hang", "stubborn", "forks", "hog", "verified", "abort", "orphans")]
    out, limit = Folder(tmp_path / "out").prepared(), 1 << 30
    tasks = read_tasks(write_list(tmp_path, plants), out.path, Settings(memory_bytes=limit))
    monkeypatch.setenv("PYTHONPATH", environment("")["PYTHONPATH"])
    with Mirror(out) as mirror:
        mirror.begin(tasks)
        run_batch(tasks, out, mirror, lambda: nodes.local(2), EngineOptions(job="tests.batch.planted:by_specification"))
    results = [out.result(task.key) for task in tasks]
    found = [(plant, result) for plant, result in zip(plants, results, strict=True) if result is not None]
    late = max(result.seconds - result.limits["timeout"] for _, result in found if result.word == "timeout")
    beyond = max(result.memory_bytes / limit - 1 for plant, result in found if plant == "hog")
    assert [result.word for _, result in found] == [WORDS[plant] for plant in plants]
    assert late <= WITHIN
    assert beyond <= BEYOND


def test_an_instance_costs_little_beside_its_verification(tmp_path: Path) -> None:
    """1,000 trivial questions on a real network; a finished batch that is started again runs nothing."""
    path, out, records = trivial_list(tmp_path, TRIVIAL), tmp_path / "out", tmp_path / "out" / "records"
    used = children_seconds()
    run_command(path, out)
    used = (children_seconds() - used) / TRIVIAL
    assert Counter(word for (word,) in in_file(out / FILE, "SELECT word FROM results")) == Counter(verified=TRIVIAL)
    results = [read_result(record) for record in records.iterdir()]
    verifying = statistics.mean(result.record["seconds"] for result in results if result.record is not None)
    assert used < OVERHEAD_SECONDS, f"{used:.3f} s of processor time per instance, {verifying:.3f} s verifying"
    written = {entry.name: entry.stat().st_mtime_ns for entry in records.iterdir()}
    run_command(path, out)
    assert written == {entry.name: entry.stat().st_mtime_ns for entry in records.iterdir()}


def run_command(path: Path, out: Path) -> None:
    command = [sys.executable, "-m", "stbp_milp", "batch", str(path), "--out", str(out), "--quiet"]
    subprocess.run([*command, "--jobs", str(os.cpu_count() or 1)], check=True, stdout=subprocess.DEVNULL)


def children_seconds() -> float:
    """Processor time of all processes that this one has waited for, and that those have."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
