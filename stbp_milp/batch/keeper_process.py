"""The keeper's own process: it forks one child per instance, watches it, and ends whatever is left of it.

`keeper.Keeper` starts it as `python -m stbp_milp.batch.keeper_process DESCRIPTOR MODULE...`. The modules are imported
once, and children inherit them by the fork. The process does nothing else, so no job can block it. It ends, with all
its descendants, when the worker at the other end of the socket is gone.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

from stbp_milp.batch.processes import adopt_orphans, die_with_parent, kill_descendants, resident_bytes
from stbp_milp.batch.supervised import CANCEL, EVIDENCE_SECONDS, OUTPUT_CHARACTERS, Ended, Limits, Work

_POLL = 0.1  # seconds
_GROWTH = 4e9  # bytes per second that a process can touch; near the limit, memory is checked more often
_ALLOWANCE = 0.05  # the share of the limit by which a process may exceed it between two checks
_PIPE = 1 << 16  # the capacity of a pipe, so that one read empties the pipe of a child that ended

logger = logging.getLogger(__name__)


def main(descriptor: int, modules: list[str]) -> None:
    """Serves the worker at the other end of the socket until the worker closes it."""
    adopt_orphans()
    with _ending_with(descriptor):
        for module in modules:
            importlib.import_module(module)
    worker: Connection[Ended, Work | str] = Connection(descriptor)
    while True:
        try:
            order = worker.recv()
            if isinstance(order, Work):  # otherwise it is a late "cancel" of an instance that has ended
                worker.send(_Run.start(order, worker).ended())
        except (EOFError, OSError):
            kill_descendants()
            return


@contextmanager
def _ending_with(descriptor: int) -> Iterator[None]:
    """Ends this process if the other end of the socket closes during the block, whose imports take seconds."""
    other_end = select.poll()
    other_end.register(descriptor, 0)  # a hang-up is reported even without an event mask
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if other_end.poll(100):  # milliseconds
                os._exit(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()  # children must be forked while no other thread runs


@dataclass(eq=False)
class _Run:
    """A child and the two pipes it writes to: its reports as lines of JSON, and its printed output."""

    pid: int
    told: int
    printed: int
    limits: Limits
    worker: Connection[Ended, Work | str]
    began: float
    deadline: float
    open: list[int] = field(default_factory=list)
    pending: bytes = b""
    output: bytes = b""
    heard: dict[str, Any] = field(default_factory=dict)
    held: int = 0
    peak: int = 0

    @classmethod
    def start(cls, work: Work, worker: Connection[Ended, Work | str]) -> _Run:
        told, tells = os.pipe()
        printed, prints = os.pipe()
        keeper, began = os.getpid(), time.monotonic()
        pid = os.fork()
        if pid == 0:
            # A child that held the socket or the reading ends would hide the death of their owners.
            for end in (worker.fileno(), told, printed):
                os.close(end)
            _child(work, keeper, tells, prints)
        for end in (tells, prints):
            os.close(end)
        deadline = began + work.limits.timeout + work.limits.grace
        return cls(pid, told, printed, work.limits, worker, began, deadline, [told, printed])

    def ended(self) -> Ended:
        """Watches the child until it ends, and leaves none of its processes behind."""
        ended_by, status = None, None
        while ended_by is None and status is None:
            ended_by = self._over()
            if ended_by is None:
                self._listen(self._pause())
                status = self._status()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        clean = kill_descendants()
        seconds = time.monotonic() - self.began
        self._listen(0)
        for end in (self.told, self.printed):
            os.close(end)
        text = self.output[-OUTPUT_CHARACTERS:].decode(errors="replace")
        how = ended_by or _in_words(status or 0)
        return Ended(how, seconds, self.peak, self.heard, text, clean)

    def _over(self) -> str | None:
        """Returns why the child has to end now, or None."""
        if self.worker.poll():
            if self.worker.recv() == CANCEL:
                return "cancelled"
        elif time.monotonic() >= self.deadline:
            return "timeout"
        self.held = resident_bytes()
        self.peak = max(self.peak, self.held)
        return "memory" if self.held > self.limits.memory_bytes else None

    def _pause(self) -> float:
        """Returns the seconds until the next check."""
        limit = self.limits.memory_bytes
        room = ((1 + _ALLOWANCE) * limit - self.held) / _GROWTH
        return max(0.003, min(_POLL, room, self.deadline - time.monotonic()))

    def _listen(self, seconds: float) -> None:
        """Reads what the child reports and prints; waits at most `seconds` for something to arrive."""
        ready, _, _ = select.select([*self.open, self.worker.fileno()], [], [], seconds)
        for end in self.open.copy():
            if end not in ready:
                continue
            content = os.read(end, _PIPE)
            if not content:
                self.open.remove(end)
            elif end == self.told:
                self._hear(content)
            else:
                self.output = (self.output + content)[-4 * OUTPUT_CHARACTERS :]

    def _hear(self, content: bytes) -> None:
        *lines, self.pending = (self.pending + content).split(b"\n")
        for line in lines:
            with suppress(ValueError):
                self.heard.update(json.loads(line))
        if self.heard.pop("settled", False):
            self.deadline = max(self.deadline, time.monotonic() + EVIDENCE_SECONDS)

    def _status(self) -> int | None:
        """Returns the child's wait status, or None while it runs."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.peak = max(self.peak, usage.ru_maxrss * 1024)
        return status


def _in_words(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit {code}" if code else "itself"


def _child(work: Work, keeper: int, tells: int, prints: int) -> NoReturn:
    """Runs the job in a session of its own that cannot outlive the keeper, and exits."""
    code = 70
    try:
        os.setsid()
        die_with_parent(keeper)
        for handled in (signal.SIGINT, signal.SIGTERM):
            signal.signal(handled, signal.SIG_DFL)
        for end in (1, 2):
            os.dup2(prints, end)
        os.close(prints)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError):  # if the whole machine runs out of memory, the kernel kills the instance first
            Path("/proc/self/oom_score_adj").write_text("500")
        module, _, function = work.job.partition(":")
        job = getattr(importlib.import_module(module), function)

        def tell(entries: dict[str, Any]) -> None:
            line = json.dumps(entries).encode() + b"\n"
            while line:
                line = line[os.write(tells, line) :]

        tell({"answer": job(ForkingPickler.loads(work.argument), tell)})
        code = 0
    except Exception:
        logger.exception("the job failed")
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
