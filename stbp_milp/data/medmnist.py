"""MedMNIST3D as published: `organmnist3d.npz`, or `organmnist3d_64.npz` at the larger size, and its five siblings.

Yang et al., "MedMNIST v2" (Scientific Data 2023). Every file has `train`, `val` and `test` volumes (N, D, H, W) uint8
and labels (N, 1). The volumes stay in memory as bytes (at most 350 MB) and are converted to clips on demand.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stbp_milp.data.clips import ClipSet
from stbp_milp.errors import InputError

Part = Literal["train", "val", "test"]

SIDES = (28, 64)

# The published table: the classes of every set, in the order of their numbers.
CLASSES: dict[str, tuple[str, ...]] = {
    "organmnist3d": (
        "liver", "kidney-right", "kidney-left", "femur-right", "femur-left", "bladder", "heart", "lung-right",
        "lung-left", "spleen", "pancreas",
    ),
    "nodulemnist3d": ("benign", "malignant"),
    "adrenalmnist3d": ("normal", "hyperplasia"),
    "fracturemnist3d": ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
    "vesselmnist3d": ("vessel", "aneurysm"),
    "synapsemnist3d": ("inhibitory synapse", "excitatory synapse"),
}  # fmt: skip


def read_medmnist(path: Path, part: Part) -> ClipSet:
    """Reads the volumes of one part as clips (1, D, H, W); the file's name says which of the six sets it is.

    Raises:
        InputError: there is no such file or set, a key is missing, volumes or labels have the wrong shape or type, or
            the classes differ from the published ones.
    """
    name = re.sub(r"_\d+$", "", path.stem)
    if name not in CLASSES:
        raise InputError(
            f"{str(path)!r} is not named like a set of MedMNIST3D; expected one of {', '.join(CLASSES)} "
            "with .npz or _64.npz"
        )
    content = _content(path, part)
    volumes, labels = content[f"{part}_images"], content[f"{part}_labels"]
    if volumes.dtype != np.uint8 or volumes.shape[1:] not in [(side,) * 3 for side in SIDES]:
        raise InputError(
            f"{part}_images in {str(path)!r} is {volumes.dtype} of shape {volumes.shape}; expected uint8 of "
            "(N, 28, 28, 28) or (N, 64, 64, 64)"
        )
    _check_labels(path, content, len(CLASSES[name]))
    if len(labels) != len(volumes):
        raise InputError(f"{str(path)!r} has {len(volumes)} volumes and {len(labels)} labels in {part}; fetch it again")

    def decode(item: int) -> Tensor:
        return torch.from_numpy(volumes[item]).float().div(255).unsqueeze(0)

    names = tuple(f"{part}[{item}]" for item in range(len(volumes)))
    return ClipSet(decode, torch.from_numpy(labels.astype(np.int64).ravel()), names, CLASSES[name])


def _content(path: Path, part: Part) -> dict[str, NDArray[Any]]:
    """Reads the labels of all parts and the volumes of one."""
    keys = [f"{part}_images", "train_labels", "val_labels", "test_labels"]
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}; fetch it from medmnist.com")
    try:
        with path.open("rb") as stream:  # numpy does not close the files of damaged archives
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{str(path)!r} holds one array, not an archive; fetch it from medmnist.com")
            missing = [key for key in keys if key not in archive.files]
            if missing:
                has = ", ".join(archive.files) or "nothing"
                raise InputError(f"{str(path)!r} has no array {missing[0]!r}, only {has}; fetch it from medmnist.com")
            return {key: archive[key] for key in keys}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); fetch it from medmnist.com again") from error


def _check_labels(path: Path, content: dict[str, NDArray[Any]], count: int) -> None:
    """Checks that the labels of all three parts together are exactly the numbers of the published classes."""
    for key in ("train_labels", "val_labels", "test_labels"):
        labels = content[key]
        if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 2 or labels.shape[1] != 1:
            raise InputError(
                f"{key} in {str(path)!r} is {labels.dtype} of shape {labels.shape}; expected integers of shape (N, 1)"
            )
    found = {int(label) for key, labels in content.items() if key.endswith("_labels") for label in labels.ravel()}
    if found != set(range(count)):
        raise InputError(
            f"{str(path)!r} has the labels {', '.join(map(str, sorted(found)[:20])) or 'of no class'}; "
            f"the published set has the {count} classes 0 to {count - 1}"
        )
