"""`scripts/make_st_bench.py`: from arguments to an exit code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stbp_milp.cli import shared
from stbp_milp.cli.command import configure_logging, guarded
from stbp_milp.cli.screen import console
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE
from stbp_milp.errors import InputError

_HELP = """Make a benchmark of networks, clips and questions that this and other verifiers can run.

The folder DIR gets VNN-COMP's layout: onnx/, clips/, specifications/ (ours), vnnlib/ (where the set is a union of few
boxes), instances.csv, instances_vnnlib.csv and a README.md that explains all of it to a stranger. The same seed makes
the same files (on one kind of machine, with one number of threads, as far as verdicts are found in time). An
interrupted run goes on with the same command.

\b
Examples:
  python scripts/make_st_bench.py --family activity --size S --seed 7 --out results/bench
  python scripts/make_st_bench.py --family activity,medical --size S,M --way pgd --label 120 --out results/bench
  python scripts/run_batch.py results/bench/instances.csv --jobs 2 --out results/bench-run

\b
The version that is shipped, stbp_milp/st_bench/shipped (its networks are those of
`trained(FAMILY, "S", WAY, 1, ...)`, for medical pgd with seed 2 and for driving pgd with seed 3 instead of 1):
  cp -r stbp_milp/st_bench/shipped/onnx networks
  python scripts/make_st_bench.py --family activity,driving,medical --size S --seed 7 --instances 7 \\
      --timeout 30 --settled-within 3 --boxes 8 --chosen --networks networks --out DIR
"""


def _words(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
    if not words:
        raise click.BadParameter("no name was given")
    return words


@click.command("make_st_bench", help=_HELP, context_settings={"max_content_width": 100})
@click.option("--family", "families", callback=_words, required=True, help="Of activity,driving,medical, by commas.")
@click.option("--size", "sizes", callback=_words, default="S", show_default=True, help="Of S,M,L, by commas.")
@click.option(
    "--way", "ways", callback=_words, default="standard,pgd,st-ibp", show_default=True, help="Of training, by commas."
)
@click.option("--seed", type=int, default=7, show_default=True, help="Of training, clips and the choice of questions.")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="The folder to make.")
@click.option("--instances", type=COUNT, default=36, show_default=True, metavar="N", help="Questions a network.")
@click.option("--timeout", type=POSITIVE, metavar="SECONDS", help="Of a question. Default: S 60, M 120, else 300.")
@click.option(
    "--label",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long our verifier looks for each expected verdict; 0: not at all. Default: S 10, else 0.",
)
@click.option(
    "--settled-within",
    type=POSITIVE,
    metavar="SECONDS",
    help="Ask only what our verifier settles in so much processor time.",
)
@click.option(
    "--boxes", type=click.IntRange(min=1, max=5000), default=100, show_default=True, help="Most of a VNN-LIB file."
)
@click.option("--chosen", is_flag=True, help="Also the twelve questions chosen by hand (seed 7, size S, way pgd).")
@click.option(
    "--networks",
    type=FILE,
    metavar="DIR",
    help="Take FAMILY-SIZE-WAY.onnx from here, where it is, instead of training.",
)
@click.option("--steps", type=COUNT, help="Of training, instead of what the recipes say.")
@click.option("--threads", type=COUNT, default=1, show_default=True)
@shared.help_
def _command(**given: Any) -> dict[str, Any]:
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (by default the process's); 0, or the exit code of a failure."""

    def run() -> int:
        try:
            given = _command.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        except click.ClickException as error:
            raise InputError(f"{error.format_message().rstrip('.')}; see --help") from error
        return _run(given) if isinstance(given, dict) else 0

    return guarded(run)


def _run(given: dict[str, Any]) -> int:
    # Importing torch takes seconds: --help and mistyped options need not wait for it.
    from stbp_milp.st_bench.make import Asked, make

    errors = console(stderr=True)
    configure_logging(0, errors)
    logging.getLogger("torch").setLevel(logging.ERROR)
    out = given.pop("out")
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
    console(stderr=False).print(f"{out}: {'made' if made else 'was complete already'}; {out / 'README.md'} explains it")
    return 0
