"""`stbp-milp bench`, or `scripts/make_st_bench.py`: makes an ST-Bench."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stbp_milp.cli import shared
from stbp_milp.cli.screen import configure_logging, console
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE, Exit

_HELP = """Make an ST-Bench: networks, clips and instances that any verifier can run.

DIR, the folder of --out, gets the layout of VNN-COMP: onnx/, clips/, specifications/ (in our format), vnnlib/ (for
sets that are a union of few boxes), instances.csv, instances_vnnlib.csv, and a README.md that explains everything to
other tools' authors. The same seed makes the same files on the same kind of machine with the same number of threads;
only the expected verdicts also depend on what our verifier decides in time. If the command is interrupted, the same
command continues.

\b
Examples:
  {bench} --family activity --size S --seed 7 --out results/bench
  {bench} --family activity,medical --size S,M --way pgd --label 120 --out results/bench
  {batch} results/bench/instances.csv --jobs 2 --out results/bench-run

\b
The following makes the shipped bench, stbp_milp/st_bench/shipped, again. Its networks are
`trained(recipe(FAMILY, "S", WAY, 1), ...)`, except for medical pgd (seed 2) and driving pgd (seed 3):
  cp -r stbp_milp/st_bench/shipped/onnx networks
  {bench} --family activity,driving,medical --size S --seed 7 --instances 7 \\
      --timeout 30 --settled-within 3 --boxes 8 --chosen --networks networks --out DIR
"""

_EXIT_CODES = {Exit.DONE: "The bench is complete."}


def _words(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
    if not words:
        raise click.BadParameter("no name was given")
    return words


@click.command("bench", cls=shared.Subcommand, help=_HELP, exit_codes=_EXIT_CODES)
@click.option(
    "--family",
    "families",
    callback=_words,
    required=True,
    metavar="NAMES",
    help="The families of networks: activity, driving, medical, or several separated by commas.",
)
@click.option(
    "--size",
    "sizes",
    callback=_words,
    default="S",
    show_default=True,
    metavar="NAMES",
    help="The sizes of networks: S, M, L, or several separated by commas.",
)
@click.option(
    "--way",
    "ways",
    callback=_words,
    default="standard,pgd,st-ibp",
    show_default=True,
    metavar="NAMES",
    help="The ways of training: on clean clips (standard), against attacks (pgd), or certified (st-ibp).",
)
@click.option(
    "--seed",
    type=int,
    default=7,
    show_default=True,
    metavar="N",
    help="The seed for the training, the clips and the choice of instances.",
)
@click.option("--out", type=FILE, required=True, metavar="DIR", help="The folder for the bench.")
@click.option(
    "--instances", type=COUNT, default=36, show_default=True, metavar="N", help="The number of instances per network."
)
@click.option(
    "--timeout",
    type=POSITIVE,
    metavar="SECONDS",
    help="The time limit of each instance.  [default: 60 for size S, 120 for M, 300 for L]",
)
@click.option(
    "--label",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="The time that our verifier may take to find the expected verdict of an instance; with 0, it does not run.  "
    "[default: 10 for size S, else 0]",
)
@click.option(
    "--settled-within",
    type=POSITIVE,
    metavar="SECONDS",
    help="Keep only the instances that our verifier decides within this much processor time.",
)
@click.option(
    "--boxes",
    type=click.IntRange(min=1, max=5000),
    default=100,
    show_default=True,
    metavar="N",
    help="The largest number of boxes in a VNN-LIB file. A set of more boxes gets no VNN-LIB file.",
)
@click.option(
    "--chosen",
    is_flag=True,
    help="Add the twelve instances that were chosen by hand (for seed 7, size S and the pgd training).",
)
@click.option(
    "--networks",
    type=FILE,
    metavar="DIR",
    help="Use the file FAMILY-SIZE-WAY.onnx in this folder, if there is one, instead of training a network.",
)
@click.option(
    "--steps",
    type=COUNT,
    metavar="N",
    help="The number of training steps.  [default: that of each training recipe]",
)
@shared.threads
@shared.usual
def command(out: Path, verbose: int, **given: Any) -> None:
    # Importing torch takes seconds: --help and mistyped options need not wait for it.
    from stbp_milp.st_bench.make import Asked, make

    errors = console(stderr=True)
    configure_logging(verbose, errors)
    logging.getLogger("torch").setLevel(logging.ERROR)
    asked = Asked(**given)
    asked.check()  # before a progress display opens
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=errors) as progress:
        bars: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int, note: str) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, note="")
            progress.update(bars[stage], completed=done, total=total, note=note)

        made = make(asked, out, tell)
    console(stderr=False).print(f"{out}: {'made' if made else 'already complete'}; {out / 'README.md'} explains it")


main = partial(shared.run, command)
