"""`scripts/run_batch.py`: from arguments to an exit code."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from stbp_milp.cli.batch_arguments import BatchOptions, parse
from stbp_milp.cli.command import configure_logging, guarded, interrupt_on_sigterm
from stbp_milp.cli.screen import console

if TYPE_CHECKING:  # these take a second, which --help and mistyped options need not wait for
    from distributed import Client

    from stbp_milp.batch.engine import Progress

ERRORS, CONTRADICTION = 3, 4
_NAMED = 10  # instances whose errors are printed at the end


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (by default the process's) and return the exit code that `--help` explains."""

    def run() -> int:
        options = parse(arguments)
        return 0 if options is None else _run(options, sys.argv[1:] if arguments is None else arguments)

    return guarded(run)


def _run(options: BatchOptions, arguments: Sequence[str]) -> int:
    from stbp_milp.batch.engine import EngineOptions, run_batch
    from stbp_milp.batch.folder import Folder
    from stbp_milp.batch.mirror import Mirror
    from stbp_milp.batch.task import Settings, read_tasks
    from stbp_milp.cli.batch_display import BatchDisplay, counts
    from stbp_milp.inputs import parse_bytes
    from stbp_milp.versions import versions

    errors = console(stderr=True)
    configure_logging(options.verbose, errors)
    if options.verbose < 2:
        logging.getLogger("distributed").setLevel(logging.ERROR)
    interrupt_on_sigterm()
    place = _place(options)
    settings = Settings(
        options.timeout,
        options.grace,
        parse_bytes(options.memory),
        place.threads,
        options.solver,
        options.seed,
        gpu=options.gpus is not None,
    )
    path = options.out or Path("results") / (options.list.resolve().parent.name or "batch")
    tasks = read_tasks(options.list, path, settings)
    folder = Folder(path).prepared()
    folder.note_run(
        {
            "began": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "command": shlex.join(["run_batch", *arguments]),
            "list": str(options.list.resolve()),
            "instances": len(tasks),
            "versions": versions(),
        }
    )
    engine = EngineOptions(
        split=options.split,
        threads=place.threads,
        devices_by_number=options.gpus is not None and place.here,
    )
    with Mirror(folder) as mirror, BatchDisplay(errors, shown=not options.quiet) as display:
        mirror.begin(tasks)
        again = [key for key, (word, _) in mirror.words().items() if word in options.words_to_retry]
        for key in again:
            folder.put_aside(key, options.words_to_retry)
        mirror.forget(again)
        try:
            progress = run_batch(tasks, folder, mirror, place.open, engine, display.update)
        except KeyboardInterrupt:
            kept = f"{len(mirror.words()):,} results of the list are kept in {str(folder.path)!r}"
            console(stderr=True).print(f"{kept}; the same command goes on where this one stopped", markup=False)
            raise
        failed = mirror.reasons("error")
    console(stderr=False).print(counts(progress))
    for name, model, reason in failed[:_NAMED]:
        console(stderr=True).print(f"error in {name} ({model}): {reason}", markup=False, soft_wrap=True)
    if len(failed) > _NAMED:
        console(stderr=True).print(f"and {len(failed) - _NAMED:,} errors more; make_report.py shows all")
    console(stderr=False).print(f"results: {path}")
    return _exit_code(progress)


def _exit_code(progress: Progress) -> int:
    if progress.contradictions:
        return CONTRADICTION
    return ERRORS if progress.words["error"] else 0


@dataclass(frozen=True)
class _Place:
    """Where the batch runs, and with how many threads an instance."""

    open: Callable[[], AbstractContextManager[Client]]
    threads: int
    here: bool


def _place(options: BatchOptions) -> _Place:
    from stbp_milp.batch import nodes

    if options.scheduler is not None:
        address = options.scheduler
        return _Place(lambda: nodes.existing(address), options.threads or 1, here=False)
    if options.queue is not None:
        kind, file = options.queue[0], nodes.read_queue_file(options.queue[1])
        return _Place(lambda: nodes.queue(kind, file), options.threads or file.threads, here=False)
    cores = len(os.sched_getaffinity(0))
    jobs = options.gpus or options.jobs or max(1, cores // (options.threads or 1))
    threads = options.threads or max(1, cores // jobs)
    resources = {"GPU": 1.0} if options.gpus is not None else None
    return _Place(lambda: nodes.local(jobs, resources), threads, here=True)
