"""How far each method gets on the shipped activity network.

    python -m scripts.studies.demonstration                                # 10 clips, 4 sets, 3 budgets, 60 s each
    python -m scripts.studies.demonstration --clips 3 --timeout 10 --factors 0.5,0.9

For every clip and set the radius is found from which an attack succeeds; the budgets are multiples of it. Methods:
the whole-clip box with backward bounds; STBP with intervals above the closed-form first layer; STBP with backward
bounds and the support function; the complete verifier. Finished instances are kept in --out and not run again.
"""

from __future__ import annotations

import csv
import time
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from scripts.studies.frame import STUDIES, command, markdown, median, read_csv, screen, show
from scripts.studies.frame import main as run
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.interval_bound import interval_bound
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE, solver
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


@command(__doc__)
@click.option("--model", "path", type=FILE, default=SHIPPED / "onnx" / "activity-S-pgd.onnx", help="The network.")
@click.option("--clip-file", type=FILE, default=SHIPPED / "clips" / "activity-S.npz", help="Its clips and labels.")
@click.option("--clips", type=COUNT, default=10, show_default=True, help="How many of the clips.")
@click.option("--factors", default="0.5,0.75,1.0", show_default=True, help="Budgets, times where attacks begin.")
@click.option("--sets", default=";".join(SETS), show_default=True, help="The sets, separated by semicolons.")
@click.option("--timeout", type=POSITIVE, default=60.0, show_default=True, help="Seconds per instance.")
@click.option("--threads", type=COUNT, default=2, show_default=True, help="Threads of torch and of the solver.")
@solver
@click.option("--out", type=FILE, default=STUDIES / "demonstration", help="The tables' path, without an extension.")
def main(path: Path, clip_file: Path, clips: int, factors: str, sets: str, out: Path, **configuration: Any) -> None:
    torch.set_num_threads(configuration["threads"])
    model, content = load_model(path), np.load(clip_file)
    multiples = [float(factor) for factor in factors.split(",")]
    rows = read_csv(out.with_suffix(".csv"))
    done = {(r["set"], float(r["factor"]), int(r["clip"])) for r in rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".csv").open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not rows:
            writer.writeheader()
        for text, clip in track(list(product(sets.split(";"), range(clips))), description="clips"):
            todo = [factor for factor in multiples if (text, factor, clip) not in done]
            if not todo:
                continue
            voxels, label = torch.from_numpy(content["clips"][clip]).double(), int(content["labels"][clip])
            begins = attacks_begin(model.network, voxels, text, same_class(label, 4)) or 1.0
            for factor in todo:
                asked = SetSpecification(text, min(1.0, factor * begins))
                query = Query(model, voxels, asked, same_class(label, 4))
                answer = _instance(model, query, Configuration(**configuration))
                row = {"set": text, "factor": factor, "clip": clip, **answer}
                rows.append({k: str(v) for k, v in row.items()})
                writer.writerow(row)
                file.flush()
    _report(rows, out, configuration["timeout"])


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
    """On the screen, and as Markdown beside the CSV file."""
    header = ["set", "budget", *(f"proved: {m}" for m in METHODS), "complete: verified", "falsified", "undecided",
              "median s", "total s", "decided by"]  # fmt: skip
    keys = sorted(
        {(r["set"], float(r["factor"])) for r in rows}, key=lambda k: (SETS.index(k[0]) if k[0] in SETS else 9, k)
    )
    summary: list[list[object]] = []
    for text, factor in keys:
        own = [r for r in rows if r["set"] == text and float(r["factor"]) == factor]
        words, seconds = Counter(r["verdict"] for r in own), [float(r["seconds"]) for r in own]
        stages = Counter(r["decided by"] for r in own if r["verdict"] != "unknown")
        proved = [sum(float(r[method]) > 0 for r in own) for method in METHODS]
        by = ", ".join(f"{stage} {n}" for stage, n in stages.most_common())
        verdicts = [words[word] for word in ("verified", "falsified", "unknown")]
        summary.append([text, f"{factor:g} x", *proved, *verdicts, median(seconds), sum(seconds), by])
    decided = sum(r["verdict"] != "unknown" for r in rows)
    share = 100 * decided / max(1, len(rows))
    closing = f"{decided} of {len(rows)} instances decided ({share:.1f}%), {time.strftime('%Y-%m-%d')}."
    console = screen()
    show(console, f"activity network, {timeout:g} s per instance", header, summary)
    console.print(closing)
    out.with_suffix(".md").write_text(f"{markdown(header, summary)}\n{closing}\n")


if __name__ == "__main__":
    run(main)
