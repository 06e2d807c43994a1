#!/usr/bin/env python
"""How far each method gets on the shipped activity network.

    python scripts/study_demonstration.py                                # 10 clips, 4 sets, 3 budgets, 60 s each
    python scripts/study_demonstration.py --clips 3 --timeout 10 --factors 0.5,0.9

For every clip and set the radius is found from which an attack succeeds; the budgets are multiples of it. Methods:
the whole-clip box with backward bounds; STBP with intervals above the closed-form first layer; STBP with backward
bounds and the support function; the complete verifier. Finished instances are kept in --out and not run again.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from study_files import read_csv
from torch import Tensor

from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.interval_bound import interval_bound
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.model import Model, load_model
from stbp_milp.properties import same_class
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification, VoxelBox
from stbp_milp.st_bench import SHIPPED
from stbp_milp.st_bench.budgets import attacks_begin
from stbp_milp.verify import verify

SETS = ("window:2", "any-frames:2", "patch:3x3@2", "everywhere")
METHODS = ("box backward", "STBP interval", "STBP backward")
FIELDS = ("set", "factor", "clip", "epsilon", *METHODS, "verdict", "lower", "upper", "decided by", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SHIPPED / "onnx" / "activity-S-pgd.onnx")
    parser.add_argument("--clip-file", type=Path, default=SHIPPED / "clips" / "activity-S.npz", help="clips and labels")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--factors", default="0.5,0.75,1.0", help="budgets, as multiples of where attacks begin")
    parser.add_argument("--sets", default=";".join(SETS), help="separated by semicolons")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds an instance")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--solver", default="auto")
    parser.add_argument("--out", type=Path, default=Path("results/studies/demonstration"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    configuration = Configuration(timeout=arguments.timeout, threads=arguments.threads, solver=arguments.solver)
    model = load_model(arguments.model)
    content = np.load(arguments.clip_file)
    path = arguments.out.with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_csv(path)
    done = {(r["set"], float(r["factor"]), int(r["clip"])) for r in rows}
    factors = [float(f) for f in arguments.factors.split(",")]
    sets = arguments.sets.split(";")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not rows:
            writer.writeheader()
        for text, clip in track([(s, c) for s in sets for c in range(arguments.clips)], description="clips"):
            if all((text, factor, clip) in done for factor in factors):
                continue
            voxels, label = torch.from_numpy(content["clips"][clip]).double(), int(content["labels"][clip])
            begins = attacks_begin(model.network, voxels, text, same_class(label, 4)) or 1.0
            for factor in factors:
                if (text, factor, clip) not in done:
                    query = Query(
                        model, voxels, SetSpecification(text, min(1.0, factor * begins)), same_class(label, 4)
                    )
                    row = {"set": text, "factor": factor, "clip": clip, **_instance(model, query, configuration)}
                    rows.append({k: str(v) for k, v in row.items()})
                    writer.writerow(row)
                    file.flush()
    _report(rows, arguments.out, arguments.timeout)


def _instance(model: Model, query: Query, configuration: Configuration) -> dict[str, object]:
    """The three one-pass bounds and the complete verdict."""
    perturbation = query.set.build(query.clip)
    hull = VoxelBox(query.clip.unsqueeze(0), *perturbation.hull())
    result: dict[str, object] = {"epsilon": round(query.set.epsilon, 6)}
    forms = query.property.forms()
    whole_box, whole_set = Problem.of(model.network, hull), Problem.of(model.network, perturbation)
    bounds = (
        _backward_bound(whole_box, *forms),
        interval_bound(whole_set, *forms),
        _backward_bound(whole_set, *forms),
    )
    result |= {name: round(float(bound.min()), 6) for name, bound in zip(METHODS, bounds, strict=True)}
    outcome = verify(query, configuration)
    return result | {
        "verdict": outcome.word,
        "lower": round(outcome.lower, 6),
        "upper": round(outcome.upper, 6),
        "decided by": outcome.decided_by or "-",
        "seconds": round(outcome.seconds, 3),
    }


def _backward_bound(problem: Problem, rows: Tensor, offset: Tensor) -> Tensor:
    return bound_once(Bounded(problem, preactivations(problem, BoundingOptions("backward"))), Forms(rows, offset)).lower


def _report(rows: list[dict[str, str]], out: Path, timeout: float) -> None:
    """On the screen, and as Markdown beside the CSV."""
    header = ["set", "budget", *(f"proved: {m}" for m in METHODS), "complete: verified", "falsified", "undecided",
              "median s", "total s", "decided by"]  # fmt: skip
    table = Table(*header, title=f"activity network, {timeout:g} s an instance")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    keys = sorted(
        {(r["set"], float(r["factor"])) for r in rows}, key=lambda k: (SETS.index(k[0]) if k[0] in SETS else 9, k)
    )
    decided = 0
    for text, factor in keys:
        own = [r for r in rows if r["set"] == text and float(r["factor"]) == factor]
        words = Counter(r["verdict"] for r in own)
        decided += words["verified"] + words["falsified"]
        seconds = [float(r["seconds"]) for r in own]
        stages = Counter(r["decided by"] for r in own if r["verdict"] != "unknown")
        cells = [
            text,
            f"{factor:g} x",
            *(str(sum(float(r[m]) > 0 for r in own)) for m in METHODS),
            str(words["verified"]),
            str(words["falsified"]),
            str(words["unknown"]),
            f"{statistics.median(seconds):.1f}",
            f"{sum(seconds):.0f}",
            ", ".join(f"{stage} {n}" for stage, n in stages.most_common()),
        ]
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(
        f"\n{decided} of {len(rows)} instances decided ({100 * decided / max(1, len(rows)):.1f}%), "
        + time.strftime("%Y-%m-%d.")
    )
    console = Console()
    console.print(table, lines[-1].strip())
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
