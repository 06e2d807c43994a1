"""The part of scripts.studies.real_data on zoom videos: a published network, all frames at once."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from rich.console import Console

from scripts.studies.frame import progress
from scripts.studies.real_data.tables import Asked, Item, publish, row
from stbp_milp.network.model import load_model
from stbp_milp.properties import same_class

NNV = "NNV, published (its own 100 clips): 98 of 100 robust at eps 1/255, 21 to 23 s each"


def zoom(asked: Asked, console: Console) -> None:
    """The published network on the first clips."""
    folder = asked.data / "zoom_video"
    if not (folder / "zoomin_4f.onnx").exists():
        console.print(f"skipped the zoom videos: {folder} is not there; say with --data where the data lie")
        return
    content = np.load(folder / "zoomin_4f_clips.npz")
    model = load_model(folder / "zoomin_4f.onnx")
    rows: list[list[object]] = []
    count = min(asked.items, len(content["clips"]))
    with progress(console) as bars:
        task = bars.add_task("zoom videos", total=count, note="")
        for number in range(count):
            clip = torch.from_numpy(content["clips"][number]).float().div(255).double()
            property = same_class(int(content["labels"][number]), 10)
            epsilon = float(Fraction(asked.zoom_eps))
            item = Item(number, clip, property)
            rows.append(row(model, item, "everywhere", epsilon, asked.zoom_eps, asked.configuration))
            bars.advance(task)
    text = (
        f"Network: zoomin_4f.onnx (Sasaki et al. 2025), 32,768 ReLUs, on the first {len(rows)} clips of "
        f"zoomin_4f_clips.npz (remade, so compare rates), every voxel of every frame, "
        f"{asked.configuration.timeout:g} s each.\n\n{NNV}.\n"
    )
    publish("zoom", "Zoom videos: every frame", text, rows, asked, console)
