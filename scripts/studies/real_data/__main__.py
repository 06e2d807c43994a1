"""The verifier on data nobody made for it: medical volumes, a published network on zoom videos, videos, roads.

    python -m scripts.studies.real_data --data ../shared/data
    python -m scripts.studies.real_data --data ../shared/data --only zoom

adrenal: AdrenalMNIST3D (MedMNIST v2, 28x28x28, two classes). A 3D CNN of 1,916 ReLUs is trained here against the sets
it is verified on (a few minutes on one core; kept under --out, not part of the project), then the first correctly
classified test volumes are verified for `window:2` (any two neighbouring slices) and `patch:3x3@2` (3x3 voxels through
two neighbouring slices, anywhere), at multiples of the radius where our own attack begins to succeed.

zoom: zoomin_4f.onnx of Sasaki et al. (FormaliSE 2025), 33k ReLUs, all frames at once.

ucf101, udacity: original videos and road pictures through the shipped networks, which were trained on procedural
stand-ins: the pipeline on real files, with no claim about accuracy. Sets and budgets as for the volumes.

Tables go to the screen and, as Markdown and CSV, to results/studies. Without the data the script says so and ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

from scripts.studies.frame import command, screen
from scripts.studies.frame import main as run
from scripts.studies.real_data.adrenal import adrenal
from scripts.studies.real_data.tables import Asked
from scripts.studies.real_data.videos import ucf101, udacity
from scripts.studies.real_data.zoom import zoom
from stbp_milp.cli.shared import COUNT, FILE, POSITIVE, seed
from stbp_milp.query import Configuration

PARTS = {"adrenal": adrenal, "zoom": zoom, "ucf101": ucf101, "udacity": udacity}


@command(__doc__)
@click.option(
    "--data",
    type=FILE,
    default=Path("../shared/data"),
    show_default=True,
    help="The folder with medmnist3d/, zoom_video/, ucf101/ and udacity_sim/.",
)
@click.option("--out", type=FILE, default=Path("build/real_data"), help="Where the trained network is kept.")
@click.option("--only", type=click.Choice(list(PARTS)), help="One of the parts.")
@click.option("--items", type=COUNT, default=10, show_default=True, help="How many volumes or clips.")
@click.option("--factors", default="0.5,0.9,1.2", show_default=True, help="Radii, times where attacks begin.")
@click.option("--zoom-eps", default="1/255", show_default=True, help="The radius for zoom videos.")
@click.option("--timeout", type=POSITIVE, default=60.0, show_default=True, help="Seconds for one verdict.")
@click.option("--steps", type=COUNT, default=600, show_default=True, help="Training steps.")
@seed
@click.option("--keep", is_flag=True, help="Do not train where --out has a network already.")
def main(only: str | None, factors: str, timeout: float, **options: Any) -> None:
    torch.set_num_threads(1)
    asked = Asked(
        factors=tuple(float(factor) for factor in factors.split(",")),
        configuration=Configuration(timeout=timeout, seed=options["seed"], threads=1),
        **options,
    )
    for name in [only] if only else PARTS:
        PARTS[name](asked, screen())


if __name__ == "__main__":
    run(main)
