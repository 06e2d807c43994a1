"""Export of a bench's networks and clips to files."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

TEST_SEED = 777  # no training batch uses it


def write_network(network: nn.Module, sample: Tensor, path: Path) -> None:
    """`network` in evaluation mode as one ONNX file, weights inside; `sample` is a batch of clips."""
    network = copy.deepcopy(network)
    for module in network.modules():
        # Without `optimize`, the exporter adds a bias of a wrong shape to convolutions without one.
        if isinstance(module, nn.Conv3d) and module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
    # The exporter tells of packages it does not find, and torch of a class it will rename: nothing for our reader.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        program = torch.onnx.export(
            network,
            (sample,),
            input_names=["clip"],
            output_names=["scores"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            optimize=False,  # batch normalisation stays a separate node
            verbose=False,
            dynamo=True,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program; expected one from the dynamo exporter")
    model = program.model_proto
    for part in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        del part.metadata_props[:]  # stack traces with the paths of this machine
        part.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_clips(clips: Tensor, targets: Tensor, path: Path) -> None:
    """`clips` (N, C, T, H, W) float32 and `targets` under the name `labels`."""
    np.savez_compressed(path, clips=clips.numpy(), labels=targets.numpy())


def read_clips(path: Path) -> tuple[Tensor, Tensor]:
    """What `write_clips` wrote: `(N, C, T, H, W)` float32, and labels `(N,)` or angles `(N, 1)` in degrees."""
    content = np.load(path, allow_pickle=False)
    return torch.from_numpy(content["clips"]), torch.from_numpy(content["labels"])
