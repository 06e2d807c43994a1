"""`scripts/tightness_study.py`: from arguments to an exit code."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from stbp_milp.cli.command import configure_logging, guarded, interrupt_on_sigterm
from stbp_milp.cli.screen import console
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE
from stbp_milp.errors import InputError
from stbp_milp.files import only_run_in, prepare_folder

if TYPE_CHECKING:  # torch takes seconds, which --help and mistyped options need not wait for
    from stbp_milp.tightness.questions import Sweep
    from stbp_milp.tightness.store import Store

_HELP = """How tight every bounding method is, against the exact optimum, on the instances of a bench.

DIR is a folder in VNN-COMP's layout: instances.csv with a model, a specification and seconds a line. Every measurement
runs in a process of its own within its limits; an error or a timeout is a row like any other. The same command goes on
where it stopped. OUT gets measurements (.jsonl as they come, .csv, .parquet), figures (.png, .pdf) and study.md.

\b
Methods, from quick to exact:
  attack          smallest margin seen (upper limit of every other)
  box-interval    intervals over the smallest box around the set
  stbp-interval   closed-form first layer, intervals above it
  box-backward    backward linear bounds over the box
  stbp-backward   backward linear bounds, support function of the set
  stbp-alpha      the same with optimised slopes
  per-member      backward bounds of every member, or of 64 groups
  lp, lp-cvxpy    triangle relaxation over the set's convex hull; the same rebuilt in cvxpy
  complete        the verifier, which stops at the margin's sign
  search          its search, to a gap of 1e-4: the exact optimum where time allows
  milp            the exact program, to its optimum

\b
Examples:
  python scripts/tightness_study.py --bench bench --methods all --out results/tightness
  python scripts/tightness_study.py --bench bench --eps-sweep 0.5,0.75,1,1.25 --only '*window*' --out results/window
  python scripts/tightness_study.py --bench bench --eps-sweep 0.02,0.04,0.06 --absolute --layers --out results/layers

\b
Exit codes: 0 done, 2 bad input, 4 contradiction between methods, 70 any other error, 130 interrupted (nothing is lost).
"""


@click.command(help=_HELP)
@click.option("--bench", type=FILE, required=True, metavar="DIR", help="Folder of instances.csv.")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="Folder of the results.")
@click.option("--methods", default="all", help="Names separated by commas, or all.")
@click.option("--instances", type=COUNT, help="Only so many instances.")
@click.option("--only", metavar="GLOB", help="Only instances whose specification or model matches.")
@click.option("--eps-sweep", metavar="F1,F2,...", help="Radii, as multiples of the specification's.")
@click.option("--absolute", is_flag=True, help="The numbers of --eps-sweep are radii in the unit of the data.")
@click.option("--timeout", type=POSITIVE, help="Seconds a measurement (default: as the bench says).")
@click.option("--memory", default="4G", show_default=True, help="What a measurement may hold.")
@click.option("--jobs", type=COUNT, default=1, show_default=True, help="Measurements at a time.")
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Of each measurement.")
@click.option("--layers", is_flag=True, help="Measure the widths of pre-activation bounds, layer by layer, as well.")
@click.option("--sample", type=COUNT, default=8, show_default=True, help="Neurons a layer, for --layers.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of attacks, solvers and samples.")
@click.option("-v", "--verbose", count=True, help="Log more.")
def _command(**options: Any) -> int:
    return _run(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (by default the process's) and return the exit code that `--help` explains."""

    def run() -> int:
        try:
            return int(_command.main(arguments, prog_name="tightness_study.py", standalone_mode=False) or 0)
        except click.ClickException as error:
            raise InputError(f"{error.format_message().rstrip('.')}; --help lists the options") from error
        except click.Abort as error:
            raise KeyboardInterrupt from error

    return guarded(run)


def sweep_of(text: str | None, absolute: bool) -> Sweep | None:
    """The radii of `--eps-sweep`.

    Raises:
        InputError: not positive numbers, or `--absolute` without any.
    """
    from stbp_milp.tightness.questions import Sweep

    if text is None:
        if absolute:
            raise InputError("--absolute says what the numbers of --eps-sweep are; give that option too")
        return None
    try:
        values = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        values = ()
    if not values or not all(0 < value < math.inf for value in values):
        raise InputError(f"--eps-sweep is {text!r}; expected positive numbers separated by commas, as 0.5,0.75,1")
    return Sweep(values, absolute)


def methods_of(text: str) -> tuple[str, ...]:
    """The names in `--methods`, in the order of the table.

    Raises:
        InputError: an unknown one.
    """
    from stbp_milp.tightness.methods import METHODS

    wanted = set(METHODS) if text == "all" else {part.strip() for part in text.split(",")}
    if unknown := sorted(wanted - set(METHODS)):
        raise InputError(f"--methods names {unknown[0]!r}; expected all, or some of {', '.join(METHODS)}")
    return tuple(name for name in METHODS if name in wanted)


def _run(given: dict[str, Any]) -> int:
    errors = console(stderr=True)
    configure_logging(given["verbose"], errors)
    interrupt_on_sigterm()
    try:
        from stbp_milp.tightness.store import Store
    except ModuleNotFoundError as error:
        raise InputError(f"studies need {error.name}; install it: pip install -e '.[studies]'") from error
    from stbp_milp.inputs import parse_bytes
    from stbp_milp.tightness.questions import read_questions
    from stbp_milp.tightness.study import StudyOptions, tasks

    options = StudyOptions(
        methods_of(given["methods"]),
        given["timeout"],
        parse_bytes(given["memory"]),
        given["jobs"],
        given["threads"],
        given["seed"],
        given["layers"],
        given["sample"],
    )
    sweep = sweep_of(given["eps_sweep"], given["absolute"])
    questions = read_questions(given["bench"], sweep, given["only"], given["instances"])
    with only_run_in(prepare_folder(given["out"])):
        store = Store(given["out"])
        try:
            _measure(tasks(questions, options), options, store)
        finally:
            _write(store)
    click.echo(f"{len(store.rows)} measurements in {store.folder}; study.md has the tables")
    return 0


def _measure(todo: list[Any], options: Any, store: Store) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from stbp_milp.tightness.measure import Measurement
    from stbp_milp.tightness.study import run_study

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    already = sum(store.finished(task.key, task.limits.timeout) for task in todo)
    with Progress(*columns, console=console(stderr=True)) as progress:
        bar = progress.add_task("starting", total=len(todo), completed=already)

        def show(row: Measurement) -> None:
            progress.update(bar, advance=1, description=f"{row.method}, {row.set}, eps {row.epsilon:g}: {row.ended}")

        run_study(todo, options, store, show)


def _write(store: Store) -> None:
    """Tables and figures of what there is; also after an interruption."""
    from stbp_milp.tightness.figures import figures
    from stbp_milp.tightness.report import page

    if not store.rows:
        return
    store.write_tables()
    command = shlex.join(["python", "scripts/tightness_study.py", *sys.argv[1:]])
    store.write("study.md", page(store.rows, command).encode())
    for name, content in figures(store.rows):
        store.write(name, content)
