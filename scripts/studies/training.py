"""Three ways of training at the same budgets: how accurate, how robust, and how much of it each method proves.

    python -m scripts.studies.training                       # activity; then the table, results/studies/training.md
    python -m scripts.studies.training --family driving --clips 20 --complete 5

For every network, set and test clip: is the clean clip right, does the attack break it, and do these prove it:
intervals over the whole-clip box; STBP with intervals above the closed-form first layer; STBP with backward bounds and
the support function; the complete verifier (the first clips only). A wrong clean clip counts as broken and unproved.
Of driving a clip is right when the angle is within the tolerance of the true one, and proved when it stays within the
tolerance of the clean output. Networks are trained where --folder does not have them; finished rows are kept.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from scripts.studies.frame import STUDIES, Row, command, markdown, progress, provenance, read_csv, screen, show
from scripts.studies.frame import main as run
from stbp_milp.attack import AttackConfiguration, attack
from stbp_milp.bounds.bounded import Bounded, Forms
from stbp_milp.bounds.interval_bound import interval_bound
from stbp_milp.bounds.objective import bound_once
from stbp_milp.bounds.preactivation import BoundingOptions, preactivations
from stbp_milp.bounds.problem import Problem
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE
from stbp_milp.network.model import Model, load_model
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification, VoxelBox
from stbp_milp.st_bench.families import FAMILIES, Family
from stbp_milp.st_bench.training import WAYS, recipe, trained
from stbp_milp.verify import verify

HELD_OUT = 4711  # of test clips: no recipe and no budget was chosen on it
SETS = ("window:2", "patch:3x3@2", "everywhere")
BUDGETS = {"activity": (0.05, 0.1, 0.02), "driving": (0.05, 0.1, 0.01), "medical": (0.03, 0.1, 0.01)}
METHODS = ("box interval", "STBP interval", "STBP backward")
FIELDS = ("family", "way", "set", "eps", "clip", "right", "attacked", *METHODS, "complete", "seconds")
HEADER = ("family", "set", "eps", "training", "clips", "clean", "attacked", *METHODS, "complete clips", "verified",
          "falsified", "undecided", "median s")  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What a run of the study measures: how many test clips of which seed, how many of them completely."""

    clips: int
    complete: int
    seed: int
    test_seed: int
    timeout: float
    out: Path


@command(__doc__)
@click.option("--family", "name", type=click.Choice(list(FAMILIES)), default="activity", show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="The seed of the training.")
@click.option("--test-seed", type=int, default=HELD_OUT, show_default=True, help="The seed of the test clips.")
@click.option("--clips", type=COUNT, default=40, show_default=True, help="How many test clips.")
@click.option("--complete", type=int, default=20, show_default=True, help="How many of them get a complete verdict.")
@click.option("--timeout", type=POSITIVE, default=20.0, show_default=True, help="Seconds for a complete verdict.")
@click.option("--folder", type=FILE, default=Path("build/st_bench"), help="Where trained networks are kept.")
@click.option("--out", type=FILE, default=STUDIES / "training.csv", help="The rows; the table lies beside them.")
def main(name: str, folder: Path, **options: Any) -> None:
    torch.set_num_threads(1)
    console, family, asked = screen(), FAMILIES[name], Asked(**options)
    with progress(console) as bars:
        for way in WAYS:
            _measure(family, way, _trained(family, way, asked.seed, folder, bars), asked, bars)
    _report(asked, console)


def _trained(family: Family, way: str, seed: int, folder: Path, bars: Progress) -> nn.Module:
    task = bars.add_task(f"training {way}")
    return trained(
        recipe(family.name, "S", way, seed),
        folder,
        lambda step, steps, loss: bars.update(task, completed=step, total=steps),
    )


def _measure(
    family: Family,
    way: str,
    network: nn.Module,
    asked: Asked,
    bars: Progress,
) -> None:
    """One row for every set and clip that --out does not have."""
    model = load_model(network, family.shape("S"))
    configuration = Configuration(timeout=asked.timeout, threads=1)
    clips, targets = family.draw(asked.clips, asked.test_seed)
    done = {(r["family"], r["way"], r["set"], float(r["eps"]), int(r["clip"])) for r in read_csv(asked.out)}
    jobs = list(product(zip(SETS, BUDGETS[family.name], strict=True), range(asked.clips)))
    task = bars.add_task(f"measuring {way}", total=len(jobs), note="")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with asked.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        for (text, eps), clip in jobs:
            if (family.name, way, text, eps, clip) not in done:
                complete = configuration if clip < asked.complete else None
                row = _one(family, model, clips[clip], targets[clip], SetSpecification(text, eps), complete)
                writer.writerow({"family": family.name, "way": way, "set": text, "eps": eps, "clip": clip, **row})
                file.flush()
            bars.advance(task)


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


def _report(asked: Asked, console: Console) -> None:
    summary = list(_summary(read_csv(asked.out)))
    show(console, "three ways of training", HEADER, summary)
    page = (
        "# Three ways of training, size S\n\n"
        "Shares of all test clips (`clean`: right; `attacked`: right and not broken by the attack; then: proved by one "
        f"bound of the whole set). Complete verdicts, {asked.timeout:g} s each, on the first clips that are right. "
        "The radius of a set is the same for the three networks. Every family is a run of its own (`--family`). "
        f"Training seed {asked.seed}, test clips of seed {asked.test_seed} ({HELD_OUT} is held out).\n\n"
        f"{markdown(HEADER, summary)}\n{provenance(1)}"
    )
    asked.out.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    run(main)
