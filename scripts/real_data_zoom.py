"""The part of study_real_data.py on zoom videos: a published network, all frames at once."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from real_data_tables import Item, bar, publish, row
from rich.console import Console

from stbp_milp.network.model import load_model
from stbp_milp.properties import same_class
from stbp_milp.query import Configuration

NNV = "NNV, published (its own 100 clips): 98 of 100 robust at eps 1/255, 21 to 23 s each"


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
            asked = Item(item, clip, property)
            rows.append(row(model, asked, "everywhere", epsilon, str(arguments.zoom_eps), configuration))
    text = (
        f"Network: zoomin_4f.onnx (Sasaki et al. 2025), 32,768 ReLUs, on the first {len(rows)} clips of "
        f"zoomin_4f_clips.npz (remade, so compare rates), every voxel of every frame, "
        f"{configuration.timeout:g} s each.\n\n{NNV}.\n"
    )
    publish("zoom", "Zoom videos: every frame", text, rows, configuration, console)
