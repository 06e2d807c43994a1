"""The part of scripts.studies.real_data on AdrenalMNIST3D volumes: train a network on them, then verify it."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from scripts.studies.frame import progress
from scripts.studies.real_data.tables import BEGIN, Asked, Item, publish, verify_items
from stbp_milp.data.medmnist import read_medmnist
from stbp_milp.network.model import load_model
from stbp_milp.properties import same_class
from stbp_milp.sets import parse_set
from stbp_milp.st_bench.adversary import Adversary, climb
from stbp_milp.st_bench.export import write_clips, write_network
from stbp_milp.st_bench.networks import two_convolutions
from stbp_milp.st_bench.training import Recipe, train

LAYERS = (
    "1,916 ReLUs, Conv3d(1, 4, 6, stride 4) - ReLU - Conv3d(4, 8, 3, stride 2) - ReLU - "
    "Linear(512, 32) - ReLU - Linear(32, 2)"
)


def adrenal(asked: Asked, console: Console) -> None:
    """Trains, then verifies the first correctly classified test volumes."""
    source = asked.data / "medmnist3d" / "adrenalmnist3d.npz"
    if not source.exists():
        console.print(f"skipped the volumes: {source} is not there; say with --data where the data lie")
        return
    training, tests = read_medmnist(source, "train"), read_medmnist(source, "test")
    volumes, labels = tests.stacked(), tests.targets
    path = asked.out / "adrenal.onnx"
    trained = "already there"
    if not (asked.keep and path.exists()):
        began = time.monotonic()
        network = trained_on(training.stacked(), training.targets, asked, console)
        trained = f"{time.monotonic() - began:.0f} s"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_network(network, volumes[:2], path)
    model = load_model(path)
    scores = torch.from_numpy(model.predict(volumes.numpy()))
    quality = test_quality(scores, labels)
    console.print(f"training: {trained}; {quality}")
    right = (scores.argmax(1) == labels).nonzero().flatten()[: asked.items].tolist()
    write_clips(volumes[right], labels[right], path.with_name("adrenal_clips.npz"))  # for make_study_bench.py
    items = [Item(item, volumes[item], same_class(int(labels[item]), 2)) for item in right]
    rows = verify_items(model, items, "adrenal", asked, console)
    text = (
        f"Network: {LAYERS}, trained here ({trained}, {asked.steps} steps, seed {asked.seed}). {quality}\n\n"
        f"The first {len(right)} correctly classified test volumes, {asked.configuration.timeout:g} s each. {BEGIN}\n"
    )
    publish("adrenal", "AdrenalMNIST3D: any two slices, any patch", text, rows, asked, console)


def trained_on(volumes: Tensor, labels: Tensor, asked: Asked, console: Console) -> nn.Module:
    """A network trained against the sets it will be verified on, on batches with as many volumes of either class.

    The last bias is then moved by the logarithms of the classes' shares (prior correction), as rare is rare again.
    """
    classes = [(labels == label).nonzero().flatten() for label in (0, 1)]

    def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        index = torch.cat(
            [
                own[torch.randint(len(own), (n,), generator=generator)]
                for own, n in zip(classes, (count // 2, count - count // 2), strict=True)
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
        steps=asked.steps,
        clips=0,
        seed=asked.seed,
        batch=32,
        sparsity=3e-4,
        stability=0.1,
    )
    with progress(console) as bars:
        task = bars.add_task("training adrenal", total=recipe.steps, note="")
        network = train(recipe, lambda loss: bars.update(task, advance=1, note=f"loss {loss:.3f}"))
    generator = torch.Generator().manual_seed(asked.seed)
    clips, targets = draw(200, 10**9)
    for text, radius in recipe.adversaries:
        adversary = Adversary(parse_set(text, (28, 28, 28)), radius, steps=10)
        attacked = climb(network, recipe.loss, clips, targets, adversary, generator)
        with torch.no_grad():
            kept = (network(attacked).argmax(1) == targets).float().mean()
        console.print(f"    on attacked training volumes, {text} with eps {radius}: {float(kept):.1%} right")
    with torch.no_grad():
        last = network.get_submodule("7")
        assert isinstance(last, nn.Linear)
        last.bias.add_(torch.tensor([len(own) / len(labels) for own in classes]).log())
    return network


def network_of() -> nn.Module:
    return two_convolutions(6, 4, 512, 2)


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
