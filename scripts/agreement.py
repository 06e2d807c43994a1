#!/usr/bin/env python
"""Verdicts on random micro-instances against exact optima of SCIP and of HiGHS and against all members one by one.

    python scripts/agreement.py --instances 500 --seed 0

The instances and the methods are in tests/micro_instances.py. Exit code 4 if anybody contradicts anybody.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]

from micro_instances import KINDS, Comparison, compare, draw  # noqa: E402

from stbp_milp.cli.screen import console as console_for  # noqa: E402
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE, run  # noqa: E402
from stbp_milp.query import Configuration, SolverName  # noqa: E402

WORDS = ("verified", "falsified", "unknown")


def describe(comparison: Comparison) -> dict[str, Any]:
    """One instance in words and numbers."""
    instance, outcome = comparison.instance, comparison.outcome
    return {
        "instance": instance.seed,
        "network": instance.body,
        "set": instance.query.set.text,
        "eps": instance.query.set.epsilon,
        "clip": list(instance.query.clip.shape),
        "property": instance.query.property.text,
        "verdict": outcome.word,
        "decided by": outcome.decided_by,
        "lower": outcome.lower,
        "upper": outcome.upper,
        "scip": asdict(comparison.scip),
        "highs": asdict(comparison.highs),
        "members": asdict(comparison.members) if comparison.members else None,
        "seconds": {"verify": comparison.seconds[0], "other methods": comparison.seconds[1]},
        "contradictions": list(comparison.contradictions),
    }


def table(records: list[dict[str, Any]]) -> Table:
    """Counts by set and verdict; in brackets those whose exact optimum is within 0.01 of 0."""
    result = Table("set", *(f"{w} (near)" for w in WORDS), "listed", "verify s", "others s")
    for kind in (*KINDS, ""):
        own = [r for r in records if not kind or r["set"].split(":")[0] == kind]
        if not own:
            continue
        words, near = (
            Counter(r["verdict"] for r in own),
            Counter(r["verdict"] for r in own if abs(r["scip"]["upper"]) < 0.01),
        )
        verify, others = (sum(r["seconds"][part] for r in own) for part in ("verify", "other methods"))
        enumerated = sum(r["members"] is not None for r in own)
        counts = [f"{words[w]} ({near[w]})" for w in WORDS]
        result.add_row(kind or "all", *counts, str(enumerated), f"{verify:.1f}", f"{others:.1f}")
    return result


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.option("--instances", type=COUNT, default=500, show_default=True, help="How many instances are compared.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The number of the first one.")
@click.option("--nearest", type=POSITIVE, default=1e-3, show_default=True, help="The optimum's least distance from 0.")
@click.option("--timeout", type=POSITIVE, default=20.0, show_default=True, help="Seconds for each instance.")
@click.option("--solver", type=click.Choice(["auto", "scip", "gurobi", "highs", "none"]), default="auto")
@click.option("--out", type=FILE, help="A JSON file for all instances, for example results/agreement.json.")
def main(instances: int, seed: int, nearest: float, timeout: float, solver: SolverName, out: Path | None) -> int:
    torch.set_num_threads(1)
    console, began = console_for(stderr=False), time.monotonic()
    configuration = Configuration(timeout=timeout, solver=solver, threads=1)
    records: list[dict[str, Any]] = []
    crashes: list[tuple[int, AssertionError]] = []
    numbers = range(seed, seed + instances)
    for number in track(numbers, "instances", console=console, disable=not console.is_terminal):
        try:
            records.append(describe(compare(draw(number, nearest), configuration)))
        except AssertionError as error:  # a SoundnessError, or an oracle that found nothing
            crashes.append((number, error))
    console.print(table(records))
    decided = Counter(str(r["decided by"]) for r in records)
    console.print("decided by:", ", ".join(f"{stage} {n}" for stage, n in decided.most_common()))
    for record in records:
        if record["contradictions"] or record["verdict"] == "unknown":
            console.print_json(data=record)
    for number, error in crashes:
        console.print(f"instance {number}: {error}")
    found = sum(bool(r["contradictions"]) for r in records) + len(crashes)
    undecided = sum(r["verdict"] == "unknown" for r in records)
    seconds = time.monotonic() - began
    console.print(f"{len(numbers)} instances, {found} with contradictions, {undecided} undecided, {seconds:.0f} s")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        asked = {"instances": instances, "seed": seed, "nearest": nearest, "timeout": timeout, "solver": solver}
        out.write_text(json.dumps({"arguments": asked, "instances": records}, indent=1))
    return 4 if found else 0


if __name__ == "__main__":
    sys.exit(run(main))
