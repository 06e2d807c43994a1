"""Linux processes: finding all descendants, measuring their memory, and ending them.

An instance may fork, change its process group or its session, or leave orphans. The keeper is their *subreaper*:
orphans become its children, so every process of an instance stays a descendant of the keeper.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress

import psutil

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_KILL_SECONDS = 5.0  # a process in an uninterruptible system call survives SIGKILL for a while


def adopt_orphans() -> None:
    """Makes orphans among this process's descendants its children from now on."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Makes the kernel kill this process as soon as the process `parent`, which forked it, ends."""
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent has already ended


def descendants() -> list[psutil.Process]:
    """Returns all processes that descend from this one, except zombies."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def resident_bytes() -> int:
    """Returns the bytes that the descendants of this process hold (RSS; shared pages count once per process)."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def kill_descendants() -> bool:
    """Kills all descendants, and whatever they fork meanwhile; returns False if some survive for 5 seconds."""
    end = time.monotonic() + _KILL_SECONDS
    while left := descendants():
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        reap()
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    reap()
    return True


def reap() -> None:
    """Reaps children that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
