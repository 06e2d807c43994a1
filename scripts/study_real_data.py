#!/usr/bin/env python
"""The verifier on data nobody made for it: medical volumes, and a published network on zoom videos.

    python scripts/study_real_data.py --data ../shared/data
    python scripts/study_real_data.py --data ../shared/data --only zoom

Volumes: AdrenalMNIST3D (MedMNIST v2, 28x28x28, two classes). A 3D CNN of 1,916 ReLUs is trained here against the sets
it is verified on (a few minutes on one core; kept under --out, not part of the project), then the first correctly
classified test volumes are verified for `window:2` (any two neighbouring slices) and `patch:3x3@2` (3x3 voxels through
two neighbouring slices, anywhere), at multiples of the radius where our own attack begins to succeed.

Zoom videos: zoomin_4f.onnx of Sasaki et al. (FormaliSE 2025), 33k ReLUs, all frames at once.

Tables go to the screen and, as Markdown and CSV, to results/studies. Without the data the script says so and ends.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from study_files import STUDIES, markdown, median, provenance, show, write_csv
from torch import Tensor, nn

from stbp_milp.network.model import Model, load_model
from stbp_milp.properties import Property, same_class
from stbp_milp.query import Configuration, Query
from stbp_milp.sets import SetSpecification, parse_set
from stbp_milp.st_bench.budgets import attacks_begin
from stbp_milp.st_bench.export import write_network
from stbp_milp.st_bench.training import Recipe, climb, train
from stbp_milp.verdict import Outcome
from stbp_milp.verify import verify

VOLUME_SETS = ("window:2", "patch:3x3@2")
WORDS = ("verified", "falsified", "unknown")
HEADER = ("set", "item", "eps", "times begin", "verdict", "decided by", "margin low", "margin high", "seconds")
SUMMARY = ("set", "budget", "verified", "falsified", "unknown", "median s", "longest s")
LAYERS = (
    "1,916 ReLUs, Conv3d(1, 4, 6, stride 4) - ReLU - Conv3d(4, 8, 3, stride 2) - ReLU - "
    "Linear(512, 32) - ReLU - Linear(32, 2)"
)
NNV = "NNV, published (its own 100 clips): 98 of 100 robust at eps 1/255, 21 to 23 s each"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with medmnist3d/, zoom_video/"
    )
    parser.add_argument("--out", type=Path, default=Path("build/real_data"), help="where the trained network is kept")
    parser.add_argument("--only", choices=("adrenal", "zoom"), help="one of the two parts")
    parser.add_argument("--items", type=int, default=10, help="volumes or clips to verify (default 10)")
    parser.add_argument(
        "--factors",
        type=float,
        nargs="+",
        default=[0.5, 0.9, 1.2],
        help="radii as multiples of the radius where the attack begins to succeed on that volume (default 0.5 0.9 1.2)",
    )
    parser.add_argument("--zoom-eps", type=Fraction, default=Fraction(1, 255), help="radius for zoom videos (1/255)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one verdict (default 60)")
    parser.add_argument("--steps", type=int, default=600, help="training steps (default 600)")
    parser.add_argument("--seed", type=int, default=0, help="of training and attacks (default 0)")
    parser.add_argument("--keep", action="store_true", help="do not train if --out already has a network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    configuration = Configuration(timeout=arguments.timeout, seed=arguments.seed, threads=1)
    if arguments.only != "zoom":
        adrenal(arguments, configuration, console)
    if arguments.only != "adrenal":
        zoom(arguments, configuration, console)


# --- volumes ------------------------------------------------------------------------------------------------


def adrenal(arguments: argparse.Namespace, configuration: Configuration, console: Console) -> None:
    """Trains, then verifies the first correctly classified test volumes."""
    source = arguments.data / "medmnist3d" / "adrenalmnist3d.npz"
    if not source.exists():
        console.print(f"skipped the volumes: {source} is not there; say with --data where the data lie")
        return
    content = np.load(source)
    volumes = {
        part: torch.from_numpy(content[f"{part}_images"]).float().unsqueeze(1) / 255 for part in ("train", "test")
    }
    labels = {part: torch.from_numpy(content[f"{part}_labels"]).long().flatten() for part in ("train", "test")}
    path = arguments.out / "adrenal.onnx"
    trained = "already there"
    if not (arguments.keep and path.exists()):
        began = time.monotonic()
        network = trained_on(volumes["train"], labels["train"], arguments, console)
        trained = f"{time.monotonic() - began:.0f} s"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_network(network, volumes["test"][:2], path)
    model = load_model(path)
    scores = torch.from_numpy(model.predict(volumes["test"].numpy()))
    quality = test_quality(scores, labels["test"])
    console.print(f"training: {trained}; {quality}")
    right = (scores.argmax(1) == labels["test"]).nonzero().flatten()[: arguments.items].tolist()
    rows = verify_volumes(model, volumes["test"], labels["test"], right, arguments, configuration, console)
    text = (
        f"Network: {LAYERS}, trained here ({trained}, {arguments.steps} steps, seed {arguments.seed}). {quality}\n\n"
        f"The first {len(right)} correctly classified test volumes, {configuration.timeout:g} s each. "
        "'begin' is the least radius where our attack breaks that volume (1: the voxels may take any value in [0, 1]; "
        "where even that breaks nothing, only eps 1 is asked).\n"
    )
    publish("adrenal", "AdrenalMNIST3D: any two slices, any patch", text, rows, configuration, console)


def trained_on(volumes: Tensor, labels: Tensor, arguments: argparse.Namespace, console: Console) -> nn.Module:
    """A network trained against the sets it will be verified on, on batches with as many volumes of either class.

    The last bias is then moved by the logarithms of the classes' shares (prior correction), as rare is rare again.
    """
    classes = [(labels == label).nonzero().flatten() for label in (0, 1)]

    def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        half = count // 2
        index = torch.cat(
            [
                own[torch.randint(len(own), (n,), generator=generator)]
                for own, n in zip(classes, (half, count - half), strict=True)
            ]
        )
        batch = volumes[index]
        for axis in (2, 3, 4):
            flip = torch.rand(count, generator=generator) < 0.5
            batch = torch.where(flip.view(-1, 1, 1, 1, 1), batch.flip(axis), batch)
        shift = torch.randint(-2, 3, (3,), generator=generator).tolist()
        return batch.roll(shift, (2, 3, 4)), labels[index]  # the rims are empty

    recipe = Recipe(
        "adrenal",
        draw,
        network_of,
        F.cross_entropy,
        (("window:2", 0.03), ("patch:3x3@2", 0.2)),
        steps=arguments.steps,
        clips=0,
        seed=arguments.seed,
        batch=32,
        sparsity=3e-4,
        stability=0.1,
    )
    with bar(console) as progress:
        task = progress.add_task("training adrenal", total=recipe.steps, note="")
        network = train(recipe, lambda loss: progress.update(task, advance=1, note=f"loss {loss:.3f}"))
    generator = torch.Generator().manual_seed(arguments.seed)
    clips, targets = draw(200, 10**9)
    for text, radius in recipe.adversaries:
        choice = parse_set(text, (28, 28, 28))
        attacked = climb(network, recipe.loss, clips, targets, choice, radius, generator, steps=10)
        with torch.no_grad():
            kept = (network(attacked).argmax(1) == targets).float().mean()
        console.print(f"    on attacked training volumes, {text} with eps {radius}: {float(kept):.1%} right")
    with torch.no_grad():
        last: nn.Linear = network.get_submodule("7")  # type: ignore[assignment]
        last.bias += torch.tensor([len(own) / len(labels) for own in classes]).log()
    return network


def network_of() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 6, stride=4, padding=1),
        nn.ReLU(),
        nn.Conv3d(4, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 2),
    )


def test_quality(scores: Tensor, labels: Tensor) -> str:
    """Accuracy, beside what the larger class alone would give, and the area under the ROC curve."""
    right = (scores.argmax(1) == labels).float()
    per_class = [float(right[labels == label].mean()) for label in (0, 1)]
    larger = float((labels == 0).float().mean())
    gain = scores[:, 1] - scores[:, 0]
    pairs = gain[labels == 1].unsqueeze(1) - gain[labels == 0]
    area = float(((pairs > 0).float() + 0.5 * (pairs == 0).float()).mean())
    return (
        f"Clean test accuracy {float(right.mean()):.1%} on {len(labels)} volumes "
        f"(classes {per_class[0]:.1%} and {per_class[1]:.1%}; always the larger class: {larger:.1%}), "
        f"area under the ROC curve {area:.3f}."
    )


def verify_volumes(
    model: Model,
    volumes: Tensor,
    labels: Tensor,
    items: list[int],
    arguments: argparse.Namespace,
    configuration: Configuration,
    console: Console,
) -> list[list[object]]:
    rows: list[list[object]] = []
    with bar(console) as progress:
        task = progress.add_task("volumes", total=len(items) * len(VOLUME_SETS) * len(arguments.factors), note="")
        for text in VOLUME_SETS:
            for item in items:
                clip, property = volumes[item].double(), same_class(int(labels[item]), 2)
                begin = attacks_begin(model.network, clip, text, property, arguments.seed)
                budgets = (
                    [(min(1.0, factor * begin), f"{factor:g}") for factor in arguments.factors]
                    if begin
                    else [(1.0, "none begins")]
                )
                for epsilon, budget in budgets:
                    progress.update(task, note=f"{text}, volume {item}, eps {epsilon:.3g}")
                    rows.append(row(model, clip, property, text, epsilon, budget, item, configuration))
                    write_csv(arguments.out / "adrenal_so_far.csv", HEADER, rows)
                    progress.advance(task, len(arguments.factors) / len(budgets))
    return rows


# --- videos -------------------------------------------------------------------------------------------------


def zoom(arguments: argparse.Namespace, configuration: Configuration, console: Console) -> None:
    """The published network on the first clips."""
    folder = arguments.data / "zoom_video"
    if not (folder / "zoomin_4f.onnx").exists():
        console.print(f"skipped the zoom videos: {folder} is not there; say with --data where the data lie")
        return
    content = np.load(folder / "zoomin_4f_clips.npz")
    model = load_model(folder / "zoomin_4f.onnx")
    rows: list[list[object]] = []
    with bar(console) as progress:
        for item in progress.track(range(min(arguments.items, len(content["clips"]))), description="zoom videos"):
            clip = torch.from_numpy(content["clips"][item]).float().div(255).double()
            property = same_class(int(content["labels"][item]), 10)
            epsilon = float(arguments.zoom_eps)
            rows.append(row(model, clip, property, "everywhere", epsilon, str(arguments.zoom_eps), item, configuration))
    text = (
        f"Network: zoomin_4f.onnx (Sasaki et al. 2025), 32,768 ReLUs, on the first {len(rows)} clips of "
        f"zoomin_4f_clips.npz (remade, so compare rates), every voxel of every frame, "
        f"{configuration.timeout:g} s each.\n\n{NNV}.\n"
    )
    publish("zoom", "Zoom videos: every frame", text, rows, configuration, console)


# --- both ---------------------------------------------------------------------------------------------------


def row(
    model: Model,
    clip: Tensor,
    property: Property,
    text: str,
    epsilon: float,
    budget: str,
    item: int,
    configuration: Configuration,
) -> list[object]:
    """One verdict as a line of the table."""
    outcome: Outcome = verify(Query(model, clip, SetSpecification(text, epsilon), property), configuration)
    return [
        text, item, epsilon, budget, outcome.word, outcome.decided_by, outcome.lower, outcome.upper,
        round(outcome.seconds, 2),
    ]  # fmt: skip


def publish(
    name: str, title: str, text: str, rows: list[list[object]], configuration: Configuration, console: Console
) -> None:
    """Screen, Markdown, CSV."""
    groups = sorted({(str(r[0]), str(r[3])) for r in rows}, key=lambda group: (group[0] != VOLUME_SETS[0], group[1]))
    summary: list[list[object]] = []
    for text_of_set, budget in groups:
        own = [r for r in rows if (r[0], r[3]) == (text_of_set, budget)]
        words, seconds = Counter(r[4] for r in own), [float(str(r[8])) for r in own]
        summary.append([text_of_set, budget, *(words[w] for w in WORDS), median(seconds), max(seconds)])
    decided = Counter(str(r[5]) for r in rows if r[4] != "unknown")
    stages = "Decided by: " + ", ".join(f"{stage} {count}" for stage, count in decided.most_common()) + "."
    show(console, title, SUMMARY, summary)
    console.print(stages)
    page = [f"# {title}\n", provenance(configuration.threads), text, markdown(SUMMARY, summary), stages + "\n"]
    page += ["One by one:\n", markdown(HEADER, rows)]
    STUDIES.mkdir(parents=True, exist_ok=True)
    (STUDIES / f"real_data_{name}.md").write_text("\n".join(page))
    write_csv(STUDIES / f"real_data_{name}.csv", HEADER, rows)


class _Note(ProgressColumn):
    """What a task says about itself, if anything."""

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("note", "")))


def bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), _Note(), console=console)


if __name__ == "__main__":
    main()
