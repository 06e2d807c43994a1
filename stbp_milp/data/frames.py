"""Conversion of pictures to frames of a clip, and of video files to clips.

Pictures are scaled by averaging areas (Pillow's box filter) to exactly the wanted height and width, whatever their
aspect ratio. Videos are decoded with PyAV (optional: `pip install "stbp-milp[data]"`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stbp_milp.data.clips import ClipShape
from stbp_milp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MODES = {1: "L", 3: "RGB"}
_VIDEOS = (".avi", ".mp4")
_LOST = 0.02  # share of the announced frames that may be missing: some encoders announce one too many


def to_frame(picture: Image.Image, channels: int, height: int, width: int) -> Tensor:
    """Converts a picture to (channels, height, width), float32 in [0, 1]: grey (ITU-R 601 luma) or red, green, blue.

    Raises:
        InputError: the number of channels is neither 1 nor 3.
    """
    small = picture.convert(color_mode(channels)).resize((width, height), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32) / np.float32(255)
    return torch.from_numpy(values.reshape(height, width, channels)).permute(2, 0, 1)


def color_mode(channels: int) -> str:
    """Returns Pillow's name of the colour mode.

    Raises:
        InputError: the number of channels is neither 1 nor 3.
    """
    if channels not in _MODES:
        raise InputError(f"pictures cannot be read as {channels} channels; expected 1 (grey) or 3 (red, green, blue)")
    return _MODES[channels]


def sampled(count: int, frames: int) -> list[int]:
    """Chooses `frames` of `count` frames: the middle ones of `frames` equal parts; `frames <= count`."""
    return [(2 * part + 1) * count // (2 * frames) for part in range(frames)]


def is_video(name: str) -> bool:
    """Is a file of this name decoded as a video?"""
    return name.lower().endswith(_VIDEOS)


def read_video(path: Path, shape: ClipShape) -> Tensor:
    """Reads a clip of `shape` from a video file: evenly sampled frames, resized.

    The file is decoded twice, first to count the frames: containers often give a wrong number, and whole videos do not
    fit in memory.

    Raises:
        InputError: there is no such file, it is not a video or is cut short, it has fewer frames than the clip, or PyAV
            is not installed.
    """
    channels, frames, height, width = shape
    color_mode(channels)
    count = sum(1 for _ in _pictures(path, ()))
    if count < frames:
        raise InputError(f"{str(path)!r} has {count} frames; expected {frames} or more, give a longer video")
    pictures = _pictures(path, sampled(count, frames))
    return torch.stack([to_frame(picture, channels, height, width) for picture in pictures if picture is not None], 1)


def _pictures(path: Path, wanted: list[int] | tuple[()]) -> Iterator[Image.Image | None]:
    """Yields one item per frame, a picture for wanted frames and None for others; a truncated file is an error."""
    try:
        import av
    except ImportError as error:
        raise InputError(
            f'{str(path)!r} is a video, and PyAV, which reads those, is not installed; pip install "stbp-milp[data]"'
        ) from error
    if not path.is_file():
        raise InputError(f"there is no video {str(path)!r}; give the path of an .avi or .mp4 file")
    try:
        with av.open(str(path), metadata_errors="ignore") as container:  # UCF-101 has metadata that is not UTF-8
            if not container.streams.video:
                raise InputError(f"{str(path)!r} holds no video, only {len(container.streams)} other streams")
            stream = container.streams.video[0]
            number = -1
            for number, frame in enumerate(container.decode(stream)):
                yield frame.to_image() if number in wanted else None
            announced = stream.frames  # 0 if the container does not say
    except av.FFmpegError as error:
        raise InputError(
            f"{str(path)!r} cannot be decoded as a video ({error.strerror}); fetch or convert it again"
        ) from error
    if announced - (number + 1) > max(1, _LOST * announced):
        raise InputError(
            f"{str(path)!r} is cut short: {number + 1} of the {announced} frames that it announces can be decoded; "
            "fetch it again"
        )
