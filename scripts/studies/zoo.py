"""Which published video and volume networks can be read: built with random weights, as modules and as ONNX files.

    python -m scripts.studies.zoo                        # all that the installed libraries have
    python -m scripts.studies.zoo --only torchvision --way module

Every network runs in a process of its own with a limit of time. It counts as read when the network that was read from
it answers as the original does on random clips, in float64. What is refused is listed with the reason. Libraries that
are not installed are skipped: torchvision, pytorchvideo (with fvcore and iopath), monai.
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as LateError
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from scripts.studies.frame import command, markdown, progress, provenance, publish, screen, show
from scripts.studies.frame import main as run
from stbp_milp.cli.shared import POSITIVE
from stbp_milp.errors import StbpError
from stbp_milp.network.model import load_model

HEADER = ("library", "network", "input", "way", "read", "layers", "ReLUs", "seconds", "reason")
VIDEO, VOLUME = (3, 16, 112, 112), (1, 64, 64, 64)


@dataclass(frozen=True)
class Entry:
    """A network: where its constructor is, and what it is called with."""

    library: str
    constructor: str  # "package.module:name"
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    name: str

    def build(self) -> nn.Module:
        module, _, name = self.constructor.partition(":")
        torch.manual_seed(0)
        constructor: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
        return constructor(**self.arguments).eval()


def _video(name: str, shape: tuple[int, ...] = VIDEO) -> Entry:
    return Entry("torchvision", f"torchvision.models.video:{name}", {"num_classes": 10}, shape, name)


def _pytorchvideo(name: str, constructor: str, shape: tuple[int, ...], **arguments: Any) -> Entry:
    return Entry("pytorchvideo", f"pytorchvideo.models.{constructor}", arguments, shape, name)


def _monai(name: str, shape: tuple[int, ...] = VOLUME, **arguments: Any) -> Entry:
    return Entry("monai", f"monai.networks.nets:{name}", arguments, shape, name)


_CLASSES: dict[str, Any] = {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 2}
_CHANNELS: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_STEPS: dict[str, Any] = {"channels": (4, 8, 16), "strides": (2, 2)}
ZOO = (
    *map(_video, ("r3d_18", "mc3_18", "r2plus1d_18")),
    _video("s3d", (3, 16, 224, 224)),
    *(_video(name, (3, 16, 224, 224)) for name in ("mvit_v1_b", "mvit_v2_s")),
    *(_video(name, (3, 8, 112, 112)) for name in ("swin3d_t", "swin3d_s", "swin3d_b")),
    _pytorchvideo(
        "slow_r50", "resnet:create_resnet", (3, 8, 112, 112), model_num_class=10, head_pool_kernel_size=(8, 4, 4)
    ),
    _pytorchvideo(
        "c2d_r50",
        "resnet:create_resnet",
        (3, 8, 112, 112),
        model_num_class=10,
        head_pool_kernel_size=(8, 4, 4),
        stage_conv_a_kernel_size=((1, 1, 1),) * 4,
    ),
    _pytorchvideo(
        "i3d_r50",
        "resnet:create_resnet",
        (3, 8, 112, 112),
        model_num_class=10,
        head_pool_kernel_size=(8, 4, 4),
        stem_conv_kernel_size=(5, 7, 7),
        stage_conv_a_kernel_size=((3, 1, 1),) * 4,
    ),
    _pytorchvideo(
        "csn_r101",
        "csn:create_csn",
        (3, 8, 112, 112),
        model_num_class=10,
        model_depth=50,
        head_pool_kernel_size=(1, 4, 4),
    ),
    _pytorchvideo(
        "r2plus1d_r50",
        "r2plus1d:create_r2plus1d",
        (3, 8, 112, 112),
        model_num_class=10,
        head_pool_kernel_size=(2, 4, 4),
    ),
    _pytorchvideo(
        "x3d_xs", "x3d:create_x3d", (3, 4, 160, 160), model_num_class=10, input_clip_length=4, input_crop_size=160
    ),
    _monai("DenseNet121", spatial_dims=3, in_channels=1, out_channels=2),
    _monai("DenseNet169", spatial_dims=3, in_channels=1, out_channels=2),
    _monai("ResNetFeatures", model_name="resnet10", pretrained=False, spatial_dims=3, in_channels=1),
    *(_monai(name, **_CLASSES) for name in ("resnet10", "resnet18", "resnet34", "resnet50")),
    _monai("SEResNet50", spatial_dims=3, in_channels=1, num_classes=2),
    _monai("SENet154", spatial_dims=3, in_channels=1, num_classes=2),
    _monai("SEResNext50", spatial_dims=3, in_channels=1, num_classes=2),
    _monai(
        "EfficientNetBN", model_name="efficientnet-b0", pretrained=False, spatial_dims=3, in_channels=1, num_classes=2
    ),
    _monai(
        "ViT",
        (1, 32, 32, 32),
        in_channels=1,
        img_size=32,
        patch_size=16,
        classification=True,
        num_classes=2,
        hidden_size=48,
        mlp_dim=96,
        num_heads=4,
    ),
    _monai("UNet", **_CHANNELS, **_STEPS),
    _monai("BasicUNet", spatial_dims=3, in_channels=1, out_channels=2),
    _monai("AttentionUnet", **_CHANNELS, **_STEPS),
    _monai("SegResNet", **_CHANNELS, init_filters=8),
    _monai("SegResNetVAE", input_image_size=(64, 64, 64), **_CHANNELS, init_filters=8),
    _monai("VNet", spatial_dims=3, in_channels=1, out_channels=2),
    _monai("HighResNet", **_CHANNELS),
    _monai("DynUNet", **_CHANNELS, kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2]),
    _monai(
        "UNETR",
        (1, 32, 32, 32),
        in_channels=1,
        out_channels=2,
        img_size=32,
        feature_size=4,
        hidden_size=48,
        mlp_dim=96,
        num_heads=4,
    ),
    _monai("SwinUNETR", (1, 64, 64, 64), in_channels=1, out_channels=2, feature_size=12),
    _monai("AutoEncoder", **_CHANNELS, channels=(4, 8), strides=(2, 2)),
    _monai("Classifier", in_shape=(1, 64, 64, 64), classes=2, **_STEPS),
    _monai("Regressor", in_shape=(1, 64, 64, 64), out_shape=(2,), **_STEPS),
    _monai("Discriminator", in_shape=(1, 64, 64, 64), **_STEPS),
    _monai("Critic", in_shape=(1, 64, 64, 64), **_STEPS),
    _monai("FullyConnectedNet", (64,), in_channels=64, out_channels=2, hidden_channels=[32, 32]),
)


@command(__doc__)
@click.option("--only", default="", help="Only networks whose library or name contains this text.")
@click.option("--way", "ways", multiple=True, type=click.Choice(["module", "onnx"]), default=["module", "onnx"])
@click.option("--limit", type=POSITIVE, default=300.0, show_default=True, help="Seconds for one network.")
@click.option("--name", default="zoo", show_default=True, help="The name of the files in results/studies.")
def main(only: str, ways: tuple[str, ...], limit: float, name: str) -> None:
    console = screen()
    wanted = [entry for entry in ZOO if only in f"{entry.library} {entry.name}"]
    rows: list[tuple[object, ...]] = []
    with progress(console) as bars:
        task = bars.add_task("networks", total=len(wanted) * len(ways), note="")
        for entry in wanted:
            for way in ways:
                bars.update(task, note=f"{entry.name} ({way})")
                rows.append(_within(entry, way, limit))
                bars.advance(task)
    read = sum(row[4] == "yes" for row in rows)
    title = f"{read} of {len(rows)} readings succeed"
    show(console, title, HEADER, rows)
    publish(name, [f"# Published networks\n\n{title}.\n", provenance(1), markdown(HEADER, rows)], HEADER, rows)


def _within(entry: Entry, way: str, limit: float) -> tuple[object, ...]:
    """The entry's row, from a process of its own."""
    began = time.monotonic()
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        said, layers, relus, reason = pool.submit(_tried, entry, way).result(limit)
    except LateError:
        said, layers, relus, reason = "no", None, None, f"not within {limit:g} s"
    except (
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # of the constructor, or it was killed
        said, layers, relus, reason = "no", None, None, f"{type(error).__name__}: {error}"
    finally:
        for process in (pool._processes or {}).values():
            process.kill()
        pool.shutdown(wait=False)
    shape = "x".join(map(str, entry.shape))
    return (entry.library, entry.name, shape, way, said, layers, relus, time.monotonic() - began, reason)


def _tried(entry: Entry, way: str) -> tuple[str, int | None, int | None, str]:
    torch.set_num_threads(1)
    try:
        module = entry.build()
    except ImportError as error:
        return "skipped", None, None, str(error)
    try:
        with TemporaryDirectory() as folder:
            model = load_model(_flat(module) if way == "module" else _export(_flat(module), entry, folder), entry.shape)
    except StbpError as error:
        return "refused", None, None, str(error).split("; replace")[0][:400]
    nodes = model.network.nodes
    relus = sum(int(np.prod(nodes[i].shape)) for i in model.network.relus)
    return "yes", len(nodes), relus, ""


class _Flat(nn.Module):
    """A network whose first output is made flat: of a segmentation, all voxels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.model(x)
        while isinstance(outputs, (tuple, list)):
            outputs = outputs[0]
        flat: torch.Tensor = outputs.flatten(1)
        return flat


def _flat(module: nn.Module) -> nn.Module:
    return _Flat(module).eval()


def _export(module: nn.Module, entry: Entry, folder: str) -> Path:
    path = Path(folder) / f"{entry.name}.onnx"
    torch.onnx.export(module, (torch.zeros(1, *entry.shape),), path, dynamo=True, verbose=False)
    return path


if __name__ == "__main__":
    run(main)
