#!/usr/bin/env python
"""Three ways of training at the same budgets: how accurate, how robust, and how much of it each method proves.

    python scripts/study_training.py                       # activity; then the table, results/studies/training.md
    python scripts/study_training.py --family driving --clips 20 --complete 5

For every network, set and test clip: is the clean clip right, does the attack break it, and do these prove it:
intervals over the whole-clip box; STBP with intervals above the closed-form first layer; STBP with backward bounds and
the support function; the complete verifier (the first clips only). A wrong clean clip counts as broken and unproved.
Of driving a clip is right when the angle is within the tolerance of the true one, and proved when it stays within the
tolerance of the clean output. Networks are trained where --folder does not have them; finished rows are kept.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from study_files import STUDIES, Row, markdown, provenance, read_csv, show
from torch import Tensor, nn

from stbp_milp.attack import AttackConfiguration, attack
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.interval_bound import interval_bound
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.network.model import Model, load_model
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification, VoxelBox
from stbp_milp.st_bench.families import FAMILIES, Family
from stbp_milp.st_bench.training import WAYS, trained
from stbp_milp.verify import verify

HELD_OUT = 4711  # of test clips: no recipe and no budget was chosen on it
SETS = ("window:2", "patch:3x3@2", "everywhere")
BUDGETS = {"activity": (0.05, 0.1, 0.02), "driving": (0.05, 0.1, 0.01), "medical": (0.03, 0.1, 0.01)}
METHODS = ("box interval", "STBP interval", "STBP backward")
FIELDS = ("family", "way", "set", "eps", "clip", "right", "attacked", *METHODS, "complete", "seconds")
HEADER = ("family", "set", "eps", "training", "clips", "clean", "attacked", *METHODS, "complete clips", "verified",
          "falsified", "undecided", "median s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=tuple(FAMILIES), default="activity")
    parser.add_argument("--seed", type=int, default=1, help="of the training (default 1)")
    parser.add_argument("--test-seed", type=int, default=HELD_OUT, help=f"of the test clips (default {HELD_OUT})")
    parser.add_argument("--clips", type=int, default=40, help="test clips (default 40)")
    parser.add_argument("--complete", type=int, default=20, help="of which so many get a complete verdict (default 20)")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds for a complete verdict (default 20)")
    parser.add_argument("--folder", type=Path, default=Path("build/st_bench"), help="where trained networks are kept")
    parser.add_argument("--out", type=Path, default=STUDIES / "training.csv", help="rows; the table lies beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    family = FAMILIES[arguments.family]
    configuration = Configuration(timeout=arguments.timeout, threads=1)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for way in WAYS:
            network = _trained(family, way, arguments.seed, arguments.folder, progress)
            _measure(family, way, network, arguments, configuration, progress)
    _report(arguments.out, arguments, console)


def _trained(family: Family, way: str, seed: int, folder: Path, progress: Progress) -> nn.Module:
    task = progress.add_task(f"training {way}")
    return trained(
        family.name,
        "S",
        way,
        seed,
        folder,
        lambda step, steps, loss: progress.update(task, completed=step, total=steps),
    )


def _measure(
    family: Family,
    way: str,
    network: nn.Module,
    arguments: argparse.Namespace,
    configuration: Configuration,
    progress: Progress,
) -> None:
    """One row for every set and clip that --out does not have."""
    model = load_model(network, family.shape("S"))
    clips, targets = family.draw(arguments.clips, arguments.test_seed)
    done = {(r["family"], r["way"], r["set"], float(r["eps"]), int(r["clip"])) for r in read_csv(arguments.out)}
    jobs = list(product(zip(SETS, BUDGETS[family.name], strict=True), range(arguments.clips)))
    task = progress.add_task(f"measuring {way}", total=len(jobs))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        for (text, eps), clip in jobs:
            if (family.name, way, text, eps, clip) not in done:
                complete = configuration if clip < arguments.complete else None
                row = _one(family, model, clips[clip], targets[clip], SetSpecification(text, eps), complete)
                writer.writerow({"family": family.name, "way": way, "set": text, "eps": eps, "clip": clip, **row})
                file.flush()
            progress.advance(task)


def _one(
    family: Family,
    model: Model,
    clip: Tensor,
    target: Tensor,
    specification: SetSpecification,
    complete: Configuration | None,
) -> dict[str, object]:
    """One clip: bounds of the margin, the smallest margin that the attack finds, the verdict."""
    clip = clip.double()
    outputs = model.network(clip.unsqueeze(0))[0]
    property = family.property(outputs, target)
    if family.property_kind == "class":
        right = float(property.margin(outputs.unsqueeze(0))) > 0
    else:
        right = float((outputs - target).abs().max()) < family.tolerance
    row: dict[str, object] = {"right": int(right)}
    if not right:
        return row
    perturbation = specification.build(clip)
    quick = AttackConfiguration(restarts=5)
    row["attacked"] = _short(attack(model.network, perturbation, property, _generator(), configuration=quick).margin)
    hull = Problem.of(model.network, VoxelBox(clip.unsqueeze(0), *perturbation.hull()))
    problem = Problem.of(model.network, perturbation)
    row["box interval"] = _short(float(interval_bound(hull, *property.forms()).min()))
    row["STBP interval"] = _short(float(interval_bound(problem, *property.forms()).min()))
    bounds = preactivations(problem, BoundingOptions("backward"))
    row["STBP backward"] = _short(float(bound_once(Bounded(problem, bounds), Forms(*property.forms())).lower.min()))
    if complete is not None:
        outcome = verify(Query(model, clip, specification, property), complete)
        row |= {"complete": outcome.word, "seconds": round(outcome.seconds, 2)}
    return row


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _summary(rows: list[dict[str, str]]) -> Iterator[Row]:
    """One line for every family, set and way, in percent of all clips."""
    for key in dict.fromkeys((r["family"], r["set"], r["eps"]) for r in rows):
        for way in WAYS:
            own = [r for r in rows if (r["family"], r["set"], r["eps"]) == key and r["way"] == way]
            if not own:
                continue
            asked = [r for r in own if r["complete"]]
            shares = [_share(own, field) for field in ("attacked", *METHODS)]
            words = [sum(r["complete"] == word for r in asked) for word in ("verified", "falsified", "unknown")]
            seconds = sorted(float(r["seconds"]) for r in asked)
            middle = seconds[len(seconds) // 2] if seconds else None
            clean = f"{100 * sum(r['right'] == '1' for r in own) / len(own):.0f}%"
            yield (*key, way, len(own), clean, *shares, len(asked), *words, middle)


def _share(rows: list[dict[str, str]], field: str) -> str:
    return f"{100 * sum(bool(r[field]) and float(r[field]) > 0 for r in rows) / len(rows):.0f}%"


def _report(path: Path, arguments: argparse.Namespace, console: Console) -> None:
    summary = list(_summary(read_csv(path)))
    show(console, "three ways of training", HEADER, summary)
    page = (
        "# Three ways of training, size S\n\n"
        "Shares of all test clips (`clean`: right; `attacked`: right and not broken by the attack; then: proved by one "
        f"bound of the whole set). Complete verdicts, {arguments.timeout:g} s each, on the first clips that are right. "
        "The radius of a set is the same for the three networks. Every family is a run of its own (`--family`). "
        f"Training seed {arguments.seed}, test clips of seed {arguments.test_seed} ({HELD_OUT} is held out).\n\n"
        f"{markdown(HEADER, summary)}\n{provenance(1)}"
    )
    path.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
