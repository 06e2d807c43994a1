"""What a Dask worker does with an instance: it passes it to a keeper and writes its result to the batch's folder.

A worker may run several instances at a time, each with its own keeper: a keeper runs only one instance, so all its
descendants belong to that instance.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from stbp_milp.batch.folder import Folder
from stbp_milp.batch.keeper import Keeper, KeeperLostError
from stbp_milp.batch.processes import adopt_orphans, kill_descendants
from stbp_milp.batch.supervised import Ended, Limits
from stbp_milp.batch.task import Task
from stbp_milp.inputs import size_in_words
from stbp_milp.results import InstanceResult
from stbp_milp.versions import versions

ATTEMPTS = 3  # an instance that kills its worker this often ends with an error
_NOTHING = {"lower": "-inf", "upper": "inf"}


class Keepers(WorkerPlugin):
    """The keepers of a worker, started on demand, and the set of cancelled instances.

    Args:
        module: the module that holds the job; every keeper imports it once.
        gpu: does a child see only the device that has its worker's number?
    """

    idempotent = True

    def __init__(self, module: str, threads: int, gpu: bool = False) -> None:
        self.module, self.threads, self.gpu = module, threads, gpu
        self.name = f"stbp-milp {module} {threads} {gpu}"

    def setup(self, worker: Worker) -> None:
        self.environment = {"CUDA_VISIBLE_DEVICES": str(worker.name)} if self.gpu else {}
        self.cancelled: set[tuple[str, str | None]] = set()
        self.lock = threading.Lock()
        self.all: list[Keeper] = []
        self.idle: list[Keeper] = []
        self.marks: set[Path] = set()
        self.ending = False
        adopt_orphans()

    def teardown(self, worker: Worker) -> None:
        """Ends the worker in order: the instances that it runs do not count as failed attempts."""
        with self.lock:
            self.ending = True
            for mark in self.marks:
                mark.unlink(missing_ok=True)
            for keeper in self.all:
                keeper.close()

    def is_cancelled(self, task: Task) -> bool:
        whole = task.key if task.part is None else task.part.whole
        return not self.cancelled.isdisjoint({(task.run, whole), (task.run, None)})

    def run(self, job: str, task: Task, mark: Path) -> Ended:
        """Runs the task's job until it ends.

        Raises:
            KeeperLostError: the keeper died while it ran the job.
        """
        self.marks.add(mark)
        try:
            with self._borrowed() as keeper:
                return keeper.run(job, task, task.limits, lambda: self.is_cancelled(task))
        finally:
            self.marks.discard(mark)

    @contextmanager
    def _borrowed(self) -> Iterator[Keeper]:
        with self.lock:
            if self.ending:
                raise KeeperLostError("the worker is about to end")
            if not self.idle:
                self.all.append(Keeper([self.module], self.threads, self.environment))
                self.idle.append(self.all[-1])
            keeper = self.idle.pop()
        try:
            yield keeper
        except KeeperLostError:
            with self.lock:
                self.all.remove(keeper)
                keeper.close()
                if not self.all:  # this process has inherited what the keeper had adopted
                    kill_descendants()
            raise
        with self.lock:
            self.idle.append(keeper)


def execute(task: Task, job: str, plugin: str) -> InstanceResult | None:
    """Runs a task on the worker that this is called on; returns None if it was cancelled.

    Raises:
        KeeperLostError: the keeper died while it ran the task; the mark of the attempt stays.
        InputError: the result cannot be written.
    """
    worker = get_worker()
    keepers = _keepers(worker, plugin)
    folder = Folder(task.folder)
    if (kept := folder.result(task.key, task.part is not None)) is not None:
        return kept
    if keepers.is_cancelled(task):
        return None
    node = {"node": platform.node(), "worker": worker.address}
    died = len(folder.marks(task.key))
    if died >= ATTEMPTS:
        result = unfinished(task, f"it was begun {died} times, and each time its worker died", "worker", died, node)
    else:
        mark = folder.mark(task.key, {**node, "began": datetime.now(UTC).isoformat()})
        ended = keepers.run(job, task, mark)
        if ended.ended_by == "cancelled":
            mark.unlink(missing_ok=True)
            return None
        result = result_of(task, ended, died + 1, node)
    kept = folder.keep(result)
    folder.clear_marks(task.key)
    return kept


def plan(task: Task, job: str, plugin: str) -> dict[str, Any]:
    """Returns the parts into which a task can be cut, as answered by a job that writes no files."""
    ended = _keepers(get_worker(), plugin).run(job, task, Path("unmarked"))
    return ended.answer or {"word": _word(ended), "reason": _reason(ended, task.limits)}


def cancel(plugin: str, run: str, whole: str | None, dask_worker: Worker | None = None) -> None:
    """Ends what this worker runs for an instance, or for a whole run of the driver (None); called by `Client.run`."""
    assert dask_worker is not None
    if plugin in dask_worker.plugins:
        _keepers(dask_worker, plugin).cancelled.add((run, whole))


def _keepers(worker: Worker, plugin: str) -> Keepers:
    keepers = worker.plugins[plugin]
    assert isinstance(keepers, Keepers)
    return keepers


def unfinished(task: Task, reason: str, ended_by: str, attempt: int, node: dict[str, str]) -> InstanceResult:
    """Returns the result of an instance that gave no answer."""
    ended = Ended(ended_by, 0.0, 0, {"answer": {"word": "error", "reason": reason}}, "")
    return result_of(task, ended, attempt, node)


def result_of(task: Task, ended: Ended, attempt: int, node: dict[str, str]) -> InstanceResult:
    answer = ended.answer or {"word": _word(ended), "reason": _reason(ended, task.limits)}
    record: dict[str, Any] = answer.get("record") or {}
    limits, part = task.limits, task.part
    began = datetime.now(UTC) - timedelta(seconds=ended.seconds)
    return InstanceResult(
        key=task.key,
        word=answer["word"],
        reason=answer.get("reason"),
        instance=task.listed | ({"asked": ended.heard["asked"]} if "asked" in ended.heard else {}),
        expected=task.expected,
        margin=record.get("margin") or ended.heard.get("margin") or _NOTHING,
        decided_by=record.get("decided_by"),
        stage_seconds=record.get("stage_seconds") or ended.heard.get("stage_seconds") or {},
        seconds=round(ended.seconds, 4),
        memory_bytes=ended.memory_bytes,
        limits={
            "timeout": limits.timeout,
            "grace": limits.grace,
            "memory_bytes": limits.memory_bytes,
            "threads": limits.threads,
        },
        configuration={"solver": task.solver, "seed": task.seed},
        attempt=attempt,
        began=began.isoformat(timespec="milliseconds"),
        ended_by=ended.ended_by,
        output=ended.output,
        evidence=answer.get("evidence", {}),
        part=None if part is None else part.in_words(),
        versions=versions(),
        record=answer.get("record"),
        node=node["node"],
        worker=node["worker"],
    )


def _word(ended: Ended) -> str:
    return {"timeout": "timeout", "memory": "memout"}.get(ended.ended_by, "error")


def _reason(ended: Ended, limits: Limits) -> str:
    """Returns why there is no answer."""
    if ended.ended_by == "timeout":
        return f"killed because it did not end by itself within {limits.timeout:g} s"
    if ended.ended_by == "memory":
        return f"killed because it held more than {size_in_words(limits.memory_bytes)}"
    if ended.ended_by == "signal SIGKILL":
        return "killed by another program, perhaps because the machine ran out of memory"
    if ended.ended_by.startswith("signal"):
        return f"its process crashed ({ended.ended_by})"
    last = ended.output.strip().splitlines()[-1:] or ["no message"]
    return f"its process failed ({ended.ended_by}): {last[0][:300]}"
