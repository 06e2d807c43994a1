"""MedMNIST3D files: made here in the published form, and AdrenalMNIST3D itself where it is at hand.

By hand: a voxel of 51 in the file is 0.2 in the clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stbp_milp.data.medmnist import CLASSES, read_medmnist
from stbp_milp.errors import InputError


def content(classes: int, side: int = 28) -> dict[str, Any]:
    """Every class once in every part."""
    arrays: dict[str, Any] = {}
    for level, part in enumerate(("train", "val", "test"), 1):
        arrays[f"{part}_images"] = np.full((classes, side, side, side), 51 * level, dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(classes, dtype=np.uint8)[::-1, None]
    return arrays


def test_the_six_sets_have_the_published_numbers_of_classes() -> None:
    assert [len(classes) for classes in CLASSES.values()] == [11, 2, 2, 3, 2, 2]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("side", [28, 64])
def test_every_set_and_size(tmp_path: Path, name: str, side: int) -> None:
    classes = len(CLASSES[name])
    path = tmp_path / (f"{name}.npz" if side == 28 else f"{name}_{side}.npz")
    np.savez(path, **content(classes, side))
    clips = read_medmnist(path, "train")
    assert clips[0].shape == (1, side, side, side)
    assert clips[0].unique().tolist() == [pytest.approx(0.2)]
    assert clips.targets.tolist() == list(range(classes))[::-1]
    assert clips.classes == CLASSES[name]
    assert read_medmnist(path, "test")[0].unique().tolist() == [pytest.approx(0.6)]


def _labels(*labels: int) -> np.ndarray:
    return np.array(labels, dtype=np.uint8)[:, None]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test_images": None}, "no array 'test_images'"),
        ({"val_labels": None}, "no array 'val_labels'"),
        ({"test_images": np.zeros((2, 28, 28), dtype=np.uint8)}, r"uint8 of shape \(2, 28, 28\)"),
        ({"test_images": np.zeros((2, 28, 28, 27), dtype=np.uint8)}, r"shape \(2, 28, 28, 27\)"),
        ({"test_images": np.zeros((2, 28, 28, 28))}, "float64"),
        ({"test_images": np.zeros((3, 28, 28, 28), dtype=np.uint8)}, "3 volumes and 2 labels"),
        ({"test_labels": np.array([0, 1])}, r"shape \(2,\); expected integers"),
        ({"test_labels": np.array([[0.0], [1.0]])}, "float64"),
        ({"test_labels": _labels(0, 2)}, "labels 0, 1, 2; the published set has the 2 classes 0 to 1"),
        ({f"{part}_labels": _labels(1, 1) for part in ("train", "val", "test")}, "labels 1; the published"),
        ({"test_labels": np.array([["a"], [None]], dtype=object)}, "cannot be read"),
    ],
)
def test_bad_content(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = tmp_path / "nodulemnist3d.npz"
    arrays = {key: value for key, value in (content(2) | changes).items() if value is not None}
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=says) as error:
        read_medmnist(path, "test")
    assert "nodulemnist3d.npz" in str(error.value)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "vesselmnist3d.npz"
    with pytest.raises(InputError, match="there is no file"):
        read_medmnist(path, "val")
    np.savez_compressed(path, **content(2))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read"):
        read_medmnist(path, "val")
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(InputError, match="one array"):
        read_medmnist(path, "val")
    with pytest.raises(InputError, match="not named like a set"):
        read_medmnist(tmp_path / "pathmnist.npz", "val")


@pytest.mark.parametrize(("name", "side"), [("adrenalmnist3d.npz", 28), ("adrenalmnist3d_64.npz", 64)])
def test_published_file(data: Path, name: str, side: int) -> None:
    clips = read_medmnist(data / "medmnist3d" / name, "val")
    assert len(clips) == 98
    assert clips[97].shape == (1, side, side, side)
    assert clips[97].max() <= 1
    assert clips.classes == ("normal", "hyperplasia")
