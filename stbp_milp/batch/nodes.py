"""Where a batch runs: on worker processes of this machine, an existing Dask scheduler, or the jobs of a cluster.

A worker runs one instance at a time. Local workers listen on 127.0.0.1 only.
"""

from __future__ import annotations

import importlib
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import yaml
from distributed import Client, LocalCluster

from stbp_milp.errors import InputError

QUEUES = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "lsf": "LSFCluster",
    "sge": "SGECluster",
    "htcondor": "HTCondorCluster",
}
_LOOPBACK = "127.0.0.1"
_SETTINGS = {
    # Instances have their own limits, and marks that count dead workers; Dask's mechanisms would only interfere.
    "distributed.scheduler.allowed-failures": 1_000_000,
    "distributed.scheduler.work-stealing": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.diagnostics.nvml": False,
    "distributed.comm.timeouts.connect": "30s",
}


@dataclass(frozen=True)
class QueueFile:
    """The contents of a cluster's file.

    Attributes:
        jobs: number of jobs to queue.
        threads: number of threads per instance: the cores of a job, divided by its workers.
        options: the options of dask_jobqueue's class.
    """

    jobs: int
    threads: int
    options: dict[str, Any]


@contextmanager
def local(jobs: int, resources: dict[str, float] | None = None) -> Iterator[Client]:
    """Starts `jobs` worker processes on this machine, numbered from 0; each has the resources."""
    scratch = tempfile.TemporaryDirectory(prefix="stbp-milp-", ignore_cleanup_errors=True)
    with dask.config.set(_SETTINGS), scratch as folder:
        with _interrupts_ignored():
            cluster = LocalCluster(
                n_workers=jobs,
                threads_per_worker=1,
                processes=True,
                host=_LOOPBACK,
                dashboard_address=f"{_LOOPBACK}:0",
                worker_dashboard_address=f"{_LOOPBACK}:0",
                memory_limit=None,
                local_directory=folder,
                silence_logs=50,
                resources=resources,
            )
        with cluster, Client(cluster) as client:
            yield client


@contextmanager
def existing(address: str) -> Iterator[Client]:
    """Connects to a scheduler that is already running.

    Raises:
        InputError: no scheduler answers at the address.
    """
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"no Dask scheduler answers at {address!r} ({reason}); start one with: dask scheduler"
        ) from error
    with client:
        yield client


@contextmanager
def queue(kind: str, file: QueueFile) -> Iterator[Client]:
    """Queues jobs on a cluster, through dask-jobqueue.

    Raises:
        InputError: dask-jobqueue is not installed, or does not take the file's options.
    """
    try:
        module = importlib.import_module("dask_jobqueue")
    except ImportError as error:
        raise InputError(
            f"--{kind} needs dask-jobqueue, which is not installed; pip install 'stbp-milp[cluster]'"
        ) from error
    options = dict(file.options)
    # A worker runs one instance at a time, with its share of the job's cores.
    options["worker_extra_args"] = [*options.get("worker_extra_args", []), "--nthreads", "1", "--memory-limit", "0"]
    with dask.config.set(_SETTINGS):
        try:
            cluster = getattr(module, QUEUES[kind])(**options)
        except (TypeError, ValueError) as error:
            raise InputError(f"dask-jobqueue does not take the file's options ({error}); see its manual") from error
        with cluster, Client(cluster) as client:
            cluster.scale(jobs=file.jobs)
            yield client


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Makes processes started in the block ignore Ctrl-C: it is for the driver, which ends them in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def read_queue_file(path: Path) -> QueueFile:
    """Reads a YAML file with `jobs` and the options of dask_jobqueue's class, of which `cores` is required.

    Raises:
        InputError: there is no such file, or its contents are wrong.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{str(path)!r} cannot be read ({reason}); give a YAML file, see results/README.md") from error
    options = dict(entries) if isinstance(entries, dict) else {}
    jobs, cores, processes = options.pop("jobs", None), options.get("cores"), options.setdefault("processes", 1)
    if not all(type(number) is int and number > 0 for number in (jobs, cores, processes)):
        raise InputError(
            f"{str(path)!r} needs whole numbers for jobs (how many to queue) and cores (per job), and may have "
            "processes (workers per job, by default 1)"
        )
    options.setdefault("job_name", "stbp-milp")
    options.setdefault("memory", "4GB")
    return QueueFile(jobs, max(1, cores // processes), options)
