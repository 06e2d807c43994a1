"""UCF-101 in its published layout: class folders, official lists, and what is wrong with them in one sentence.

By hand: two classes of two videos; the split names one of each, in its own order.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stbp_milp.data.frames import read_video
from stbp_milp.data.ucf101 import read_classes, read_ucf101
from stbp_milp.errors import InputError
from tests.videos import grey_levels, write_video

SHAPE = (1, 3, 4, 4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two class folders, the second spelled otherwise than its videos, as in the original."""
    for folder, name in (("Archery", "Archery"), ("HandstandPushups", "HandStandPushups")):
        for group in (1, 2):
            write_video(tmp_path / folder / f"v_{name}_g0{group}_c01.avi", grey_levels(3 + group))
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 Archery\r\n2 HandstandPushups\r\n")
    (lists / "trainlist01.txt").write_bytes(
        b"HandstandPushups/v_HandStandPushups_g02_c01.avi 2\r\nArchery/v_Archery_g01_c01.avi 1\r\n\r\n"
    )
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g02_c01.avi\n")
    return tmp_path


def test_by_hand(root: Path) -> None:
    train = read_ucf101(root, SHAPE, root / "lists" / "trainlist01.txt")
    assert train.names == ("v_HandStandPushups_g02_c01", "v_Archery_g01_c01")
    assert train.targets.tolist() == [1, 0]
    assert train.classes == ("Archery", "HandstandPushups")
    video = root / "HandstandPushups" / "v_HandStandPushups_g02_c01.avi"
    assert torch.equal(train[0], read_video(video, SHAPE))
    assert train.stacked().shape == (2, *SHAPE)
    test = read_ucf101(root, SHAPE, root / "lists" / "testlist01.txt")
    assert (test.names, test.targets.tolist()) == (("v_Archery_g02_c01",), [0])


def test_class_folders_flat_folder_and_one_video_agree(root: Path, tmp_path: Path) -> None:
    folders = read_ucf101(root, SHAPE)
    assert folders.classes == ("Archery", "HandstandPushups")
    assert folders.targets.tolist() == [0, 0, 1, 1]
    flat = tmp_path / "flat"
    flat.mkdir()
    for video in root.glob("*/v_*.avi"):
        (flat / video.name).write_bytes(video.read_bytes())
    same = read_ucf101(flat, SHAPE)
    assert same.names == folders.names
    assert torch.equal(same.stacked(), folders.stacked())
    split = root / "lists" / "testlist01.txt"
    assert torch.equal(read_ucf101(flat, SHAPE, split)[0], read_ucf101(root, SHAPE, split)[0])
    one = read_ucf101(flat / "v_Archery_g01_c01.avi", SHAPE)
    assert (one.names, one.classes) == (("v_Archery_g01_c01",), ("Archery",))
    assert torch.equal(one[0], folders[0])


def test_damage_is_told_when_the_clip_is_asked_for(root: Path) -> None:
    (root / "Archery" / "v_Archery_g01_c01.avi").write_text("no video")
    clips = read_ucf101(root, SHAPE)
    assert clips[1].shape == SHAPE
    with pytest.raises(InputError, match="v_Archery_g01_c01"):
        clips[0]
    with pytest.raises(IndexError):
        clips[4]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("Diving/v_Diving_g01_c01.avi 1", r"line 1 of .*list\.txt' has the class 'Diving'"),
        ("v_Archery_g01_c01.avi 1", "has the class ''"),
        ("Archery/v_Archery_g01_c01.avi 2", "label '2'"),
        ("Archery/v_Archery_g01_c01.avi one", "label 'one'"),
        ("Archery/v_Archery_g09_c01.avi 1", "v_Archery_g09_c01.avi', which is not in"),
        ("", "is empty"),
    ],
)
def test_bad_lists(root: Path, line: str, says: str) -> None:
    (root / "lists" / "list.txt").write_text(line)
    with pytest.raises(InputError, match=says):
        read_ucf101(root, SHAPE, root / "lists" / "list.txt")


@pytest.mark.parametrize("text", ["Archery 1", "1 Archery\n3 Diving", "1 Archery\n2 Archery", "0 Archery", "\xff\n"])
def test_bad_classes(tmp_path: Path, text: str) -> None:
    (tmp_path / "classInd.txt").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"classInd\.txt"):
        read_classes(tmp_path / "classInd.txt")


def test_no_videos(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no videos"):
        read_ucf101(tmp_path, SHAPE)
    write_video(tmp_path / "v_odd.avi", grey_levels(3))
    with pytest.raises(InputError, match=r"v_odd\.avi' does not tell its class"):
        read_ucf101(tmp_path, SHAPE)


def test_published_videos(data: Path) -> None:
    clips = read_ucf101(data / "ucf101", (3, 8, 16, 16))
    assert clips.classes == ("Basketball", "SoccerJuggling")
    assert clips.targets.tolist() == [0, 1, 1]
    for clip in clips:
        assert clip.shape == (3, 8, 16, 16)
        assert 0 <= clip.min() < clip.max() <= 1
        assert clip.std() > 0.05  # pictures, not one grey
