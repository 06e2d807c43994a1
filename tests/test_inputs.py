"""Clips, radii and domains as users write them.

By hand: `clips.npz:videos[1]` with videos (2, 1, 3, 4, 4) uint8, item 1 all 51, is a clip (1, 3, 4, 4) of 0.2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stbp_milp.errors import InputError
from stbp_milp.inputs import parse_bytes, parse_domain, parse_epsilon, read_clip, size_in_words

CLIP = np.random.default_rng(0).random((2, 3, 4, 5))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    videos = np.zeros((2, 1, 3, 4, 4), dtype=np.uint8)
    videos[1] = 51
    np.save(tmp_path / "clip.npy", CLIP)
    np.save(tmp_path / "one.npy", CLIP[None])
    np.save(tmp_path / "volume.npy", CLIP[0])
    np.save(tmp_path / "flat.npy", CLIP.reshape(-1))
    np.save(tmp_path / "empty.npy", np.zeros((1, 0, 4, 4)))
    np.save(tmp_path / "nan.npy", np.where(CLIP > 0.9, np.nan, CLIP))
    np.save(tmp_path / "huge.npy", CLIP * 1e300)
    np.save(tmp_path / "ints.npy", np.ones((1, 3, 4, 4), dtype=np.int64))
    np.save(tmp_path / "objects.npy", np.array([[["a"]], None], dtype=object), allow_pickle=True)
    np.savez_compressed(tmp_path / "clips.npz", videos=videos, labels=np.array([3, 1]))
    volumes = np.ones((5, 3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "volumes.npz", train=volumes, test=volumes[:2])
    np.savez(tmp_path / "nothing.npz")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "clip.npy").read_bytes()[:300])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "clips.npz").read_bytes()[:300])
    (tmp_path / "words.npy").write_text("no array")
    (tmp_path / "words.npz").write_text("no archive")
    (tmp_path / "array.npz").write_bytes((tmp_path / "clip.npy").read_bytes())
    (tmp_path / "archive.npy").write_bytes((tmp_path / "clips.npz").read_bytes())
    damaged = bytearray((tmp_path / "volumes.npz").read_bytes())
    damaged[200] ^= 0xFF  # inside the first array: the checksum no longer fits
    (tmp_path / "damaged.npz").write_bytes(damaged)
    return tmp_path


def test_by_hand(folder: Path) -> None:
    clip = read_clip(f"{folder}/clips.npz:videos[1]")
    assert clip.shape == (1, 3, 4, 4)
    assert clip.dtype == torch.float64
    assert torch.equal(clip, torch.full_like(clip, float(np.float32(0.2))))


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("clip.npy", (2, 3, 4, 5)),
        ("one.npy", (2, 3, 4, 5)),
        ("one.npy[0]", (2, 3, 4, 5)),
        ("volume.npy", (1, 3, 4, 5)),
        ("flat.npy", (1, 1, 1, 120)),
        ("clips.npz[0]", (1, 3, 4, 4)),
        ("volumes.npz:test[1]", (1, 3, 4, 4)),
    ],
)
def test_forms(folder: Path, text: str, shape: tuple[int, ...]) -> None:
    assert read_clip(f"{folder}/{text}").shape == shape


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.longdouble])
def test_values_are_those_of_float32(folder: Path, dtype: type) -> None:
    np.save(folder / "typed.npy", CLIP.astype(dtype))
    clip = read_clip(f"{folder}/typed.npy")
    assert torch.equal(clip, clip.float().double())
    np.testing.assert_allclose(clip.numpy(), CLIP, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("clip.mp4", "expected a .npy or .npz"),
        ("absent.npy", "no file"),
        ("clip.npy:key", "without a key"),
        ("clips.npz:absent[0]", "it has videos, labels"),
        ("clips.npz", "holds 2 clips"),
        ("clips.npz:videos[2]", "from 0 to 1"),
        ("clips.npz:videos[-1]", "from 0 to 1"),
        ("clips.npz:labels[0]", "of shape"),
        ("clips.npz:labels", "int64"),
        ("volumes.npz[0]", "choose one with volumes.npz:key from train (5, 3, 4, 4), test (2, 3, 4, 4)"),
        ("nothing.npz", "no arrays"),
        ("empty.npy", "expected a clip"),
        ("nan.npy", "NaN"),
        ("huge.npy", "too large"),
        ("ints.npy", "int64"),
        ("objects.npy", "cannot be read"),
        ("cut.npy", "cannot be read"),
        ("cut.npz", "cannot be read"),
        ("words.npy", "cannot be read"),
        ("words.npz", "cannot be read"),
        ("array.npz", "rename it to .npy"),
        ("archive.npy", "rename it to .npz"),
        ("damaged.npz:train[0]", "cannot be read"),
    ],
)
def test_refused(folder: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as raised:
        read_clip(f"{folder}/{text}")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("4/255", 4 / 255), (" 4 / 255 ", 4 / 255), ("0.03", 0.03), ("1", 1.0), ("0", 0.0), (".5", 0.5), ("2e-3", 0.002)],
)
def test_epsilon(text: str, value: float) -> None:
    assert parse_epsilon(text) == value


@pytest.mark.parametrize(
    "text", ["", "-1", "1/0", "4/", "nan", "inf", "1e999999999", "4/255/2", "0x1", "4,5", "1" * 500]
)
def test_no_epsilon(text: str) -> None:
    with pytest.raises(InputError, match="eps"):
        parse_epsilon(text)


@pytest.mark.parametrize(("text", "value"), [("0,1", (0, 1)), ("-1, 1", (-1, 1)), ("-0.5,2.5", (-0.5, 2.5))])
def test_domain(text: str, value: tuple[float, float]) -> None:
    assert parse_domain(text) == value


@pytest.mark.parametrize("text", ["", "1", "1,0", "0,0", "a,b", "0,1,2", "nan,1", "0,inf"])
def test_no_domain(text: str) -> None:
    with pytest.raises(InputError, match="domain"):
        parse_domain(text)


@pytest.mark.parametrize(("text", "value"), [("4G", 4 << 30), ("512M", 512 << 20), ("1.5k", 1536), ("2GiB", 2 << 30)])
def test_bytes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "4", "0G", "-1G", "G", "4X", "many"])
def test_no_bytes(text: str) -> None:
    with pytest.raises(InputError, match="memory"):
        parse_bytes(text)


@pytest.mark.parametrize("name", ["is_file", "open"])
def test_a_clip_that_may_not_be_read_is_not_to_be_saved_again(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    np.save(folder / "mine.npy", np.zeros((1, 1, 1, 1)))
    monkeypatch.setattr(Path, name, forbidden)
    with pytest.raises(InputError, match="permissions") as raised:
        read_clip(f"{folder}/mine.npy")
    assert "save the clip again" not in str(raised.value)


@pytest.mark.parametrize(("size", "words"), [(512 << 20, "512M"), (4 << 30, "4G"), (3 << 29, "1.5G"), (1, "1M")])
def test_sizes_are_written_as_they_are_given(size: int, words: str) -> None:
    assert size_in_words(size) == words
