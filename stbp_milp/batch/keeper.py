"""A worker's handle of its keeper, the process that runs instances for it (`keeper_process`)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from stbp_milp.batch.supervised import CANCEL, Ended, Limits, Work
from stbp_milp.errors import StbpError

_LOOK = 0.1  # seconds between two checks of whether to cancel


class KeeperLostError(StbpError, RuntimeError):
    """The keeper ended: an instance killed it, or it could not start."""


class Keeper:
    """Runs one instance at a time, each in its own process and within its limits.

    Args:
        modules: modules to import once, before the first instance.
        threads: number of threads, for libraries that read it from the environment.
        environment: additional environment variables for the keeper and its children.
    """

    def __init__(self, modules: Sequence[str], threads: int = 1, environment: Mapping[str, str] | None = None) -> None:
        ours, theirs = socket.socketpair()
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        counts["OPENBLAS_NUM_THREADS"] = "1"  # numpy's threads start with the import and would not survive forks
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        with theirs:
            # It has its own session: Ctrl-C in the terminal is for the driver, which ends everything in order.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stbp_milp.batch.keeper_process", str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **path, **counts, **(environment or {})},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._connection: Connection[Work | str, Ended] = Connection(ours.detach())

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, job: str, argument: Any, limits: Limits, cancelled: Callable[[], bool] = lambda: False) -> Ended:
        """Runs the job "module:function" with its argument in its own process, until it ends or reaches its limits.

        Args:
            cancelled: called ten times per second; the instance is ended when it returns True.

        Raises:
            KeeperLostError: the keeper died in the meantime.
        """
        try:
            self._connection.send(Work(job, bytes(ForkingPickler.dumps(argument)), limits))
            told = False
            while not self._connection.poll(_LOOK):
                if not told and cancelled():
                    self._connection.send(CANCEL)
                    told = True
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise KeeperLostError(f"the process that runs instances (pid {self.pid}) ended") from error

    def close(self) -> None:
        """Ends the keeper and whatever it runs."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
            return
        self._process.kill()
        self._process.wait()
