#!/usr/bin/env python
"""Makes the shipped demonstration again: data, training, ONNX files, test clips; about six minutes on two cores.

    python scripts/make_demonstration.py                  # all three families, into the package
    python scripts/make_demonstration.py --only video --folder /tmp/demonstration
    python scripts/make_demonstration.py --budgets        # also the table of radii where attacks begin

The seeds are fixed. Another machine or another number of threads rounds differently, so weights may differ in the
last digits and a verdict near its limit may change: run `python scripts/verify_complete.py` afterwards.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from stbp_milp.network.model import load_model
from stbp_milp.properties import same_class
from stbp_milp.sets import parse_set
from stbp_milp.st_bench import FOLDER
from stbp_milp.st_bench.adversary import climb
from stbp_milp.st_bench.budgets import attacks_begin
from stbp_milp.st_bench.export import TEST_SEED, write_clips, write_network
from stbp_milp.st_bench.training import RECIPES, Recipe, accuracy, train

BUDGET_SETS = ("window:2", "any-frames:2", "patch:3x3@2", "everywhere")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files go")
    parser.add_argument("--only", choices=[recipe.name for recipe in RECIPES], help="one family")
    parser.add_argument("--budgets", action="store_true", help="write results/studies/demonstration_budgets.json")
    parser.add_argument("--keep", action="store_true", help="do not train, use the files that are there")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    for recipe in RECIPES:
        if not arguments.keep and arguments.only in (None, recipe.name):
            make(recipe, arguments.folder, console)
    if arguments.budgets:
        write_budgets(arguments.folder, Path("results/studies/demonstration_budgets.json"), console)


def make(recipe: Recipe, folder: Path, console: Console) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console) as progress:
        task = progress.add_task(f"training {recipe.name}", total=recipe.steps, loss=float("nan"))
        network = train(recipe, lambda loss: progress.update(task, advance=1, loss=loss))
    clips, targets = recipe.maker(1000, TEST_SEED)
    console.print(f"{recipe.name}: {accuracy(network, clips, targets)} on 1,000 test clips")
    generator = torch.Generator().manual_seed(recipe.seed)
    for text, radius in recipe.adversaries:
        choice = parse_set(text, (clips.shape[2], clips.shape[3], clips.shape[4]))
        attacked = climb(network, recipe.loss, clips, targets, choice, radius, generator, steps=10)
        console.print(f"    under {text} with eps {radius}: {accuracy(network, attacked, targets)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_network(network, clips[:2], folder / f"{recipe.name}.onnx")
    write_clips(*shipped(recipe, network, clips, targets), folder / f"{recipe.name}_clips.npz")


def shipped(recipe: Recipe, network: torch.nn.Module, clips: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The first test clips that the network gets right, the classes in turn (for regression simply the first)."""
    if targets.is_floating_point():
        return clips[: recipe.clips], targets[: recipe.clips]
    with torch.no_grad():
        right = network(clips).argmax(1) == targets
    classes = [(right & (targets == label)).nonzero().flatten() for label in range(int(targets.max()) + 1)]
    rounds = min(len(index) for index in classes)
    index = torch.stack([index[:rounds] for index in classes], 1).flatten()[: recipe.clips]
    return clips[index], targets[index]


def write_budgets(folder: Path, path: Path, console: Console) -> None:
    """Where attacks begin on the first ten video clips."""
    network = load_model(folder / "video.onnx").network
    content = np.load(folder / "video_clips.npz")
    table: dict[str, list[float | None]] = {}
    for text in BUDGET_SETS:
        table[text] = []
        for clip, label in zip(content["clips"][:10], content["labels"][:10], strict=True):
            property = same_class(int(label), 4)
            table[text].append(attacks_begin(network, torch.from_numpy(clip).double(), text, property))
        console.print(f"{text:>14}:", *[" none" if e is None else f"{e:5.3f}" for e in table[text]])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"model": "video.onnx", "attacks begin at eps, clip by clip": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
