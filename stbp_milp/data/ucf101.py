"""UCF-101 as published: videos `v_Class_gNN_cNN.avi` in class folders, and the official lists of its three splits.

`classInd.txt` numbers the classes from 1 ("1 ApplyEyeMakeup"), `trainlist01.txt` names a video and its class's number
("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"), `testlist01.txt` only the video. Class numbers here begin with 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from stbp_milp.data.clips import ClipSet, ClipShape
from stbp_milp.data.frames import read_video
from stbp_milp.errors import InputError

_NAME = re.compile(r"v_(?P<class>.+)_g\d+_c\d+\.avi")


def read_ucf101(source: Path, shape: ClipShape, split: Path | None = None) -> ClipSet:
    """Reads clips of `shape` from one video, a flat folder of videos, or a folder of class folders.

    With the list of a `split`, these are the videos that it names, in its order, with the classes of the `classInd.txt`
    beside it. Otherwise they are all videos, by name, with the classes that occur, in alphabetical order.

    Raises:
        InputError: there are no videos, or the list cannot be understood or names an unknown class or a missing video.
            Decoding raises it too, for a video that is damaged or too short.
    """
    if split is None:
        videos = _found(source)
        names = [_class_of(video, source) for video in videos]
        classes = tuple(sorted(set(names)))
        labels = [classes.index(name) for name in names]
    else:
        classes = read_classes(split.parent / "classInd.txt")
        videos, labels = _listed(source, split, classes)
    return ClipSet(
        lambda item: read_video(videos[item], shape),
        torch.tensor(labels, dtype=torch.int64),
        tuple(video.stem for video in videos),
        classes,
    )


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads the classes of a `classInd.txt`, in the order of their numbers.

    Raises:
        InputError: there is no such file, or it does not number the classes 1, 2, 3, ...
    """
    classes: list[str] = []
    for line, words in _lines(path):
        if len(words) != 2 or words[0] != str(len(classes) + 1) or words[1] in classes:
            raise InputError(
                f"line {line} of {str(path)!r} is {' '.join(words)!r}; expected {len(classes) + 1} and the name of a "
                "class, as in the official '1 ApplyEyeMakeup'"
            )
        classes.append(words[1])
    return tuple(classes)


def _found(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    videos = sorted([*source.glob("v_*.avi"), *source.glob("*/v_*.avi")])
    if not videos:
        raise InputError(f"{str(source)!r} has no videos; expected v_*.avi in it or in class folders below it")
    return videos


def _class_of(video: Path, source: Path) -> str:
    """Returns the class: the folder's name before the file's, as HandstandPushups holds v_HandStandPushups_*.avi."""
    if video.parent not in (source, source.parent):
        return video.parent.name
    match = _NAME.fullmatch(video.name)
    if match is None:
        raise InputError(f"the name of {str(video)!r} does not tell its class; expected v_Class_g01_c01.avi")
    return match["class"]


def _listed(source: Path, split: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    numbers = {name: number for number, name in enumerate(classes)}
    videos: list[Path] = []
    labels: list[int] = []
    for line, words in _lines(split):
        folder, _, name = words[0].rpartition("/")
        where = f"line {line} of {str(split)!r}"
        if folder not in numbers:
            raise InputError(
                f"{where} has the class {folder!r}, which is not one of the {len(classes)} in classInd.txt beside it"
            )
        if words[1:] not in ([], [str(numbers[folder] + 1)]):
            raise InputError(
                f"{where} gives {words[0]!r} the label {' '.join(words[1:])!r}; classInd.txt beside it numbers "
                f"{folder!r} {numbers[folder] + 1}"
            )
        video = next((path for path in (source / words[0], source / name) if path.is_file()), None)
        if video is None:
            raise InputError(f"{where} names {words[0]!r}, which is not in {str(source)!r}; unpack all of UCF-101")
        videos.append(video)
        labels.append(numbers[folder])
    return videos, labels


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Returns number and words of every line that is not empty; the official lists use both kinds of line ends.

    Raises:
        InputError: the file cannot be read as text, or it is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); expected one of UCF-101's official lists") from error
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise InputError(f"{str(path)!r} is empty; expected one of UCF-101's official lists")
    return lines
