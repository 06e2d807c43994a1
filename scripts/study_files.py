"""What the study scripts share: how a table of results becomes a Markdown page and a CSV file in results/studies."""

from __future__ import annotations

import csv
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

STUDIES = Path(__file__).resolve().parents[1] / "results" / "studies"

Row = Sequence[object]


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
    command = " ".join(["python", *map(shlex.quote, [f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])])
    return (
        f"Command: `{command}`\n\n"
        f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Threads: {threads}. Machine: {platform.machine()}, "
        f"{os.cpu_count()} cores, shared with other work while this ran, so the times are noisy and rather too long.\n"
    )


def median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
