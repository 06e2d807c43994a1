"""The driver: it decides which instance a worker runs next, and keeps the results.

An instance is executed at least once and has exactly one result: if a worker dies, its instance is queued again, and
the first result that is written stays. No more instances are submitted than workers can run, so that a worker's death
counts against the instances that it ran, and not against others that were waiting for it.
"""

from __future__ import annotations

import logging
import math
import queue
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from distributed import Client, Future
from distributed.comm.core import CommClosedError

from stbp_milp.batch.folder import Folder
from stbp_milp.batch.mirror import Mirror
from stbp_milp.batch.split import whole_of
from stbp_milp.batch.task import Part, Task
from stbp_milp.batch.worker import ATTEMPTS, Keepers, cancel, execute, plan, unfinished
from stbp_milp.errors import InputError, StbpError
from stbp_milp.results import InstanceResult

_TICK = 0.25  # seconds between two reports of the progress
_LOOK = 1.0  # seconds between two checks of the available workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """How far a batch has got.

    Attributes:
        total: number of instances on the list (equal lines count once).
        words: number of results per status.
        contradictions: number of results that contradict the expected verdict.
        fresh: number of results of this run of the driver.
        running: number of instances (or parts) that are running.
        workers: number of instances that the workers can run at once.
        seconds: seconds since the driver began.
    """

    total: int
    words: Counter[str]
    contradictions: int
    fresh: int = 0
    running: int = 0
    workers: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        return self.words.total()


@dataclass(frozen=True)
class Unit:
    """A job for a worker: an instance, a part of one, or the plan of how to cut one."""

    kind: Literal["instance", "part", "plan"]
    task: Task


@dataclass(frozen=True)
class EngineOptions:
    """How a batch is run.

    Attributes:
        job: the function that a child runs, "module:function".
        plan_job: the function that decides how to cut an instance.
        split: the largest number of parts, or of their subtrees, that an instance is cut into; 1: it is not cut.
        threads: number of threads per instance.
        devices_by_number: does a worker use the device that has its own number?
    """

    job: str = "stbp_milp.batch.answer:answer"
    plan_job: str = "stbp_milp.batch.answer:cut"
    split: int = 1
    threads: int = 1
    devices_by_number: bool = False


def run_batch(
    tasks: Sequence[Task],
    folder: Folder,
    mirror: Mirror,
    open_client: Callable[[], AbstractContextManager[Client]],
    options: EngineOptions,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Runs those tasks that have no result yet; if there are none, no worker is started.

    Args:
        mirror: the mirror of the same tasks, already begun.
        on_progress: called a few times per second.

    Raises:
        InputError: a result cannot be written.
        SoundnessError: results of parts contradict each other.
        StbpError: the scheduler is gone.
    """
    words = mirror.words()
    started = Progress(
        len({task.key for task in tasks}),
        Counter(word for word, _ in words.values()),
        sum(contradicts for _, contradicts in words.values()),
    )
    to_do = {task.key: task for task in tasks if task.key not in words}
    if not to_do:
        return started
    run = secrets.token_hex(4)
    with open_client() as client:
        engine = _Engine(client, folder, mirror, options, on_progress, run, started)
        return engine.run([replace(task, run=run) for task in to_do.values()])


@dataclass(eq=False)
class _Split:
    """An instance that was cut into `tasks`: the `count` parts of its set, or their subtrees."""

    task: Task
    count: int
    tasks: Sequence[Task]
    results: list[InstanceResult] = field(default_factory=list)
    over: bool = False


@dataclass(eq=False)
class _Engine:
    client: Client
    folder: Folder
    mirror: Mirror
    options: EngineOptions
    on_progress: Callable[[Progress], None]
    run_id: str
    progress: Progress
    waiting: deque[Unit] = field(default_factory=deque)
    flying: dict[Future[Any], Unit] = field(default_factory=dict)
    ended: queue.SimpleQueue[Future[Any]] = field(default_factory=queue.SimpleQueue)
    splits: dict[str, _Split] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    submitted: int = 0
    on_devices: bool = False
    slots: int = 0
    looked: float = -math.inf
    began: float = field(default_factory=time.monotonic)

    @property
    def plugin(self) -> Keepers:
        module = self.options.job.partition(":")[0]
        return Keepers(module, self.options.threads, self.options.devices_by_number)

    def run(self, tasks: Sequence[Task]) -> Progress:
        self.client.register_plugin(self.plugin)
        self.on_devices = any(task.gpu for task in tasks)
        split = self.options.split
        for task in tasks:
            self.waiting.append(
                Unit("instance", task) if split == 1 else Unit("plan", replace(task, part=Part(0, split, task.key)))
            )
        try:
            while self.waiting or self.flying:
                self._look_at_workers()
                while self.waiting and len(self.flying) < self.slots:
                    self._submit(self.waiting.popleft())
                self._take(self._ended_units())
                self._report()
        except BaseException:
            self._cancel(None)
            raise
        return self.progress

    # --- workers --------------------------------------------------------------------------------------------

    def _look_at_workers(self) -> None:
        now = time.monotonic()
        if now - self.looked < _LOOK:
            return
        self.looked = now
        try:
            workers = self.client.scheduler_info(n_workers=-1).get("workers", {}).values()
        except (OSError, CommClosedError) as error:
            raise self._gone() from error
        if self.client.status in ("closing", "closed"):  # the client has tried to reconnect for a while
            raise self._gone()
        if self.client.status != "running":
            self.slots = 0
        elif self.on_devices:
            self.slots = sum(int(worker["resources"].get("GPU", 0)) for worker in workers)
        else:
            self.slots = sum(worker["nthreads"] for worker in workers)

    def _gone(self) -> StbpError:
        return StbpError("the Dask scheduler is gone; nothing is lost, the same command goes on where this one stopped")

    def _submit(self, unit: Unit) -> None:
        self.submitted += 1
        function = plan if unit.kind == "plan" else execute
        future = self.client.submit(
            function,
            unit.task,
            self.options.plan_job if unit.kind == "plan" else self.options.job,
            self.plugin.name,
            key=f"{unit.kind}-{unit.task.key[:12]}-{self.run_id}-{self.submitted}",
            pure=False,
            resources={"GPU": 1} if unit.task.gpu else None,
        )
        self.flying[future] = unit
        future.add_done_callback(self.ended.put)

    def _ended_units(self) -> list[tuple[Unit, Future[Any]]]:
        found = []
        try:
            future = self.ended.get(timeout=_TICK)
            while True:
                if (unit := self.flying.pop(future, None)) is not None:
                    found.append((unit, future))
                future = self.ended.get_nowait()
        except queue.Empty:
            return found

    # --- results --------------------------------------------------------------------------------------------

    def _take(self, ended: Sequence[tuple[Unit, Future[Any]]]) -> None:
        kept: list[InstanceResult] = []
        for unit, future in ended:
            if future.cancelled() or future.status == "lost":  # with the connection: not the instance's fault
                self.waiting.appendleft(unit)
                continue
            try:
                value = future.result(timeout=30)
            except InputError:
                raise
            except Exception as error:
                # Whatever went wrong on the worker, the instance is tried again.
                logger.info("instance %s failed on a worker", unit.task.key, exc_info=True)
                value = self._failed(unit, error)
                if value is None:
                    continue
            if unit.kind == "plan":
                kept += self._take_plan(unit.task, value)
            elif unit.kind == "part":
                kept += self._take_part(unit.task, value)
            elif value is not None:
                kept.append(value)
        if kept:
            self.mirror.add(kept)
            self._count(kept)

    def _failed(self, unit: Unit, error: Exception) -> Any:
        """Queues the unit again and returns None, or after too many failures returns an answer that says so."""
        self.failures[unit.task.key] += 1
        if self.failures[unit.task.key] < ATTEMPTS:
            self.waiting.appendleft(unit)
            return None
        reason = f"it failed {ATTEMPTS} times on its workers ({type(error).__name__}: {' '.join(str(error).split())})"
        if unit.kind == "plan":
            return {"word": "error", "reason": reason}
        result = unfinished(unit.task, reason, "worker", ATTEMPTS, {"node": "", "worker": ""})
        self.folder.clear_marks(unit.task.key)
        return self.folder.keep(result)

    def _take_plan(self, task: Task, answer: dict[str, Any]) -> list[InstanceResult]:
        """Queues the parts, or the whole instance if it has only one part or could not be cut within the limits."""
        whole = replace(task, part=None)
        count = answer.get("parts")
        if answer.get("word") in ("timeout", "memout"):
            self.waiting.appendleft(Unit("instance", whole))
            return []
        if count is None:
            result = unfinished(whole, str(answer["reason"]), "itself", 1, {"node": "", "worker": ""})
            return [self.folder.keep(replace(result, word=answer["word"]))]
        parts = [part for i, neurons in enumerate(answer["neurons"]) for part in whole.subtrees(i, count, neurons)]
        if len(parts) == 1:
            self.waiting.appendleft(Unit("instance", whole))
            return []
        self.splits[whole.key] = _Split(whole, count, parts)
        self.waiting.extendleft(Unit("part", part) for part in reversed(parts))
        return []

    def _take_part(self, task: Task, result: InstanceResult | None) -> list[InstanceResult]:
        """Keeps the result of a part; returns the result of the whole instance if this part settles it."""
        assert task.part is not None
        split = self.splits[task.part.whole]
        if split.over or result is None:
            return []
        split.results.append(result)
        if result.word != "falsified" and len(split.results) < len(split.tasks):
            return []
        split.over = True
        self._cancel(split.task.key)
        return [self.folder.keep(whole_of(split.task, split.results, split.count))]

    def _cancel(self, whole: str | None) -> None:
        """Cancels the parts of an instance, or everything (None)."""

        def concerned(unit: Unit) -> bool:
            return whole is None or (unit.task.part is not None and unit.task.part.whole == whole)

        self.waiting = deque(unit for unit in self.waiting if not concerned(unit))
        futures = [future for future, unit in self.flying.items() if concerned(unit)]
        if futures and self.client.status == "running":
            with suppress(OSError, CommClosedError):  # workers that are gone run nothing any more
                self.client.run(cancel, self.plugin.name, self.run_id, whole, on_error="ignore")

    def _count(self, results: Sequence[InstanceResult]) -> None:
        self.progress = replace(
            self.progress,
            words=self.progress.words + Counter(result.word for result in results),
            contradictions=self.progress.contradictions + sum(result.contradicts for result in results),
            fresh=self.progress.fresh + len(results),
        )

    def _report(self) -> None:
        self.progress = replace(
            self.progress,
            running=len(self.flying),
            workers=self.slots,
            seconds=time.monotonic() - self.began,
        )
        self.on_progress(self.progress)
