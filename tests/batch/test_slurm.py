"""A batch through a real Slurm on this machine, on demand, as root, where Slurm is installed.

    apt-get install slurm-wlm munge; pip install -e '.[cluster]'
    python -m pytest -m slow tests/batch/test_slurm.py

Starts munged, slurmctld and slurmd on loopback in a temporary folder, with a configuration of their own, runs 200
planted jobs and a list of real instances as Slurm jobs through dask-jobqueue, and ends everything.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from stbp_milp.batch import nodes
from stbp_milp.batch.engine import EngineOptions, run_batch
from stbp_milp.batch.folder import Folder
from stbp_milp.batch.mirror import FILE, Mirror, in_file
from stbp_milp.batch.task import Settings, read_tasks
from tests.batch.lists import MIX, all_planted, environment, free_port, trivial_list, wait_for, write_list
from tests.batch.planted import WORDS

pytestmark = pytest.mark.slow

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
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
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
    monkeypatch.setenv("SLURM_CONF", str(conf))
    munge = [f"--{name}={folder}/munge.{end}" for name, end in (("socket", "socket"), ("key-file", "key"))]
    munge += [f"--{name}={folder}/munge.{end}" for name, end in (("pid-file", "pid"), ("log-file", "log"))]
    with ExitStack() as daemons:
        daemons.enter_context(daemon("munged", "--foreground", *munge, f"--seed-file={folder}/munge.seed"))
        wait_for((folder / "munge.socket").exists, 10)
        logs = ["-L", f"{folder}/logs/slurmctld.log"]
        daemons.enter_context(daemon("slurmctld", "-D", "-f", str(conf), *logs))
        logs = ["-L", f"{folder}/logs/slurmd.log"]
        daemons.enter_context(daemon("slurmd", "-D", "-f", str(conf), "-N", node, *logs))
        wait_for(lambda: "idle" in said("sinfo", "-h", "-o", "%T"), 30)
        if "idle" not in said("sinfo", "-h", "-o", "%T"):
            log = (folder / "logs/slurmctld.log").read_text()[-2000:]
            pytest.fail(f"Slurm did not start:\n{said('sinfo')}\n{log}")
        yield
        subprocess.run(["scancel", "--user", "root"], check=False)
        wait_for(lambda: not said("squeue", "-h").strip(), 15)


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The queue file of a running Slurm."""
    missing = why_not()
    if missing is not None:
        pytest.skip(missing)
    with (
        tempfile.TemporaryDirectory(prefix="slurm-check-", ignore_cleanup_errors=True) as name,
        slurm(Path(name), monkeypatch),
    ):
        path = Path(name) / "slurm.yaml"
        path.write_text(QUEUE.format(folder=name, path=environment("")["PYTHONPATH"]))
        yield path


def test_planted_jobs_end_as_they_must(queue: Path) -> None:
    shuffled, folder = all_planted(MIX), queue.parent / "planted"
    out = Folder(folder / "out").prepared()
    tasks = read_tasks(write_list(folder, shuffled), out.path, Settings(memory_bytes=300 << 20))
    jobs: set[str] = set()

    def look(progress: object) -> None:
        jobs.update(said("squeue", "-h", "-o", "%i %j %T").splitlines() if len(jobs) < 4 else [])

    with Mirror(out) as mirror:
        mirror.begin(tasks)
        options = EngineOptions(job="tests.batch.planted:by_specification")
        run_batch(tasks, out, mirror, lambda: nodes.queue("slurm", nodes.read_queue_file(queue)), options, look)
    query = "SELECT position, word FROM instances LEFT JOIN results USING (key) ORDER BY position"
    assert [word for _, word in in_file(out.path / FILE, query)] == [WORDS[plant] for plant in shuffled]
    assert jobs


def test_real_instances_through_the_command_line(queue: Path) -> None:
    folder = queue.parent / "real"
    command = [sys.executable, "-m", "stbp_milp", "batch", str(trivial_list(folder, REAL)), "--slurm", str(queue)]
    subprocess.run([*command, "--out", str(folder / "out"), "--quiet"], check=True)
    words = Counter(word for (word,) in in_file(folder / "out" / FILE, "SELECT word FROM results"))
    assert words == Counter(verified=REAL)
