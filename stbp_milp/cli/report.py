"""`stbp-milp report`, or `scripts/make_report.py`: the results of a run as one HTML file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from stbp_milp.cli import shared
from stbp_milp.cli.screen import configure_logging, console
from stbp_milp.cli.shared import FILE, Exit

_HELP = """Write the results of a run as one HTML file.

RUN is the folder to which '{batch}' or '{verify}' wrote its results. The page needs no server and no network. It
shows a summary, a cactus plot, the time and the bounds of every instance, filters, and a viewer of each
counterexample.

\b
Examples:
  {report} results/night
  {report} results/night --against results/yesterday --out night.html
"""

_EXIT_CODES = {
    Exit.DONE: "The page was written. Files of the run that could not be read are left out, and stderr names them."
}


@click.command("report", cls=shared.Subcommand, help=_HELP, exit_codes=_EXIT_CODES)
@click.argument("run", type=FILE)
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="The HTML file. An older one is replaced.  [default: RUN/report.html]",
)
@click.option(
    "--against",
    type=FILE,
    metavar="RUN",
    help="Compare with this run: which verdicts changed, and which instances became slower or faster.",
)
@click.option(
    "--clips",
    metavar="SIZE",
    default="32M",
    show_default=True,
    help="The size that clips may take up in the page. Counterexamples beyond it are named but not shown.",
)
@shared.usual
def command(run: Path, out: Path | None, against: Path | None, clips: str, verbose: int) -> None:
    configure_logging(verbose, console(stderr=True))
    # Importing torch takes seconds: --help and mistyped options need not wait for it.
    from stbp_milp.inputs import parse_bytes
    from stbp_milp.report.html import write_report
    from stbp_milp.report.html.figures import size
    from stbp_milp.report.html.run import read_run

    room = parse_bytes(clips, "--clips")
    shown = read_run(run)
    other = read_run(against) if against else None
    written = write_report(shown, out or run / "report.html", other, room)
    for warning in written.warnings:
        click.echo(f"warning: {warning}", err=True)
    left_out = f", {written.left_out:,} left out because of their size (see --clips)" if written.left_out else ""
    counted = f"{len(shown.instances):,} instances, {written.viewers:,} viewers{left_out}"
    click.echo(f"{written.path}: {counted}, {size(written.bytes)}")


main = partial(shared.run, command)
