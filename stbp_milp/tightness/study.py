"""A study: every question with every method, in one process per measurement, stored as they arrive."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from stbp_milp.batch.keeper import Keeper, KeeperLostError
from stbp_milp.batch.supervised import Ended, Limits
from stbp_milp.tightness.laws import by_question, check
from stbp_milp.tightness.measure import JOB, LAYERS, Measurement, MeasurementTask, row_of
from stbp_milp.tightness.questions import Question
from stbp_milp.tightness.store import Store

_GRACE = 5.0  # seconds between the limit and the killing of a measurement: most methods end by themselves
# What a child would import before it measures: loading a model pulls in the last two, 1.4 seconds of CPU.
_MODULES = ("stbp_milp.tightness.measure", "cvxpy", "onnx.reference", "torch._dynamo")

OnRow = Callable[[Measurement], None]


@dataclass(frozen=True)
class StudyOptions:
    """The options of a study.

    Attributes:
        timeout: seconds per measurement; None: as the bench says.
        memory_bytes: memory that a measurement's process may hold.
        jobs: number of measurements at a time, each with `threads` threads.
        layers: are the widths of layers measured as well?
        sample: number of neurons per layer for that.
    """

    methods: tuple[str, ...]
    timeout: float | None = None
    memory_bytes: int = 4 << 30
    jobs: int = 1
    threads: int = 1
    seed: int = 0
    layers: bool = False
    sample: int = 8


def tasks(questions: Sequence[Question], options: StudyOptions) -> list[MeasurementTask]:
    """Lists all measurements question by question, so that an interrupted study has complete questions."""
    names = (*options.methods, *((LAYERS,) if options.layers else ()))
    return [
        MeasurementTask(
            question,
            name,
            Limits(options.timeout or question.timeout, _GRACE, options.memory_bytes, options.threads),
            options.seed,
            options.sample,
        )
        for question in questions
        for name in names
    ]


def run_study(todo: Sequence[MeasurementTask], options: StudyOptions, store: Store, on_row: OnRow) -> None:
    """Measures what the store does not have yet; whatever ends this, all finished measurements are in the store.

    Args:
        on_row: called with every new row, from this thread.

    Raises:
        SoundnessError: measurements contradict each other; they are stored too.
    """
    for rows in by_question(r for r in store.rows if r.method != LAYERS).values():
        check(rows)
    waiting: queue.SimpleQueue[MeasurementTask] = queue.SimpleQueue()
    left = [task for task in todo if not store.finished(task.key, task.limits.timeout)]
    for task in left:
        waiting.put(task)
    done: queue.SimpleQueue[tuple[MeasurementTask, Ended]] = queue.SimpleQueue()
    stop = threading.Event()
    workers = [
        threading.Thread(target=_work, args=(waiting, done, stop, options)) for _ in range(min(options.jobs, len(left)))
    ]
    for worker in workers:
        worker.start()
    try:
        for _ in left:
            row = row_of(*_next(done, workers))
            store.add(row)
            on_row(row)
            if row.method != LAYERS:
                check([r for r in store.rows if r.instance_key == row.instance_key and r.method != LAYERS])
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def _next(
    done: queue.SimpleQueue[tuple[MeasurementTask, Ended]], workers: Sequence[threading.Thread]
) -> tuple[MeasurementTask, Ended]:
    while True:
        with suppress(queue.Empty):
            return done.get(timeout=0.5)
        if not any(worker.is_alive() for worker in workers) and done.empty():
            raise KeeperLostError("the processes that measure ended before their work; run the same command again")


def _work(
    waiting: queue.SimpleQueue[MeasurementTask],
    done: queue.SimpleQueue[tuple[MeasurementTask, Ended]],
    stop: threading.Event,
    options: StudyOptions,
) -> None:
    """Runs measurements on one keeper, and on a new one whenever a measurement has killed its keeper."""
    keeper = Keeper(_MODULES, options.threads)
    try:
        while not stop.is_set():
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended = keeper.run(JOB, task, task.limits, stop.is_set)
            except KeeperLostError as error:
                keeper.close()
                keeper = Keeper(_MODULES, options.threads)
                ended = Ended("its keeper was lost", 0.0, 0, {}, str(error))
            if ended.ended_by != "cancelled":
                done.put((task, ended))
    finally:
        keeper.close()
