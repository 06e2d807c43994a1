#!/usr/bin/env python
"""A batch through a real Slurm on this machine: `python scripts/slurm_check.py`, as root, where Slurm is installed.

Starts munged, slurmctld and slurmd on loopback in a temporary folder, with a configuration of their own, runs the 200
planted instances of scripts/study_batch.py and a list of real ones as Slurm jobs through dask-jobqueue, compares what
comes out, and ends everything. Says SKIPPED (exit code 77) where Slurm, root's rights or dask-jobqueue are missing:

    apt-get install slurm-wlm munge; pip install -e '.[cluster]'
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from study_batch import MIX, ROOT, environment, free_port, trivial_list, wait_for

from stbp_milp.batch import nodes
from stbp_milp.batch.engine import EngineOptions, run_batch
from stbp_milp.batch.folder import Folder
from stbp_milp.batch.mirror import FILE, Mirror, in_file
from stbp_milp.batch.task import Settings, read_tasks

sys.path.insert(0, str(ROOT / "tests" / "batch"))

from lists import write_list
from planted import WORDS

SKIPPED = 77  # the exit code that test harnesses know
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel")
REAL = 20
CONFIGURATION = """\
ClusterName=check
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={control_port}
SlurmdPort={node_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName={node} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=check Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""
QUEUE = """\
jobs: 2
cores: 1
processes: 1
memory: 900MB
queue: check
walltime: "00:30:00"
interface: lo
log_directory: {folder}/logs
local_directory: {folder}/scratch
job_script_prologue:
  - export PYTHONPATH={path}
  - export OMP_NUM_THREADS=1
worker_extra_args: [--no-dashboard]
scheduler_options: {{dashboard_address: "127.0.0.1:0"}}
"""


def why_not() -> str | None:
    """What is missing here."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"Slurm is not installed here ({', '.join(missing)} not found); apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd starts jobs as root alone"
    if find_spec("dask_jobqueue") is None:
        return "dask-jobqueue is not installed; pip install -e '.[cluster]'"
    return None


@contextmanager
def daemon(*command: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A cluster of one node, this machine; the environment points to it."""
    node = socket.gethostname().split(".")[0]
    folder.chmod(0o755)  # munged wants its socket to be within everybody's reach
    for name in ("state", "spool", "logs", "scratch"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(CONFIGURATION.format(node=node, folder=folder, control_port=free_port(), node_port=free_port()))
    os.environ["SLURM_CONF"] = str(conf)
    munge = [f"--{name}={folder}/munge.{end}" for name, end in (("socket", "socket"), ("key-file", "key"))]
    munge += [f"--{name}={folder}/munge.{end}" for name, end in (("pid-file", "pid"), ("log-file", "log"))]
    with ExitStack() as daemons:
        daemons.enter_context(daemon("munged", "--foreground", *munge, f"--seed-file={folder}/munge.seed"))
        wait_for((folder / "munge.socket").exists, 10)
        logs = ["-L", f"{folder}/logs/slurmctld.log"]
        daemons.enter_context(daemon("slurmctld", "-D", "-f", str(conf), *logs))
        logs = ["-L", f"{folder}/logs/slurmd.log"]
        daemons.enter_context(daemon("slurmd", "-D", "-f", str(conf), "-N", node, *logs))
        seconds = wait_for(lambda: "idle" in said("sinfo", "-h", "-o", "%T"), 30)
        if "idle" not in said("sinfo", "-h", "-o", "%T"):
            sys.exit(
                f"FAILED: Slurm did not start:\n{said('sinfo')}\n{(folder / 'logs/slurmctld.log').read_text()[-2000:]}"
            )
        print(f"Slurm on loopback, ready after {seconds:.1f} s: {said('sinfo', '-h').strip()}")
        yield
        subprocess.run(["scancel", "--user", "root"], check=False)
        wait_for(lambda: not said("squeue", "-h").strip(), 15)


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def planted(folder: Path, queue: Path) -> bool:
    """The 200 planted instances of study 1."""
    plants = [plant for plant, number in MIX.items() for _ in range(number)]
    shuffled = [plants[(7 * i) % len(plants)] for i in range(len(plants))]
    out = Folder(folder / "out").prepared()
    tasks = read_tasks(write_list(folder, shuffled), out.path, Settings(memory_bytes=300 << 20))
    jobs: set[str] = set()

    def look(progress: object) -> None:
        jobs.update(said("squeue", "-h", "-o", "%i %j %T").splitlines() if len(jobs) < 4 else [])

    began = time.monotonic()
    with Mirror(out) as mirror:
        mirror.begin(tasks)
        options = EngineOptions(job="planted:by_specification")
        run_batch(tasks, out, mirror, lambda: nodes.queue("slurm", nodes.read_queue_file(queue)), options, look)
    query = "SELECT position, word FROM instances LEFT JOIN results USING (key) ORDER BY position"
    words = [word for _, word in in_file(out.path / FILE, query)]
    right = words == [WORDS[plant] for plant in shuffled]
    print(f"jobs seen in the queue: {sorted(jobs)}")
    print(f"planted: {dict(Counter(words))} in {time.monotonic() - began:.0f} s; as planted: {right}")
    return right and bool(jobs)


def real(folder: Path, queue: Path) -> bool:
    """Real questions through the command line."""
    out = folder / "out"
    command = [sys.executable, str(ROOT / "scripts" / "run_batch.py"), str(trivial_list(folder, REAL))]
    began = time.monotonic()
    code = subprocess.run([*command, "--slurm", str(queue), "--out", str(out), "--quiet"], check=False).returncode
    words = Counter(word for (word,) in in_file(out / FILE, "SELECT word FROM results"))
    print(f"real: {dict(words)} in {time.monotonic() - began:.0f} s, exit code {code}")
    return code == 0 and words == Counter(verified=REAL)


def main() -> int:
    missing = why_not()
    if missing is not None:
        print(f"SKIPPED: {missing}")
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="slurm-check-", ignore_cleanup_errors=True) as name, slurm(Path(name)):
        folder = Path(name)
        queue = folder / "slurm.yaml"
        queue.write_text(QUEUE.format(folder=folder, path=environment("")["PYTHONPATH"]))
        right = [study(folder / study.__name__, queue) for study in (planted, real)]
    print(f"{'OK' if all(right) else 'FAILED'} on {platform.node()}")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
