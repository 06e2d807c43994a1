"""The shipped bench: every instance in turn, compared with the verdict it should have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stbp_milp.cli.one_clip import Archive, read_configuration
from stbp_milp.cli.screen import Screen
from stbp_milp.cli.shared import Exit
from stbp_milp.files import prepare_folder
from stbp_milp.instance_list import read_instances
from stbp_milp.instances import read_specification
from stbp_milp.network.model import load_model
from stbp_milp.query import Query
from stbp_milp.records import Record
from stbp_milp.report.terminal import BenchRow, LiveLine, bench_table, verdict_line
from stbp_milp.st_bench import SHIPPED
from stbp_milp.verify import verify

if TYPE_CHECKING:
    from stbp_milp.cli.verify import VerifyOptions

_SHOWN_LIVE = 8  # rows; more than a screen would flicker


@dataclass(frozen=True, eq=False)
class ShippedInstance:
    """A question of a list, ready to be verified.

    Attributes:
        clip: where it is, as the specification says it.
        timeout: seconds.
        expected: the verdict; "" where nobody knows it.
    """

    name: str
    model: str
    clip: str
    query: Query
    timeout: float
    expected: str


def instances(path: Path = SHIPPED / "instances.csv") -> tuple[ShippedInstance, ...]:
    """The instances of a list of specifications of ours, in its order.

    Raises:
        InputError: a file cannot be read, or model, clip, set and property do not fit together.
    """
    load = lru_cache(maxsize=None)(load_model)
    found: list[ShippedInstance] = []
    for listed in read_instances(path):
        asked = read_specification(listed.specification)
        query = asked.query(load(listed.model))
        name = asked.name or listed.specification.stem
        found.append(ShippedInstance(name, listed.model.name, asked.clip, query, listed.timeout, asked.expected or ""))
    return tuple(found)


def run(options: VerifyOptions, screen: Screen) -> int:
    """Verify all instances; 0 if every verdict is the expected one, 3 if some stayed open, 4 if one contradicts.

    Raises:
        SoundnessError: two methods contradict each other.
    """
    began = datetime.now(UTC)
    folder = prepare_folder(options.out / f"shipped-{began.strftime('%Y%m%dT%H%M%SZ')}")
    archive = Archive(folder, options.command)
    shipped = instances()
    rows = [BenchRow(i.name, i.query.set.text, i.query.set.epsilon, i.expected, i.model) for i in shipped]
    records: list[Record] = []
    live = LiveLine(screen.errors, 0.0, shown=not screen.quiet)
    try:
        with live:
            for at, instance in enumerate(shipped):
                configuration = read_configuration(options, instance.timeout)
                live.start(configuration.timeout, bench_table(rows, _SHOWN_LIVE))
                at_start = datetime.now(UTC)
                outcome = verify(instance.query, configuration, live.update)
                rows[at] = replace(rows[at], outcome=outcome)
                source, label = f"{instance.clip} for {instance.model}", f"{at + 1:02d} {instance.name}"
                kept = archive.keep(instance.query, configuration, outcome, source, at_start, label)
                records.append(kept.record)
    except KeyboardInterrupt:
        screen.say(bench_table(rows))
        click.echo(f"interrupted in instance {rows[len(records)].name}: {live.text()}", err=True)
        return Exit.INTERRUPTED
    screen.say(bench_table(rows), f"records, clips and pictures: {folder}")
    _print_for_machines(rows, records, screen)
    return exit_code(rows)


def exit_code(rows: Sequence[BenchRow]) -> Exit:
    """0 where every instance came out as expected, 4 where one contradicts its expectation, else 3."""
    marks = {row.mark for row in rows}
    return Exit.CONTRADICTION if "WRONG" in marks else Exit.OPEN if "open" in marks else Exit.DONE


def _print_for_machines(rows: Sequence[BenchRow], records: Sequence[Record], screen: Screen) -> None:
    if screen.as_json:
        click.echo("[\n" + ",\n".join(record.to_json().strip() for record in records) + "\n]")
    elif screen.quiet:
        for row in rows:
            if row.outcome is not None:
                click.echo(f"{row.group}, {row.set_text}, {row.name}: {verdict_line(row.outcome)}")
