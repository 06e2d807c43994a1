"""`stbp-milp batch`, or `scripts/run_batch.py`: a list of instances, each within its limits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stbp_milp.cli import shared
from stbp_milp.cli.screen import configure_logging, console
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE, Exit
from stbp_milp.errors import InputError
from stbp_milp.results import WORDS

if TYPE_CHECKING:  # these take a second, which --help and mistyped options need not wait for
    from distributed import Client

    from stbp_milp.batch.engine import Progress
    from stbp_milp.batch.folder import Folder
    from stbp_milp.batch.task import Task

_HELP = """Run a list of instances within time and memory limits, and keep every result.

LIST is a file as in VNN-COMP, with one line per instance: a model, a specification and a time limit in seconds. Every
instance runs in a process of its own. This process and all its descendants are killed shortly after the time limit,
or when they hold too much memory. If a batch is interrupted, the same command continues it; an instance that has a
result is not run again. results/README.md documents the results.

\b
Examples:
  {batch} study/instances.csv --timeout 60 --memory 4G --jobs 2 --out results/study
  {batch} study/instances.csv --out results/study --retry timeout,error
  {batch} study/instances.csv --out results/hard --split 16
  {batch} study/instances.csv --out /shared/study --slurm slurm.yaml

\b
Results:
  verified, falsified, unknown   the verdict of the verifier
  timeout, memout                no verdict within the limit
  error                          bad input, a crash, or a worker that died three times
"""

_EXIT_CODES = {
    Exit.DONE: "Every instance has a result, and none of them is an error.",
    Exit.OPEN: "Every instance has a result, and some of them are errors.",
    Exit.CONTRADICTION: "A result is the opposite of the expected verdict, or two methods contradict each other. This "
    "is a bug; please report it.",
    Exit.INTERRUPTED: "The command was interrupted by Ctrl-C or SIGTERM. All results are kept.",
}

_QUEUES = {"slurm": "Slurm", "pbs": "PBS", "lsf": "LSF", "sge": "SGE", "htcondor": "HTCondor"}
_NAMED = 10  # instances whose errors are printed at the end


@dataclass(frozen=True)
class BatchOptions:
    """The command line as it was given; None where an option was not."""

    list: Path
    timeout: float | None
    memory: str
    jobs: int | None
    threads: int | None
    gpus: int | None
    out: Path | None
    retry: str | None
    split: int
    solver: str
    seed: int
    grace: float
    scheduler: str | None
    slurm: Path | None
    pbs: Path | None
    lsf: Path | None
    sge: Path | None
    htcondor: Path | None
    quiet: bool
    verbose: int

    @property
    def queue(self) -> tuple[str, Path] | None:
        """The kind of cluster and its file, where one was given."""
        return next(((kind, file) for kind in _QUEUES if (file := getattr(self, kind)) is not None), None)

    @property
    def words_to_retry(self) -> tuple[str, ...]:
        return tuple(self.retry.split(",")) if self.retry else ()

    @property
    def folder(self) -> Path:
        return self.out or Path("results") / (self.list.resolve().parent.name or "batch")


_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def _queues(command: _Decorated) -> _Decorated:
    """An option for every kind of cluster."""
    for kind, name in reversed(_QUEUES.items()):
        text = f"Run the workers as {name} jobs, which this YAML file describes; see results/README.md."
        command = click.option(f"--{kind}", type=FILE, metavar="FILE", help=text)(command)
    return command


@click.command("batch", cls=shared.Subcommand, help=_HELP, exit_codes=_EXIT_CODES)
@click.argument("list", type=FILE, metavar="LIST")
@click.option(
    "--timeout",
    type=POSITIVE,
    metavar="SECONDS",
    help="The time limit of every instance.  [default: the limit in the list]",
)
@shared.memory_of_a_process
@click.option(
    "--jobs",
    type=COUNT,
    metavar="N",
    help="The number of instances that run at the same time on this machine.  [default: cores / threads]",
)
@click.option(
    "--threads",
    type=COUNT,
    metavar="N",
    help="The number of threads per instance.  [default: cores / jobs with --jobs or --gpus, else 1]",
)
@click.option(
    "--gpus",
    type=COUNT,
    metavar="N",
    help="Compute on N GPUs, with one instance at a time on each. This option replaces --jobs.",
)
@click.option(
    "--out",
    type=FILE,
    metavar="DIR",
    help="The folder for the results.  [default: results/NAME, with the name of the list's folder]",
)
@click.option(
    "--retry",
    metavar="WORDS",
    help="Run the instances with these results again, for example timeout,error. The old results are put aside.",
)
@click.option(
    "--split",
    type=COUNT,
    default=1,
    show_default=True,
    metavar="N",
    help="Split every instance into at most N parts that run as instances of their own: parts of its set, or "
    "subproblems with fixed ReLU phases if the set has too few members.",
)
@shared.solver
@shared.seed
@click.option(
    "--grace",
    type=POSITIVE,
    default=0.3,
    show_default=True,
    metavar="SECONDS",
    help="The time between the time limit and SIGKILL.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Use the workers of a running Dask scheduler, for example tcp://host:8786.",
)
@_queues
@click.option("--quiet", "-q", is_flag=True, help="Show no progress while the batch runs.")
@shared.usual
def command(**given: Any) -> int:
    options = BatchOptions(**given)
    _check_together(options)
    shared.interrupt_on_sigterm()
    return _run(options)


main = partial(shared.run, command)


def _check_together(options: BatchOptions) -> None:
    wrong = [word for word in options.words_to_retry if word not in WORDS]
    if wrong:
        raise InputError(
            f"--retry names {wrong[0]!r}; expected some of {', '.join(WORDS)}, separated by commas, for example "
            "timeout,error"
        )
    given = [f"--{name}" for name in ("scheduler", *_QUEUES) if getattr(options, name) is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} were given together; give one of them")
    if given and options.jobs is not None:
        raise InputError(f"--jobs is about this machine and {given[0]} is about others; leave --jobs out")
    if options.gpus is not None and options.jobs is not None:
        raise InputError("--jobs and --gpus were given together; with --gpus, one instance runs at a time on each GPU")


def _run(options: BatchOptions) -> int:
    from stbp_milp.batch.engine import EngineOptions, run_batch
    from stbp_milp.batch.mirror import Mirror
    from stbp_milp.cli.batch_display import BatchDisplay

    errors = console(stderr=True)
    configure_logging(options.verbose, errors)
    if options.verbose < 2:  # after its import, which sets a level too
        logging.getLogger("distributed").setLevel(logging.ERROR)
    place = _place(options)
    tasks, folder = _begun(options, place.threads)
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
            console(stderr=True).print(f"{kept}; the same command continues where this one stopped", markup=False)
            raise
        failed = mirror.reasons("error")
    _tell(progress, failed, folder.path)
    if progress.contradictions:
        return Exit.CONTRADICTION
    return Exit.OPEN if progress.words["error"] else Exit.DONE


def _begun(options: BatchOptions, threads: int) -> tuple[list[Task], Folder]:
    """What is to be done, and the folder, which says that this command was started."""
    from stbp_milp.batch.folder import Folder
    from stbp_milp.batch.task import Settings, read_tasks
    from stbp_milp.inputs import parse_bytes
    from stbp_milp.versions import versions

    settings = Settings(
        options.timeout,
        options.grace,
        parse_bytes(options.memory),
        threads,
        options.solver,
        options.seed,
        gpu=options.gpus is not None,
    )
    tasks = read_tasks(options.list, options.folder, settings)
    folder = Folder(options.folder).prepared()
    folder.note_run(
        {
            "began": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "command": shared.command_line(),
            "list": str(options.list.resolve()),
            "instances": len(tasks),
            "versions": versions(),
        }
    )
    return tasks, folder


def _tell(progress: Progress, failed: Sequence[tuple[str, str, str]], path: Path) -> None:
    from stbp_milp.cli.batch_display import counts

    console(stderr=False).print(counts(progress))
    for name, model, reason in failed[:_NAMED]:
        console(stderr=True).print(f"error in {name} ({model}): {reason}", markup=False, soft_wrap=True)
    if len(failed) > _NAMED:
        shown = f"'{shared.called('report')} {path}' shows all of them"
        console(stderr=True).print(f"and {len(failed) - _NAMED:,} more errors; {shown}", soft_wrap=True)
    console(stderr=False).print(f"results: {path}")


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
