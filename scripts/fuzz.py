"""Hostile instances against exact rational arithmetic: is the verifier ever wrong?

    python -m scripts.fuzz --instances 5000 --jobs 2 --out fuzz.jsonl
    python -m scripts.fuzz --family rounding --instances 100

The families are in tests/hostile/cases.py, the judge in tests/hostile/judge.py. An instance is named by its family and
its number; every other one is asked *blind*, without attack and minimisers, so that only proofs decide. With `--out`,
a run that was interrupted goes on where it stopped. Exit code 4 on the first wrong answer, 1 if there were crashes.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from scripts.studies.frame import command, screen
from scripts.studies.frame import main as run
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE
from stbp_milp.errors import InputError
from tests.hostile.cases import FAMILIES, draw
from tests.hostile.judge import SOLVERS, Fault, ask

WORDS = ("verified", "falsified", "unknown", "refused", "stopped")

Name = tuple[str, int]


def names(families: list[str], first: int, count: int) -> list[Name]:
    """Instances `first, first + 1, ...`: of one family, or of all in turn."""
    return [(families[n % len(families)], n // len(families)) for n in range(first, first + count)]


def tried(name: Name, solver: str, mode: str, timeout: float | None) -> dict[str, Any]:
    """One instance, asked and judged, in words and numbers."""
    torch.set_num_threads(1)
    family, number = name
    blinded = number % 2 == 0 if mode == "alternate" else mode == "blind"
    used = SOLVERS[number // 2 % len(SOLVERS)] if solver == "alternate" else solver
    limit = 1.0 + number % 3 if timeout is None else timeout
    began = time.monotonic()
    instance = draw(family, number)
    drawn = time.monotonic() - began
    answer = ask(instance, used, blinded, limit)  # type: ignore[arg-type]
    outcome, region = answer.outcome, instance.region
    record = {
        "family": family,
        "number": number,
        "blind": blinded,
        "solver": used,
        "timeout": limit,
        "dtype": "float64" if instance.program.double else "float32",
        "set": region.text,
        "eps": region.epsilon,
        "domain": list(region.domain),
        "word": answer.word,
        "note": answer.note,
        "decided by": outcome.decided_by if outcome else None,
        "lower": outcome.lower if outcome else None,
        "upper": outcome.upper if outcome else None,
        "least known": float(instance.least),
        "seconds": {"draw": drawn, "ask": answer.seconds},
        "faults": [{"kind": f.kind, "text": f.text, "amount": f.amount} for f in answer.faults],
    }
    if answer.faults:
        record["reproduce"] = (
            f"python -m scripts.fuzz --family {family} --first {number} --instances 1 "
            f"--solver {used} --mode {'blind' if blinded else 'open'} --timeout {limit:g}"
        )
        record["instance"] = {
            "clip": region.clip.tolist(),
            "rows": instance.rows.tolist(),
            "offset": instance.offset.tolist(),
            "clauses": instance.clauses,
            "steps": [f"{type(step.operator).__name__} of {step.reads}" for step in instance.program.steps],
            "points": [_point(f) for f in answer.faults],
        }
    return record


def _point(fault: Fault) -> list[str] | None:
    """The clip, flat, as fractions."""
    return None if fault.point is None else [str(v) for v in fault.point.ravel()]


def table(records: list[dict[str, Any]]) -> Table:
    result = Table("family", *WORDS, "faults", "seconds each (most)")
    for family in (*FAMILIES, ""):
        own = [r for r in records if not family or r["family"] == family]
        if not own:
            continue
        words = Counter(r["word"] for r in own)
        faults = Counter(f["kind"] for r in own for f in r["faults"])
        seconds = [sum(r["seconds"].values()) for r in own]
        result.add_row(
            family or "all",
            *(str(words[w]) for w in WORDS),
            ", ".join(f"{kind} {n}" for kind, n in faults.most_common()),
            f"{sum(seconds) / len(own):.2f} ({max(seconds):.1f})",
        )
    return result


def _read(out: Path | None) -> list[dict[str, Any]]:
    """What an earlier run wrote; a last line that was cut off is left out."""
    if out is None or not out.exists():
        return []
    lines = out.read_text().split("\n")
    whole = lines[:-1]
    if lines[-1]:
        out.write_text("".join(line + "\n" for line in whole))
    return [json.loads(line) for line in whole]


def _answers(work: partial[dict[str, Any]], todo: list[Name], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs == 1:
        yield from map(work, todo)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=500) as pool:
        yield from pool.imap_unordered(work, todo)


def _is_wrong(record: dict[str, Any]) -> bool:
    return any(f["kind"] != "crash" for f in record["faults"])


def _run(
    console: Console,
    answers: Iterable[dict[str, Any]],
    records: list[dict[str, Any]],
    total: int,
    out: Path | None,
    keep_going: bool,
) -> None:
    """Reports as it goes, and stops at the first wrong answer unless it is to go on."""
    told = time.monotonic()
    for record in answers:
        records.append(record)
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(record) + "\n")
        for fault in record["faults"]:
            console.print(f"{record['family']} {record['number']}: {fault['kind']}: {fault['text']}", soft_wrap=True)
        if _is_wrong(record) and not keep_going:
            console.print_json(data=record)
            return
        if time.monotonic() - told > 30:
            told = time.monotonic()
            wrong = sum(map(_is_wrong, records))
            console.print(f"{len(records)} of {total} instances, {wrong} wrong", highlight=False)


@command(__doc__)
@click.option("--instances", type=COUNT, default=5000, show_default=True, help="How many instances are asked.")
@click.option("--first", "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The first number.")
@click.option("--family", type=click.Choice([*FAMILIES, "all"]), default="all", help="Ask one family only.")
@click.option("--jobs", type=COUNT, default=1, show_default=True, help="The number of processes.")
@click.option(
    "--mode", type=click.Choice(["alternate", "blind", "open"]), default="alternate", help="Whether attacks are used."
)
@click.option("--solver", type=click.Choice(["alternate", *SOLVERS, "gurobi"]), default="alternate")
@click.option("--timeout", type=POSITIVE, help="Seconds for each instance. Without it, 1, 2 and 3 in turn.")
@click.option("--out", type=FILE, help="A JSON Lines file; what is in it already is not asked again.")
@click.option("--keep-going", is_flag=True, help="Count wrong answers instead of stopping at the first one.")
def main(instances: int, first: int, family: str, jobs: int, out: Path | None, keep_going: bool, **how: Any) -> int:
    console, began = screen(), time.monotonic()
    families = list(FAMILIES) if family == "all" else [family]
    wanted = names(families, first, instances)
    if out is not None and not out.parent.is_dir():
        raise InputError(f"there is no folder {str(out.parent)!r} for --out; make it first")
    records = [r for r in _read(out) if (r["family"], r["number"]) in set(wanted)]
    known = {(r["family"], r["number"]) for r in records}
    todo = [name for name in wanted if name not in known]
    _run(console, _answers(partial(tried, **how), todo, jobs), records, len(wanted), out, keep_going)
    console.print(table(records))
    wrong, crashed = sum(map(_is_wrong, records)), sum(bool(r["faults"]) for r in records)
    seconds = time.monotonic() - began
    console.print(f"{len(records)} instances, {wrong} wrong, {crashed - wrong} crashed, {seconds:.0f} s")
    return 4 if wrong else 1 if crashed else 0


if __name__ == "__main__":
    run(main)
