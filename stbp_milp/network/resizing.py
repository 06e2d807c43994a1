"""Upsampling and downsampling as ONNX's Resize and torch's interpolate define them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stbp_milp.network.assembly import interpolated, nearest
from stbp_milp.network.shaping import Site, Value

_ROUND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}


@dataclass(frozen=True)
class Ways:
    """How places are mapped and read, in ONNX's words."""

    mode: str  # "nearest" or "linear"
    coordinates: str  # "half_pixel", "pytorch_half_pixel", "align_corners" or "asymmetric"
    nearest: str = "floor"


def resized(site: Site, x: Value, lengths: Sequence[int], factors: Sequence[float] | None, ways: Ways) -> Value:
    """Every axis resized to its length.

    Args:
        lengths: of the whole shape.
        factors: of every axis, where the model gives them; else they follow from the lengths.
    """
    if len(lengths) != len(x.whole) or lengths[: x.offset] != list(x.whole[: x.offset]):
        raise site.unsupported(
            f"resizes an operand of shape {x.whole} to {tuple(lengths)}; expected the same batch axis"
        )
    if ways.mode not in ("nearest", "linear"):
        raise site.unsupported(f"interpolates by {ways.mode!r}; expected 'nearest' or 'linear'")
    for axis in range(x.offset, len(lengths)):
        size, length = x.whole[axis], lengths[axis]
        factor = length / size if factors is None else factors[axis]
        if size == length and factor == 1.0:
            continue
        places = _places(site, size, length, factor, ways.coordinates)
        if ways.mode == "linear":
            x = interpolated(site, x, axis - x.offset, places)
        elif ways.nearest in _ROUND:
            x = nearest(site, x, axis - x.offset, _ROUND[ways.nearest](places))
        else:
            raise site.unsupported(f"rounds places by {ways.nearest!r}; expected one of {', '.join(_ROUND)}")
    return x


def _places(site: Site, size: int, length: int, factor: float, coordinates: str) -> np.ndarray:
    """Where every place of the value lies on the operand's axis, `(length,)`."""
    at = np.arange(length, dtype=np.float64)
    if coordinates == "align_corners":
        return at * (size - 1) / (length - 1) if length > 1 else np.zeros(length)
    if coordinates == "asymmetric":
        return at / factor
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and length > 1):
        return (at + 0.5) / factor - 0.5
    if coordinates == "pytorch_half_pixel":
        return np.zeros(length)
    raise site.unsupported(f"maps coordinates by {coordinates!r}; expected half_pixel, align_corners or asymmetric")
