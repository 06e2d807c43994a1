"""The options of `scripts/run_batch.py`, and what `--help` says about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from stbp_milp.cli import shared
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE
from stbp_milp.errors import InputError
from stbp_milp.results import WORDS

_HELP = """Run a list of instances, each ended at its limits whatever hangs, and keep every result.

LIST is a file as in VNN-COMP: a model, a specification and seconds a line. Every instance runs in a process of its own,
which is killed, with all that it started, a moment after its time is over or when it holds too much memory. The same
command goes on where it stopped: what has a result is not run again. results/README.md documents what is kept.

\b
Examples:
  python scripts/run_batch.py study/instances.csv --timeout 60 --memory 4G --jobs 2 --out results/study
  python scripts/run_batch.py study/instances.csv --out results/study --retry timeout,error
  python scripts/run_batch.py study/instances.csv --out results/hard --split 16
  python scripts/run_batch.py study/instances.csv --out /shared/study --slurm slurm.yaml

\b
Results:
  verified, falsified, unknown   what the verifier says
  timeout, memout                no verdict within the limit
  error                          bad input, a crash, or a worker that died three times over the instance

\b
Exit codes:
  0  every instance has a result, none of them an error
  2  bad input          (one sentence says what to do)
  3  some results are errors
  4  contradiction      (a result is the opposite of the expected verdict, or two methods disagree)
  70 any other error in the program, 130 interrupted by Ctrl-C; nothing is lost
"""
_QUEUE_HELP = "Jobs of a {} cluster, as the YAML FILE says (jobs, cores, ...; see results/README.md)."


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
        kinds = {"slurm": self.slurm, "pbs": self.pbs, "lsf": self.lsf, "sge": self.sge, "htcondor": self.htcondor}
        return next(((kind, path) for kind, path in kinds.items() if path is not None), None)

    @property
    def words_to_retry(self) -> tuple[str, ...]:
        return tuple(self.retry.split(",")) if self.retry else ()


_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def _queue(kind: str, name: str) -> Callable[[_Decorated], _Decorated]:
    return click.option(f"--{kind}", type=FILE, metavar="FILE", help=_QUEUE_HELP.format(name))


@click.command("run_batch", help=_HELP, context_settings={"max_content_width": 100})
@click.argument("list", type=FILE, metavar="LIST")
@click.option("--timeout", type=POSITIVE, metavar="SECONDS", help="Of every instance. Default: what the list says.")
@click.option("--memory", default="4G", show_default=True, metavar="SIZE", help="What an instance may hold, as 512M.")
@click.option("--jobs", type=COUNT, metavar="N", help="Instances at a time, here. Default: cores / threads.")
@click.option("--threads", type=COUNT, metavar="N", help="Of an instance. Default: cores / jobs, or 1.")
@click.option("--gpus", type=COUNT, metavar="N", help="One instance at a time on each of N devices, instead of --jobs.")
@click.option("--out", type=FILE, metavar="DIR", help="Where results go. Default: results/ and the list's folder.")
@click.option("--retry", metavar="WORDS", help="Run again what ended so: timeout,error. Old results are put aside.")
@click.option(
    "--split",
    type=COUNT,
    default=1,
    metavar="N",
    help="Cut every instance in up to N parts: of its set, or by ReLU phases.",
)
@shared.solver
@shared.seed
@click.option(
    "--grace", type=POSITIVE, default=0.3, show_default=True, metavar="SECONDS", help="From the timeout to the kill."
)
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask scheduler that runs already, as tcp://host:8786.")
@_queue("slurm", "Slurm")
@_queue("pbs", "PBS")
@_queue("lsf", "LSF")
@_queue("sge", "SGE")
@_queue("htcondor", "HTCondor")
@click.option("--quiet", "-q", is_flag=True, help="No display while it runs.")
@shared.verbose
@shared.version
@shared.help_
def _command(**given: Any) -> BatchOptions:
    return BatchOptions(**given)


def parse(arguments: Sequence[str] | None = None) -> BatchOptions | None:
    """The options in `arguments` (by default the process's); None where `--help` or `--version` was answered.

    Raises:
        InputError: an unknown option, a value of the wrong type, options that do not go together.
    """
    try:
        parsed = _command.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        raise InputError(f"{error.format_message().rstrip('.')}; see --help") from error
    if not isinstance(parsed, BatchOptions):
        return None
    _check_together(parsed)
    return parsed


def _check_together(options: BatchOptions) -> None:
    wrong = [word for word in options.words_to_retry if word not in WORDS]
    if wrong:
        raise InputError(f"--retry names {wrong[0]!r}; expected words of {', '.join(WORDS)}, as timeout,error")
    places = ("scheduler", "slurm", "pbs", "lsf", "sge", "htcondor")
    given = [f"--{name}" for name in places if getattr(options, name) is not None]
    if len(given) > 1:
        raise InputError(f"{given[0]} and {given[1]} were given together; give one of them")
    if given and options.jobs is not None:
        raise InputError(f"--jobs is about this machine and {given[0]} about others; leave --jobs out")
    if options.gpus is not None and options.jobs is not None:
        raise InputError("--jobs and --gpus were given together; with --gpus there is one instance a device")
