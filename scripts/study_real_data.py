#!/usr/bin/env python
"""The verifier on data nobody made for it: medical volumes, a published network on zoom videos, videos, roads.

    python scripts/study_real_data.py --data ../shared/data
    python scripts/study_real_data.py --data ../shared/data --only zoom

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

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import torch
from real_data_adrenal import adrenal
from real_data_videos import ucf101, udacity
from real_data_zoom import zoom
from rich.console import Console

from stbp_milp.errors import InputError
from stbp_milp.query import Configuration

PARTS = {"adrenal": adrenal, "zoom": zoom, "ucf101": ucf101, "udacity": udacity}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("../shared/data"),
        help="folder with medmnist3d/, zoom_video/, ucf101/, udacity_sim/",
    )
    parser.add_argument("--out", type=Path, default=Path("build/real_data"), help="where the trained network is kept")
    parser.add_argument("--only", choices=PARTS, help="one of the parts")
    parser.add_argument("--items", type=int, default=10, help="volumes or clips to verify (default 10)")
    parser.add_argument(
        "--factors",
        type=float,
        nargs="+",
        default=[0.5, 0.9, 1.2],
        help="radii as multiples of the radius where the attack begins to succeed on that clip (default 0.5 0.9 1.2)",
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
    try:
        for name in [arguments.only] if arguments.only else PARTS:
            PARTS[name](arguments, configuration, console)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
