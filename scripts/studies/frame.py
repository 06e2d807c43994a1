"""What studies and benchmarks share: their command line, and tables on the screen and in results/studies."""

from __future__ import annotations

import csv
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from stbp_milp.cli.screen import console as console_for
from stbp_milp.cli.shared import run

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "results" / "studies"

Row = Sequence[object]


def command(text: str | None) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command whose help is the module's docstring, with its indented paragraphs as they stand."""
    paragraphs = (text or "").strip().split("\n\n")
    help_ = "\n\n".join("\b\n" + part if part.startswith("    ") else part for part in paragraphs)
    return click.command(help=help_, context_settings={"max_content_width": 120, "help_option_names": ["-h", "--help"]})


def main(of: click.Command) -> None:
    """Run a command as a process: of bad input stderr says one sentence, and the exit code is 2."""
    sys.exit(run(of, program=f"python -m {_module()}"))


def _module() -> str:
    """The name with which `python -m` runs this process."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).name


def screen() -> Console:
    """The console for tables, wide enough for them where stdout is a pipe."""
    return console_for(stderr=False)


def progress(console: Console) -> Progress:
    """A bar per task, with a note of what it is at (`note=` of `add_task` and `update`)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console)


def shown(value: object) -> str:
    """A cell: numbers short, nothing for what was not measured."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(console: Console, title: str, header: Sequence[str], rows: Sequence[Row]) -> None:
    """The table on the screen."""
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(shown, row))
    console.print(table)


def markdown(header: Sequence[str], rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [header, ["---"] * len(header), *[list(map(shown, row)) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def publish(name: str, page: Sequence[str], header: Sequence[str], rows: Sequence[Row]) -> None:
    """Write the page as Markdown and the rows as CSV, under this name in results/studies."""
    STUDIES.mkdir(parents=True, exist_ok=True)
    (STUDIES / f"{name}.md").write_text("\n".join(page))
    write_csv(STUDIES / f"{name}.csv", header, rows)


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([shown(value) if value is not None else "" for value in row] for row in rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of an earlier run, none where there was no run."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def provenance(threads: int) -> str:
    """How the numbers came about: command, date, machine."""
    command = shlex.join(["python", "-m", _module(), *sys.argv[1:]])
    return (
        f"Command: `{command}`\n\n"
        f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Threads: {threads}. Machine: {platform.machine()}, "
        f"{os.cpu_count()} cores, shared with other work while this ran, so the times are noisy and rather too long.\n"
    )


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
