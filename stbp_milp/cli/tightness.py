"""`stbp-milp tightness`, or `scripts/tightness_study.py`: how tight every bounding method is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from stbp_milp.cli import shared
from stbp_milp.cli.screen import configure_logging, console
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE, Exit
from stbp_milp.errors import InputError
from stbp_milp.files import only_run_in, prepare_folder, replace_file

if TYPE_CHECKING:  # torch takes seconds, which --help and mistyped options need not wait for
    from stbp_milp.tightness.measure import Measurement, MeasurementTask
    from stbp_milp.tightness.questions import Sweep
    from stbp_milp.tightness.store import Store
    from stbp_milp.tightness.study import StudyOptions

_HELP = """Measure how tight each bounding method is.

The bounds of all methods are compared with the exact optimum on the instances of a bench, a folder in the layout of
VNN-COMP. Every measurement runs in a process of its own, within time and memory limits; an error or a timeout is a
result too. If the study is interrupted, the same command continues it. The results are measurements (.jsonl, .csv,
.parquet), figures (.png) and tables (study.md).

\b
Methods, from fast to exact:
  attack          the smallest margin that an attack finds, an upper bound of all others
  box-interval    interval bounds over the smallest box around the set
  stbp-interval   the closed form in the first layer, interval bounds above it
  box-backward    backward linear bounds over the box
  stbp-backward   backward linear bounds that end in the support function of the set
  stbp-alpha      the same with optimised slopes
  per-member      backward bounds of every member of the set, or of 64 groups of members
  lp, lp-cvxpy    the triangle relaxation over the convex hull of the set; the same through cvxpy
  complete        the complete verifier, which stops when the sign of the margin is known
  search          branch and bound to a gap of 1e-4, the exact optimum where time allows
  milp            the MILP, solved to optimality

\b
Examples:
  {tightness} --bench bench --methods all --out results/tightness
  {tightness} --bench bench --eps-sweep 0.5,0.75,1,1.25 --only '*window*' --out results/window
  {tightness} --bench bench --eps-sweep 0.02,0.04,0.06 --absolute --layers --out results/layers
  {tightness} --redraw results/layers
"""

_EXIT_CODES = {
    Exit.DONE: "The study is complete.",
    Exit.INTERRUPTED: "The command was interrupted by Ctrl-C or SIGTERM. All measurements are kept.",
}


def _redraw(context: click.Context, _: click.Parameter, folder: Path | None) -> None:
    """What `--redraw` does in place of a study; `study.md` keeps the command of the study."""
    if folder is None:
        return
    with _needs_studies():
        from stbp_milp.tightness.store import read_tables
    rows, page = read_tables(folder), folder / "study.md"
    command = re.search(r"^Command: `(.*)`$", page.read_text() if page.exists() else "", re.MULTILINE)
    _write_pages(folder, rows, command[1] if command else shared.command_line())
    click.echo(f"the figures and study.md in {folder} were made again from {len(rows)} measurements")
    context.exit()


@click.command("tightness", cls=shared.Subcommand, help=_HELP, exit_codes=_EXIT_CODES)
@click.option("--bench", type=FILE, required=True, metavar="DIR", help="The folder that holds instances.csv.")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="The folder for the results.")
@click.option(
    "--methods",
    default="all",
    show_default=True,
    metavar="NAMES",
    help="The methods, separated by commas, for example stbp-backward,complete.",
)
@click.option("--instances", type=COUNT, metavar="N", help="Measure only the first N instances.")
@click.option(
    "--only",
    metavar="GLOB",
    help="Measure only instances whose specification or model matches this pattern, for example '*window*'.",
)
@click.option(
    "--eps-sweep",
    metavar="NUMBERS",
    help="The radii, as multiples of the radius in the specification, for example 0.5,0.75,1.  [default: 1]",
)
@click.option("--absolute", is_flag=True, help="Read the numbers of --eps-sweep as radii in the unit of the data.")
@click.option(
    "--timeout",
    type=POSITIVE,
    metavar="SECONDS",
    help="The time limit of every measurement.  [default: the limit in the bench]",
)
@shared.memory_of_a_process
@click.option(
    "--jobs",
    type=COUNT,
    default=1,
    show_default=True,
    metavar="N",
    help="The number of measurements that run at the same time.",
)
@shared.threads
@click.option("--layers", is_flag=True, help="Also measure the widths of pre-activation bounds in every layer.")
@click.option(
    "--sample",
    type=COUNT,
    default=8,
    show_default=True,
    metavar="N",
    help="The number of neurons in each layer that --layers measures.",
)
@shared.seed
@click.option(
    "--redraw",
    type=FILE,
    metavar="DIR",
    is_eager=True,
    expose_value=False,
    callback=_redraw,
    help="Only draw the figures and write study.md again, from the .csv files in this folder, without any measurement.",
)
@shared.usual
def command(verbose: int, **given: Any) -> None:
    errors = console(stderr=True)
    configure_logging(verbose, errors)
    shared.interrupt_on_sigterm()
    _run(given, errors)


main = partial(shared.run, command)


def sweep_of(text: str | None, absolute: bool) -> Sweep | None:
    """The radii of `--eps-sweep`.

    Raises:
        InputError: not positive numbers, or `--absolute` without any.
    """
    from stbp_milp.tightness.questions import Sweep

    if text is None:
        if absolute:
            raise InputError("--absolute says how the numbers of --eps-sweep are meant; give --eps-sweep too")
        return None
    try:
        values = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        values = ()
    if not values or not all(0 < value < math.inf for value in values):
        raise InputError(
            f"--eps-sweep is {text!r}; expected positive numbers separated by commas, for example 0.5,0.75,1"
        )
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


@contextmanager
def _needs_studies() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"studies need the package {error.name}; install it with: pip install -e '.[studies]'"
        ) from error


def _run(given: dict[str, Any], errors: Console) -> None:
    with _needs_studies():
        from stbp_milp.tightness.store import Store
    from stbp_milp.inputs import parse_bytes
    from stbp_milp.tightness.questions import read_questions
    from stbp_milp.tightness.study import StudyOptions, tasks

    out: Path = given["out"]
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
    with only_run_in(prepare_folder(out)):
        store = Store(out)
        try:
            _measure(tasks(questions, options), options, store, errors)
        finally:
            _write(store)
    click.echo(f"{len(store.rows)} measurements in {store.folder}; study.md has the tables")


def _measure(todo: Sequence[MeasurementTask], options: StudyOptions, store: Store, errors: Console) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from stbp_milp.tightness.study import run_study

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    already = sum(store.finished(task.key, task.limits.timeout) for task in todo)
    with Progress(*columns, console=errors) as progress:
        bar = progress.add_task("starting", total=len(todo), completed=already)

        def show(row: Measurement) -> None:
            progress.update(bar, advance=1, description=f"{row.method}, {row.set}, eps {row.epsilon:g}: {row.ended}")

        run_study(todo, options, store, show)


def _write(store: Store) -> None:
    """Tables and figures of what there is; also after an interruption."""
    if store.rows:
        store.write_tables()
        _write_pages(store.folder, store.rows, shared.command_line())


def _write_pages(folder: Path, rows: Sequence[Measurement], command: str) -> None:
    from stbp_milp.tightness.figures import figures
    from stbp_milp.tightness.report import page

    replace_file(folder / "study.md", page(rows, command).encode())
    for name, content in figures(rows):
        replace_file(folder / name, content)
