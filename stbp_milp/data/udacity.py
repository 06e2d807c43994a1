"""Udacity driving recordings as published: a log, and beside it pictures of the road.

Simulator: `driving_log.csv` (center,left,right,steering,throttle,brake,speed; often without a header), steering from
-1 to 1, where 1 is 25 degrees to the right; pictures in `IMG/`, under the paths of the machine that recorded them.
Challenge: `interpolated.csv` with a header, angle of the steering wheel in radians, one row per camera, of which the
centre one counts. Signs stay as recorded.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stbp_milp.data.clips import ClipSet, ClipShape
from stbp_milp.data.frames import color_mode, to_frame
from stbp_milp.errors import InputError

LOGS = ("driving_log.csv", "interpolated.csv")
SIMULATOR_COLUMNS = ("center", "left", "right", "steering", "throttle", "brake", "speed")
CHALLENGE_COLUMNS = ("frame_id", "filename", "angle")  # the columns that are read
FULL_LOCK = 25.0  # degrees of the simulator's steering value 1
WHEEL_LIMIT = 10.0  # radians; steering wheels end after one and a half turns


@dataclass(frozen=True)
class _Moment:
    """One picture and the steering angle at that time."""

    picture: Path
    angle: float  # degrees


def read_udacity(source: Path, shape: ClipShape, stride: int = 1, rows: tuple[float, float] = (0.0, 1.0)) -> ClipSet:
    """Reads clips of T consecutive pictures, one every `stride` pictures; the target is the last picture's steering.

    `source` is a log or its folder. `rows` is the part of the pictures' height that is kept, from the top: (0.4, 0.85)
    cuts off sky and bonnet. All pictures must follow each other in time, so there is one log per recording. The targets
    are steering angles in degrees, (N, 1).

    Raises:
        InputError: there is no log, or it is empty or unreadable; a steering value is not a number or out of range; a
            picture is missing; or there are fewer pictures than frames. Decoding raises it too, for a damaged picture.
    """
    channels, frames, height, width = shape
    color_mode(channels)
    if stride < 1 or not 0 <= rows[0] < rows[1] <= 1:
        raise InputError(
            f"stride {stride} or rows {rows} cannot be used; expected 1 or more, and 0 <= top < bottom <= 1"
        )
    log = source if source.is_file() else _log_in(source)
    moments = _moments(log)
    if len(moments) < frames:
        raise InputError(f"{str(log)!r} has {len(moments)} pictures, fewer than one clip of {frames} frames")
    starts = range(0, len(moments) - frames + 1, stride)
    last = [moments[start + frames - 1] for start in starts]

    def decode(item: int) -> Tensor:
        own = moments[starts[item] : starts[item] + frames]
        return torch.stack([_frame(moment.picture, rows, (channels, height, width)) for moment in own], 1)

    angles = torch.tensor([[moment.angle] for moment in last], dtype=torch.float32)
    return ClipSet(decode, angles, tuple(moment.picture.stem for moment in last), unit="degrees")


def _log_in(folder: Path) -> Path:
    for name in LOGS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{str(folder)!r} has no log; expected {' or '.join(LOGS)} in it")


def _moments(log: Path) -> list[_Moment]:
    try:
        with log.open(newline="", encoding="utf-8-sig") as file:
            lines = [
                (number, [cell.strip() for cell in cells]) for number, cells in enumerate(csv.reader(file), 1) if cells
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(log)!r} cannot be read as a log ({error}); expected lines of commas") from error
    header = lines[0][1] if lines else []
    if all(column in header for column in CHALLENGE_COLUMNS):
        moments = _read(log, lines[1:], header, "filename", "angle", _challenge_angle)
    else:
        named = header[: len(SIMULATOR_COLUMNS)] == list(SIMULATOR_COLUMNS)
        moments = _read(log, lines[named:], SIMULATOR_COLUMNS, "center", "steering", _simulator_angle)
    if not moments:
        raise InputError(f"{str(log)!r} is empty: it has no picture of the centre camera; record or fetch it again")
    return moments


def _read(
    log: Path,
    lines: Sequence[tuple[int, list[str]]],
    columns: Sequence[str],
    picture: str,
    steering: str,
    degrees: Callable[[float], float | None],
) -> list[_Moment]:
    moments: list[_Moment] = []
    for number, cells in lines:
        where = f"line {number} of {str(log)!r}"
        if len(cells) != len(columns):
            raise InputError(f"{where} has {len(cells)} columns; expected {len(columns)}: {','.join(columns)}")
        row = dict(zip(columns, cells, strict=True))
        if row.get("frame_id", "center_camera") != "center_camera":
            continue
        angle = degrees(_number(row[steering]))
        if angle is None:
            raise InputError(
                f"{where} has the steering {row[steering]!r}; expected a number: -1 to 1 in the simulator's logs, "
                f"radians within +-{WHEEL_LIMIT:g} in the challenge's"
            )
        path = _beside(log, row[picture])
        if not path.is_file():
            raise InputError(f"{where} names the picture {path.name!r}, which is not in {str(path.parent)!r}")
        moments.append(_Moment(path, angle))
    return moments


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _simulator_angle(steering: float) -> float | None:
    return FULL_LOCK * steering if abs(steering) <= 1 else None


def _challenge_angle(steering: float) -> float | None:
    return math.degrees(steering) if abs(steering) <= WHEEL_LIMIT else None


def _beside(log: Path, recorded: str) -> Path:
    r"""Maps `C:\Users\me\IMG\center_1.jpg` or `center/1.jpg` to that file in IMG or center beside the log."""
    return log.parent.joinpath(*recorded.replace("\\", "/").split("/")[-2:])


def _frame(path: Path, rows: tuple[float, float], shape: tuple[int, int, int]) -> Tensor:
    try:
        with Image.open(path) as picture:
            top = min(round(rows[0] * picture.height), picture.height - 1)
            bottom = max(round(rows[1] * picture.height), top + 1)
            return to_frame(picture.crop((0, top, picture.width, bottom)), *shape)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a picture ({error}); fetch it again") from error
