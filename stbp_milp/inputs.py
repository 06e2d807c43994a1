"""Readers of what users give as text: a clip in a numpy file, a radius, a data domain.

`read_clip` takes `clip.npy`, `clips.npy[7]`, `clips.npz`, `clips.npz:key` and `clips.npz:key[7]`: a file, the *key* of
an array in it and the *item* along the array's first axis. The key and the item are only needed to choose among
several.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.lib.format as npy_format
from numpy.typing import NDArray

from stbp_milp.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_PLACE = re.compile(r"(?P<path>.+?\.np[yz])(?::(?P<key>[^\[\]]+))?(?:\[(?P<item>-?\d+)\])?", re.IGNORECASE)
# Exponents have at most two digits: Fraction would spend minutes on 1e999999999.
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,2})?", re.IGNORECASE)
_FRACTION = re.compile(r"\d{1,40}/\d{1,40}")

_KINDS = "a .npy or .npz file, for example clip.npy or clips.npz:key[7]"

# What numpy and zipfile raise for damaged files.
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


DIVIDED = " (bytes, divided by 255)"  # how a summary describes such values


@dataclass(frozen=True, eq=False)
class ReadClip:
    """A clip (C, T, H, W) in float64, and what was done to the file's values: `DIVIDED`, or "" for nothing."""

    values: Tensor
    units: str


def read_clip(text: str, as_given: bool = False) -> Tensor:
    """Returns the values that `read_clip_and_units` reads."""
    return read_clip_and_units(text, as_given).values


def read_clip_and_units(text: str, as_given: bool = False, videos: str = "") -> ReadClip:
    """Reads the clip (C, T, H, W) that `text` names, in float64; float32 can hold every value.

    An array (T, H, W), for example one volume of a file (N, T, H, W), becomes a clip of one channel, an image (H, W) a
    clip of one frame, and a vector one row of pixels. uint8 is divided by 255 unless the values are wanted `as_given`:
    if the user names a data domain, they are in it already.

    Args:
        videos: what else the caller accepts, for error messages.

    Raises:
        InputError: there is no such file, key or item; it is not a numpy file; the array does not have one to four
            axes; or its numbers are not finite.
    """
    place = _PLACE.fullmatch(text)
    if place is None:
        raise InputError(f"input {text!r} is not understood; expected {_KINDS}{videos}")
    path, key = Path(place["path"]), place["key"]
    item = None if place["item"] is None else int(place["item"])
    try:
        if not path.is_file():
            raise InputError(f"there is no file {str(path)!r}; give {_KINDS}{videos}")
        with path.open("rb") as stream:  # numpy does not close the files of damaged archives
            content = np.load(stream, allow_pickle=False)
            choose = _from_archive if path.suffix.lower() == ".npz" else _from_file
            array = choose(path, key, content)
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(
            f"this user may not read {str(path)!r} or its folder; change the permissions, for example with chmod u+r"
        ) from error
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "pickle.load" in reason:  # numpy takes every format that it does not know for pickled objects
            reason = "it does not begin like one"
        raise InputError(
            f"{str(path)!r} cannot be read as a numpy file ({reason}); save the clip again with numpy.savez"
        ) from error
    chosen = _one_item(array, item, text)
    units = DIVIDED if chosen.dtype == np.uint8 and not as_given else ""
    return ReadClip(_to_clip(chosen, text, as_given), units)


def parse_epsilon(text: str) -> float:
    """Parses a radius in the unit of the data, written as a fraction ("4/255") or a decimal ("0.03", "1").

    Raises:
        InputError: it is not a number, or it is negative.
    """
    compact = "".join(text.split())
    if _FRACTION.fullmatch(compact) or (_NUMBER.fullmatch(compact) and len(compact) <= 40):
        numerator, _, denominator = compact.partition("/")
        if denominator and int(denominator) == 0:
            raise InputError(f"eps {text!r} divides by zero; give a fraction such as 4/255")
        value = float(Fraction(numerator) / Fraction(denominator or 1))
        if value >= 0:
            return value
    raise InputError(f"eps {text!r} is not a radius; expected a number of 0 or more, such as 4/255, 0.03 or 1")


def parse_domain(text: str) -> tuple[float, float]:
    """Parses the smallest and the largest value of the data, written as "0,1".

    Raises:
        InputError: it is not two finite numbers with the smaller one first.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 2 and all(_NUMBER.fullmatch(part) for part in parts):
        low, high = float(parts[0]), float(parts[1])
        if low < high:
            return low, high
    raise InputError(
        f"domain {text!r} is not an interval; expected the smallest and largest value of the data, such as 0,1 or -1,1"
    )


def parse_bytes(text: str, name: str = "memory") -> int:
    """Parses a number of bytes, written as "4G", "512M" or "1.5G" (powers of 1024).

    Args:
        name: what the number is, for the error message.

    Raises:
        InputError: it is not a positive number followed by K, M, G or T.
    """
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*([KMGT])(?:i?B)?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * 1024 ** (1 + "KMGT".index(match[2].upper()))) if match else 0
    if size <= 0:
        raise InputError(f"{name} {text!r} is not a size; expected a number with K, M, G or T, for example 512M or 4G")
    return size


def size_in_words(size: int) -> str:
    """Formats a number of bytes as `parse_bytes` reads it, "1M" at least."""
    return f"{size / 2**30:.3g}G" if size >= 2**30 else f"{-(-size >> 20)}M"


@dataclass(frozen=True)
class _Header:
    key: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.key} {self.shape}"


def _from_file(path: Path, key: str | None, content: object) -> NDArray[Any]:
    if key is not None:
        raise InputError(f"{str(path)!r} holds one array without a key; leave out ':{key}'")
    if not isinstance(content, np.ndarray):
        raise InputError(f"{str(path)!r} is an archive of several arrays; rename it to .npz")
    return content


def _from_archive(path: Path, key: str | None, content: object) -> NDArray[Any]:
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise InputError(f"{str(path)!r} holds one array, not an archive; rename it to .npy")
    chosen = key if key is not None else _only_clip(path, content)
    if chosen not in content.files:
        raise InputError(f"{str(path)!r} has no array {chosen!r}; it has {_listed(content.files)}")
    array: NDArray[Any] = content[chosen]
    return array


def _only_clip(path: Path, archive: np.lib.npyio.NpzFile) -> str:
    """Returns the key of the only array, or of the only one with four or five axes; reads nothing but headers."""
    if len(archive.files) == 1:
        return archive.files[0]
    headers = [header for key in archive.files if (header := _header(archive, key)) is not None]
    fitting = [header.key for header in headers if len(header.shape) in (4, 5)]
    if len(fitting) == 1:
        return fitting[0]
    raise InputError(
        f"{str(path)!r} holds several arrays; choose one with {path.name}:key from {_listed(list(map(str, headers)))}"
    )


def _header(archive: np.lib.npyio.NpzFile, key: str) -> _Header | None:
    assert archive.zip is not None
    with archive.zip.open(f"{key}.npy") as stream:
        version = npy_format.read_magic(stream)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, _, _ = read(stream)
        return _Header(key, shape)


def _one_item(array: NDArray[Any], item: int | None, text: str) -> NDArray[Any]:
    if item is None:
        if array.ndim == 5 and array.shape[0] != 1:
            raise InputError(
                f"{text!r} holds {array.shape[0]} clips of shape {array.shape[1:]}; choose one, for example {text}[0]"
            )
        return array[0] if array.ndim == 5 else array
    if array.ndim not in (4, 5):
        raise InputError(
            f"{text!r} asks for an item of an array of shape {array.shape}; expected (N, C, T, H, W) or (N, T, H, W)"
        )
    count = array.shape[0]
    if not 0 <= item < count:
        raise InputError(f"{text!r} asks for item {item} of {count}; give a number from 0 to {count - 1}")
    selected: NDArray[Any] = array[item]
    return selected


def bytes_as_floats(values: NDArray[np.uint8], as_given: bool) -> NDArray[np.float32]:
    """Converts bytes to floats, dividing them by 255 unless they are wanted as they are."""
    return values.astype(np.float32) / np.float32(1 if as_given else 255)


def _to_clip(array: NDArray[Any], text: str, as_given: bool = False) -> Tensor:
    """Makes a clip of an array, as `read_clip` does; `text` names the array in error messages."""
    if array.ndim not in (1, 2, 3, 4) or 0 in array.shape:
        raise InputError(
            f"{text!r} has shape {array.shape}; expected a clip (C, T, H, W), or (T, H, W) for a single channel"
        )
    array = array.reshape((1,) * (4 - array.ndim) + array.shape)
    if array.dtype == np.uint8:
        array = bytes_as_floats(array, as_given)
    elif not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{text!r} holds values of type {array.dtype}; expected floats in the data domain, or uint8 from 0 to 255"
        )
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which is refused below
        single = array.astype(np.float32)
    wrong = int((~np.isfinite(single)).sum())
    if wrong:
        raise InputError(f"{text!r} holds {wrong} values that are NaN, infinite or too large; expected finite numbers")
    import torch  # the import takes seconds, and callers that only parse text need not wait for it

    return torch.from_numpy(single.astype(np.float64))


def _listed(names: list[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "no arrays"
