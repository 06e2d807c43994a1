"""Pictures and videos as clips.

By hand: of ten frames, three parts of 3 1/3 frames have their middles at 1.67, 5 and 8.33: frames 1, 5 and 8.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stbp_milp.data.frames import read_video, sampled, to_frame
from stbp_milp.errors import InputError
from tests.videos import grey_levels, write_video


def test_by_hand() -> None:
    assert sampled(10, 3) == [1, 5, 8]


@given(st.integers(1, 40), st.integers(0, 200))
def test_sampling_is_even_and_within(frames: int, more: int) -> None:
    count = frames + more
    chosen = sampled(count, frames)
    steps = {later - earlier for earlier, later in pairwise(chosen)}
    assert len(chosen) == frames
    assert 0 <= chosen[0] <= chosen[-1] < count
    assert not steps or (min(steps) >= 1 and max(steps) - min(steps) <= 1)
    assert abs(chosen[0] - (count - 1 - chosen[-1])) <= 1  # as much is left over in front as behind


@pytest.mark.parametrize("channels", [1, 3])
@given(seed=st.integers(0, 1000), height=st.integers(1, 4), width=st.integers(1, 4), factor=st.integers(1, 3))
def test_shrinking_averages_areas(channels: int, seed: int, height: int, width: int, factor: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (height * factor, width * factor, 3), dtype=np.uint8)
    if channels == 1:
        values[:] = values[..., :1]
    frame = to_frame(Image.fromarray(values), channels, height, width)
    areas = values.reshape(height, factor, width, factor, 3).mean((1, 3))[..., :channels] / 255
    assert frame.dtype == torch.float32
    assert frame.shape == (channels, height, width)
    assert np.abs(frame.permute(1, 2, 0).numpy() - areas).max() <= 1.01 / 255  # rounded to bytes, once per axis


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_of_a_video(tmp_path: Path, suffix: str, channels: int) -> None:
    path = write_video(tmp_path / f"a{suffix}", grey_levels(20))
    clip = read_video(path, (channels, 4, 6, 5))
    assert clip.shape == (channels, 4, 6, 5)
    assert clip.dtype == torch.float32
    expected = torch.tensor([grey_levels(20)[i] / 255 for i in sampled(20, 4)]).view(1, 4, 1, 1)
    assert (clip - expected).abs().max() < 0.03  # the noise, the codec's losses


def test_as_many_frames_as_there_are(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", grey_levels(5))
    assert read_video(path, (1, 5, 2, 2)).shape == (1, 5, 2, 2)
    with pytest.raises(InputError, match=r"a\.avi' has 5 frames; expected 6"):
        read_video(path, (1, 6, 2, 2))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cut.avi", r"cut\.avi' is cut short: \d+ of the 60 frames"),
        ("words.avi", r"words\.avi' cannot be decoded"),
        ("nothing.avi", r"there is no video .*nothing\.avi"),
    ],
)
def test_bad_videos(tmp_path: Path, name: str, says: str) -> None:
    whole = write_video(tmp_path / "whole.avi", grey_levels(60)).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "words.avi").write_text("no video" * 50)
    with pytest.raises(InputError, match=says):
        read_video(tmp_path / name, (1, 4, 8, 8))


def test_other_colours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 channels"):
        read_video(tmp_path / "any.avi", (2, 4, 8, 8))


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"PyAV.*pip install .*stbp-milp\[data\]"):
        read_video(tmp_path / "any.avi", (1, 4, 8, 8))
