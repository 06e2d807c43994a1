"""Driving recordings: logs as the simulator and the challenge write them, and what is wrong with them in one sentence.

By hand: six pictures, clips of three frames every two pictures end at pictures 2 and 4; steering 0.2 is 5 degrees.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stbp_milp.data.udacity import CHALLENGE_COLUMNS, SIMULATOR_COLUMNS, read_udacity
from stbp_milp.errors import InputError

SHAPE = (3, 3, 4, 6)
CHALLENGE = "index,timestamp,width,height,frame_id,filename,angle,torque,speed,lat,long,alt"
HOME = {"relative": "IMG/", "unix": "/home/me/run/IMG/", "windows": "C:\\Users\\me\\run\\IMG\\"}


def write_pictures(folder: Path, names: list[str]) -> None:
    """Upper half dark, lower half brighter from picture to picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        values = np.full((8, 12, 3), 20 * number + 40, dtype=np.uint8)
        values[:4] = 0
        Image.fromarray(values).save(folder / name, quality=95)


def simulator(folder: Path, home: str = "IMG/", header: bool = False, count: int = 6) -> Path:
    names = [f"center_{number}.jpg" for number in range(count)]
    write_pictures(folder / "IMG", names)
    lines = [
        f"{home}{name}, {home}left.jpg, {home}right.jpg, {number / 10},1,0,30" for number, name in enumerate(names)
    ]
    log = folder / "driving_log.csv"
    log.write_text("\n".join([",".join(SIMULATOR_COLUMNS)] * header + lines) + "\n")
    return log


@pytest.mark.parametrize("home", HOME.values(), ids=HOME)
@pytest.mark.parametrize("header", [True, False])
def test_by_hand(tmp_path: Path, home: str, header: bool) -> None:
    log = simulator(tmp_path, home, header)
    clips = read_udacity(log, SHAPE, stride=2)
    assert clips.names == ("center_2", "center_4")
    assert torch.allclose(clips.targets, torch.tensor([[5.0], [10.0]]))
    assert clips.unit == "degrees"
    assert clips[1].shape == SHAPE
    assert clips[1].dtype == torch.float32
    below = clips[1][:, :, -1].mean((0, 2)) * 255  # brightness by frame
    assert torch.allclose(below, torch.tensor([80.0, 100.0, 120.0]), atol=3)
    assert torch.equal(read_udacity(tmp_path, SHAPE, 2).stacked(), clips.stacked())


def test_rows_are_kept_from_the_top(tmp_path: Path) -> None:
    simulator(tmp_path)
    road = read_udacity(tmp_path, (1, 1, 4, 4), rows=(0.5, 1.0))
    sky = read_udacity(tmp_path, (1, 1, 4, 4), rows=(0.0, 0.4))
    assert road[0].min() > 0.1
    assert sky[0].max() < 0.05
    assert read_udacity(tmp_path, (1, 1, 4, 4), rows=(0.99, 1.0))[0].shape == (1, 1, 4, 4)


def test_challenge(tmp_path: Path) -> None:
    write_pictures(tmp_path / "center", ["1.jpg", "2.jpg", "3.jpg"])
    rows = [CHALLENGE]
    for number, angle in ((1, 0.0), (2, 0.5), (3, -math.pi)):
        rows += [
            f"t,{number},640,480,{camera}_camera,{camera}/{number}.jpg,{angle},0,9,37.4,-122.1,36.2"
            for camera in ("left", "center", "right")
        ]
    (tmp_path / "interpolated.csv").write_text("\r\n".join(rows))
    clips = read_udacity(tmp_path, (1, 2, 4, 4))
    assert clips.names == ("2", "3")
    assert clips.targets.flatten().tolist() == pytest.approx([math.degrees(0.5), -180])
    assert set(CHALLENGE_COLUMNS) <= set(CHALLENGE.split(","))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulator(tmp_path_factory.mktemp("recording"), count=9)


@given(frames=st.integers(1, 9), stride=st.integers(1, 10))
def test_clips_are_all_runs_of_pictures(recording: Path, frames: int, stride: int) -> None:
    clips = read_udacity(recording, (1, frames, 2, 2), stride)
    assert clips.names == tuple(f"center_{start + frames - 1}" for start in range(0, 10 - frames, stride))
    assert len(clips) == len(clips.targets)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("0.1,", "left,", r"line 2 of .*driving_log\.csv' has the steering 'left'"),
        ("0.1,", "nan,", "steering 'nan'"),
        ("0.1,", "7.5,", "steering '7.5'"),
        ("center_1", "center_99", r"line 2 of .*'center_99\.jpg', which is not in"),
        (",1,0,30", ",1", r"line 1 of .* has 5 columns; expected 7"),
    ],
)
def test_bad_rows(tmp_path: Path, old: str, new: str, says: str) -> None:
    log = simulator(tmp_path)
    log.write_text(log.read_text().replace(old, new))
    with pytest.raises(InputError, match=says):
        read_udacity(log, SHAPE)


@pytest.mark.parametrize(("angle", "row"), [("east", 2), ("180", 2), ("inf", 2)])
def test_bad_angles(tmp_path: Path, angle: str, row: int) -> None:
    log = tmp_path / "interpolated.csv"
    log.write_text(f"{CHALLENGE}\nt,1,640,480,center_camera,center/1.jpg,{angle},0,9,37.4,-122.1,36.2")
    with pytest.raises(InputError, match=rf"line {row} of .*interpolated\.csv' has the steering '{angle}'"):
        read_udacity(log, SHAPE)


def test_bad_logs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no log"):
        read_udacity(tmp_path, SHAPE)
    log = simulator(tmp_path, count=2)
    with pytest.raises(InputError, match="has 2 pictures, fewer than one clip of 3"):
        read_udacity(log, SHAPE)
    with pytest.raises(InputError, match="stride 0"):
        read_udacity(log, SHAPE, stride=0)
    for text in ("", ",".join(SIMULATOR_COLUMNS), CHALLENGE):
        log.write_text(text)
        with pytest.raises(InputError, match=r"driving_log\.csv' is empty"):
            read_udacity(log, SHAPE)
    log.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"driving_log\.csv' cannot be read"):
        read_udacity(log, SHAPE)


@pytest.mark.parametrize("cut", [False, True])
def test_damaged_picture(tmp_path: Path, cut: bool) -> None:
    log = simulator(tmp_path)
    picture = tmp_path / "IMG" / "center_3.jpg"
    picture.write_bytes(picture.read_bytes()[:-200] if cut else b"no picture")
    clips = read_udacity(log, SHAPE)
    assert clips[0].shape == SHAPE
    with pytest.raises(InputError, match=r"center_3\.jpg' cannot be read as a picture"):
        clips[1]


def test_published_recording(data: Path) -> None:
    clips = read_udacity(data / "udacity_sim", (3, 4, 16, 24), stride=4, rows=(0.18, 0.85))
    assert len(clips) == 40
    assert clips.targets.abs().max() <= 25
    assert clips.targets.unique().numel() > 5
    assert clips[39].shape == (3, 4, 16, 24)
    assert 0 <= clips[39].min() < clips[39].max() <= 1
