#!/usr/bin/env python
"""What a batch must show, at full size: planted misbehaviour on two nodes, limits, resuming, throughput.

    python scripts/study_batch.py [--only nodes|limits|throughput]

Writes a table to results/studies/batch.md (with --only to the screen). The planted jobs are those of tests/batch.
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psutil
from rich.console import Console
from study_files import STUDIES, Row, markdown, provenance, show

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "batch"))

from lists import TOKEN, living, start_driver, write_list  # noqa: E402
from planted import WORDS  # noqa: E402

from stbp_milp.batch import nodes  # noqa: E402
from stbp_milp.batch.engine import EngineOptions, run_batch  # noqa: E402
from stbp_milp.batch.folder import Folder  # noqa: E402
from stbp_milp.batch.mirror import FILE, Mirror, in_file  # noqa: E402
from stbp_milp.batch.task import Settings, read_tasks  # noqa: E402
from stbp_milp.results import read_result  # noqa: E402

HEADER = ("what", "measured", "demanded", "holds")
SHIPPED = ROOT / "stbp_milp" / "st_bench" / "shipped"
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
WITHIN, BEYOND = 0.5, 0.10  # seconds after a timeout, share of a memory limit
LEFT_SECONDS, RESUME_SECONDS, OVERHEAD_SECONDS = 3.0, 5.0, 0.3
TRIVIAL = 1000


def row(what: str, measured: str, demanded: str, holds: bool) -> Row:
    return (what, measured, demanded, "yes" if holds else "NO")


# --- 1: two nodes, of which one is killed, and then the driver --------------------------------------------------


def environment(token: str) -> dict[str, str]:
    paths = [str(ROOT / "tests" / "batch"), str(ROOT)]
    return {**os.environ, TOKEN: token, "PYTHONPATH": os.pathsep.join(paths)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until the condition holds, at most so many."""
    began = time.monotonic()
    while not condition() and time.monotonic() - began < seconds:
        time.sleep(0.05)
    return time.monotonic() - began


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


def study_nodes(folder: Path) -> list[Row]:
    plants = [plant for plant, number in MIX.items() for _ in range(number)]
    shuffled = [plants[(7 * i) % len(plants)] for i in range(len(plants))]  # 7 and 200 have no common factor
    path, out, token = write_list(folder, shuffled), folder / "out", secrets.token_hex(8)
    records = out / "records"

    def done() -> int:
        return len(list(records.glob("*.json"))) if records.exists() else 0

    began = time.monotonic()
    with scheduler(token) as address:
        first, second = start_node(address, token), start_node(address, token)
        driver = start_driver(path, out, 0, token, address)
        wait_for(lambda: done() >= 50, 300)
        kill_node(second)
        wait_for(lambda: done() >= 100, 300)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        at_kill = done()
        third = start_node(address, token)
        again = start_driver(path, out, 0, token, address)
        code = again.wait(600)
        left_after = wait_for(lambda: not of_instances(token), 10)
        for node in (first, third):
            node.terminate()
            node.wait()
    all_gone = wait_for(lambda: not living(token), 10)
    seconds = time.monotonic() - began
    query = "SELECT position, word FROM instances LEFT JOIN results USING (key) ORDER BY position"
    words = [word for _, word in in_file(out / FILE, query)]
    as_planted = words == [WORDS[plant] for plant in shuffled]
    mix = ", ".join(f"{number} {word}" for word, number in Counter(words).most_common())
    total = len(shuffled)
    return [
        row(
            f"{total} planted instances, 2 nodes; a node killed at 50 results, the driver at {at_kill}",
            f"{done()} results, {seconds:.0f} s; driver's exit code {code}",
            f"{total} results, none twice, none lost",
            done() == total and code == 0,
        ),
        row("their words", mix, "the exact planted mix", as_planted),
        row(
            "processes of instances after the batch",
            f"none {left_after:.1f} s later",
            f"none {LEFT_SECONDS:g} s later",
            left_after <= LEFT_SECONDS,
        ),
        row("processes after the nodes ended", f"none {all_gone:.1f} s later", "none", all_gone <= LEFT_SECONDS),
    ]


# --- 2: limits --------------------------------------------------------------------------------------------------


def study_limits(folder: Path) -> list[Row]:
    plants = [plant for _ in range(5) for plant in ("hang", "stubborn", "forks", "hog", "verified", "abort", "orphans")]
    out = Folder(folder / "out").prepared()
    limit = 1 << 30
    tasks = read_tasks(write_list(folder, plants), out.path, Settings(memory_bytes=limit))
    options = EngineOptions(job="planted:by_specification")
    os.environ["PYTHONPATH"] = environment("")["PYTHONPATH"]
    with Mirror(out) as mirror:
        mirror.begin(tasks)
        run_batch(tasks, out, mirror, lambda: nodes.local(2), options)
    results = [out.result(task.key) for task in tasks]
    found = [(plant, result) for plant, result in zip(plants, results, strict=True) if result is not None]
    late = [result.seconds - result.limits["timeout"] for _, result in found if result.word == "timeout"]
    beyond = [result.memory_bytes / limit - 1 for plant, result in found if plant == "hog"]
    as_planted = sum(result.word == WORDS[plant] for plant, result in found)
    hangs = f"{len(late)} hangs (in C with the interpreter's lock, deaf to signals, with orphans)"
    return [
        row(f"{hangs}: end after the timeout", f"{max(late):.2f} s at most", f"{WITHIN} s", max(late) <= WITHIN),
        row(
            f"{len(beyond)} memory hogs, limit 1 GiB: most memory held beyond it",
            f"{max(beyond):.1%} at most",
            f"{BEYOND:.0%}",
            max(beyond) <= BEYOND,
        ),
        row(
            "their neighbours",
            f"{as_planted} of {len(plants)} end as planted",
            f"{len(plants)} of {len(plants)}",
            as_planted == len(plants),
        ),
    ]


# --- 3 and 6: a list of trivial questions on a real network -------------------------------------------------------


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


def run_cli(path: Path, out: Path, jobs: int) -> float:
    command = [sys.executable, str(ROOT / "scripts" / "run_batch.py"), str(path), "--out", str(out), "--quiet"]
    began = time.monotonic()
    subprocess.run([*command, "--jobs", str(jobs)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def study_throughput(folder: Path) -> list[Row]:
    jobs = os.cpu_count() or 1
    path, out = trivial_list(folder, TRIVIAL), folder / "out"
    used = cpu_seconds()
    seconds = run_cli(path, out, jobs)
    used = (cpu_seconds() - used) / TRIVIAL
    words = Counter(word for (word,) in in_file(out / FILE, "SELECT word FROM results"))
    results = [read_result(record) for record in (out / "records").iterdir()]
    in_child = statistics.mean(result.seconds for result in results)
    verifying = statistics.mean(result.record["seconds"] for result in results if result.record is not None)
    times = {entry.name: entry.stat().st_mtime_ns for entry in (out / "records").iterdir()}
    resumed = run_cli(path, out, jobs)
    untouched = times == {entry.name: entry.stat().st_mtime_ns for entry in (out / "records").iterdir()}
    each = seconds * jobs / TRIVIAL
    return [
        row(
            f"{TRIVIAL} trivial instances of a real network, {jobs} jobs, start and end of the batch included",
            f"{seconds:.0f} s, {each:.3f} s an instance and job, of which {in_child:.3f} s in the child and there "
            f"{verifying:.3f} s verifying; {dict(words)}",
            "all verified",
            words == Counter(verified=TRIVIAL),
        ),
        row(
            "overhead an instance and job: all but the verifying",
            f"{each - verifying:.3f} s",
            f"under {OVERHEAD_SECONDS} s",
            each - verifying < OVERHEAD_SECONDS,
        ),
        row(
            "time of the processor an instance, verifying and all (does not depend on the machine's load)",
            f"{used:.3f} s",
            f"under {OVERHEAD_SECONDS} s",
            used < OVERHEAD_SECONDS,
        ),
        row(
            "the finished batch again",
            f"{resumed:.1f} s, {'nothing' if untouched else 'SOMETHING'} executed",
            f"nothing executed, under {RESUME_SECONDS:g} s",
            untouched and resumed < RESUME_SECONDS,
        ),
    ]


def cpu_seconds() -> float:
    """Of all processes that this one has waited for, and that those have."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


STUDIES_BY_NAME = {"nodes": study_nodes, "limits": study_limits, "throughput": study_throughput}


@click.command()
@click.option("--only", type=click.Choice(list(STUDIES_BY_NAME)), help="One of the studies, to the screen.")
def main(only: str | None) -> None:
    """Run the studies; exit code 1 where something does not hold."""
    console = Console()
    rows: list[Row] = []
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    for name, study in STUDIES_BY_NAME.items():
        if only in (None, name):
            with tempfile.TemporaryDirectory(prefix="study-batch-") as folder:
                found = study(Path(folder))
            show(console, name, HEADER, found)
            rows += found
    if only is None:
        STUDIES.mkdir(parents=True, exist_ok=True)
        text = "# Batches\n\n" + markdown(HEADER, rows) + "\n" + provenance(1)
        text += f"Load of the machine at the start (1, 5, 15 minutes): {load}.\n"
        (STUDIES / "batch.md").write_text(text)
    sys.exit(0 if all(row[-1] == "yes" for row in rows) else 1)


if __name__ == "__main__":
    main()
