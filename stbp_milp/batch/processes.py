"""Processes as Linux sees them: who descends from whom, what they hold, and how to end them all.

An instance may fork, change its process group or its session, or leave orphans. The keeper is their *subreaper*:
an orphan becomes its child, so that every process of an instance stays a descendant of the keeper.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress

import psutil

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_KILL_SECONDS = 5.0  # a process in an uninterruptible system call outlives SIGKILL for a while


def adopt_orphans() -> None:
    """Orphans among this process's descendants become its children from now on."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process as soon as the process `parent`, which forked it, ends."""
    _prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it ended before


def descendants() -> list[psutil.Process]:
    """All processes that descend from this one, without those that ended and wait to be reaped."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def resident_bytes() -> int:
    """Memory that the descendants of this process hold (RSS; pages that they share count for each)."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def kill_descendants() -> bool:
    """SIGKILL to every descendant until there is none, also of what they fork meanwhile; False: some outlive it."""
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
    """Forget children that ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
