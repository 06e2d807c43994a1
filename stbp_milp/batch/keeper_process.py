"""The keeper's own process: forks one child an instance, watches it, and ends whatever is left of it.

Started by `keeper.Keeper` as `python -m stbp_milp.batch.keeper_process DESCRIPTOR MODULE...`. The modules are imported
once; children have them by the fork. The process has nothing else to do, so no job can hold it up, and it ends, with
all its descendants, when the worker at the other end of the socket is gone.
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
_GROWTH = 4e9  # bytes a second that a process can touch; near the limit, memory is looked at more often
_ALLOWANCE = 0.05  # of the limit: how far beyond it a process can get between two looks
_PIPE = 1 << 16  # what a pipe holds, so that one read empties that of a child which ended

logger = logging.getLogger(__name__)


def main(descriptor: int, modules: list[str]) -> None:
    """Serve the worker at the other end of the socket until it closes it."""
    adopt_orphans()
    with _ending_with(descriptor):
        for module in modules:
            importlib.import_module(module)
    worker: Connection[Ended, Work | str] = Connection(descriptor)
    while True:
        try:
            order = worker.recv()
            if isinstance(order, Work):  # a late "cancel" of an instance that ended: nothing to do
                worker.send(_Run.start(order, worker).ended())
        except (EOFError, OSError):
            kill_descendants()
            return


@contextmanager
def _ending_with(descriptor: int) -> Iterator[None]:
    """End this process when the other end of the socket closes; imports take seconds, and do not look."""
    other_end = select.poll()
    other_end.register(descriptor, 0)  # a hang-up is always reported
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
        watcher.join()  # children are forked without other threads


@dataclass(eq=False)
class _Run:
    """A child and the two pipes it writes to: what it tells, as lines of JSON, and what it prints."""

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
            # Who holds the socket, or the ends that are read, keeps others from noticing that someone died.
            for end in (worker.fileno(), told, printed):
                os.close(end)
            _child(work, keeper, tells, prints)
        for end in (tells, prints):
            os.close(end)
        deadline = began + work.limits.timeout + work.limits.grace
        return cls(pid, told, printed, work.limits, worker, began, deadline, [told, printed])

    def ended(self) -> Ended:
        """Watch the child to its end, and leave nothing of it."""
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
        """Why the child has to end now."""
        if self.worker.poll():
            if self.worker.recv() == CANCEL:
                return "cancelled"
        elif time.monotonic() >= self.deadline:
            return "timeout"
        self.held = resident_bytes()
        self.peak = max(self.peak, self.held)
        return "memory" if self.held > self.limits.memory_bytes else None

    def _pause(self) -> float:
        """Seconds until the next look."""
        limit = self.limits.memory_bytes
        room = ((1 + _ALLOWANCE) * limit - self.held) / _GROWTH
        return max(0.003, min(_POLL, room, self.deadline - time.monotonic()))

    def _listen(self, seconds: float) -> None:
        """Take in what the child tells and prints, for so long or until something comes."""
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
        """The child's wait status, once it ended."""
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
    """The child's life: its own session, no way to outlive the keeper, then the job."""
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
        with suppress(OSError):  # where memory runs out on the whole machine, the instance goes first
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
