"""The command that makes a report: `python scripts/make_report.py results/NAME`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stbp_milp.cli import shared
from stbp_milp.cli.command import BAD_INPUT, INTERNAL_ERROR, INTERRUPTED
from stbp_milp.cli.shared import FILE
from stbp_milp.errors import InputError

_HELP = """Write the results of a run as one HTML file, to be opened in a browser.

RUN is the folder that run_batch.py or verify_complete.py wrote. The page needs no server and no network: summary,
cactus plot, time and bounds of every instance, filters, and a viewer of every counterexample.

\b
Examples:
  python scripts/make_report.py results/night
  python scripts/make_report.py results/night --against results/yesterday --out night.html

\b
Exit codes:
  0  written            (a file of the run that cannot be read is left out and named)
  2  bad input          (one sentence says what to do)
  70 any other error in the program, 130 interrupted by Ctrl-C
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportOptions:
    """The command line as it was given; None where an option was not."""

    run: Path
    out: Path | None
    against: Path | None
    clips: str


@click.command("make_report", help=_HELP, context_settings={"max_content_width": 100})
@click.argument("run", type=FILE)
@click.option("--out", type=FILE, metavar="FILE", help="The page. Default: RUN/report.html; an older page is replaced.")
@click.option("--against", type=FILE, metavar="RUN", help="Another run: what changed its verdict, slower, faster.")
@click.option(
    "--clips",
    metavar="SIZE",
    default="32M",
    show_default=True,
    help="How much of the page clips may take; the counterexamples beyond are named, not embedded.",
)
@shared.version
@shared.help_
def _command(**given: Any) -> ReportOptions:
    return ReportOptions(**given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report that `arguments` (by default the process's) ask for; the exit code as `--help` explains it."""
    logging.basicConfig(level=logging.WARNING)
    try:
        options = parse(arguments)
        if options is not None:
            _write(options)
        return 0
    except InputError as error:
        return _fail(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:
        logger.exception("unexpected error")
        return _fail(f"unexpected {type(error).__name__}: {error}; this is a bug, please report it", INTERNAL_ERROR)


def parse(arguments: Sequence[str] | None = None) -> ReportOptions | None:
    """The options in `arguments`; None where `--help` or `--version` was answered.

    Raises:
        InputError: an unknown option, or no RUN.
    """
    try:
        parsed = _command.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        raise InputError(f"{error.format_message().rstrip('.')}; see --help") from error
    return parsed if isinstance(parsed, ReportOptions) else None


def _write(options: ReportOptions) -> None:
    # Importing torch takes seconds: --help and mistyped options need not wait for it.
    from stbp_milp.inputs import parse_bytes
    from stbp_milp.report.html import write_report
    from stbp_milp.report.html.figures import size
    from stbp_milp.report.html.run import read_run

    room = parse_bytes(options.clips)
    run = read_run(options.run)
    against = read_run(options.against) if options.against else None
    written = write_report(run, options.out or options.run / "report.html", against, room)
    for warning in written.warnings:
        click.echo(f"warning: {warning}", err=True)
    left_out = f", {written.left_out} left out for their size (--clips)" if written.left_out else ""
    counted = f"{len(run.instances):,} instances, {written.viewers:,} viewers{left_out}"
    click.echo(f"{written.path}: {counted}, {size(written.bytes)}")


def _fail(message: str, code: int) -> int:
    click.echo("error: " + " ".join(message.split()), err=True)
    return code
