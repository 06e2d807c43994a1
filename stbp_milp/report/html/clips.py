"""Counterexamples in the compact format that the page unpacks when a viewer is opened.

A packed clip is zlib data in base64. Inside: a line of JSON (the header), then bytes `(channels, T, H, W)` of the
clean clip's levels (0 to 255 over the data domain), of the attacked levels minus the clean ones (modulo 256), of the
change (127 times its share of the largest change, signed), and one bit per voxel `(T, H, W)` of the attacker's cover.
256 levels are enough for a screen; the npz beside the record keeps the exact values.
"""

from __future__ import annotations

import base64
import json
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from stbp_milp.errors import InputError
from stbp_milp.report.comparison import Array, chosen_cover
from stbp_milp.report.html.instance import ShownInstance
from stbp_milp.sets import SetSpecification

LARGEST_SIDE = 256  # pixels; larger frames are averaged down
_SMALLEST = 128  # bytes: every packed clip is larger, so none is tried if less room is left


@dataclass(frozen=True)
class Viewers:
    """The clips that go into the page.

    Attributes:
        packed: the packed clips, by the position of their instance.
        too_many: positions of instances for whose clips there was no room.
        broken: one sentence per clip that cannot be read.
    """

    packed: dict[int, str] = field(default_factory=dict)
    too_many: tuple[int, ...] = ()
    broken: tuple[str, ...] = ()


def pack_all(instances: Iterable[tuple[int, ShownInstance]], room: int) -> Viewers:
    """Packs the counterexamples of the instances, given with their positions, in order, into at most `room` bytes."""
    packed: dict[int, str] = {}
    too_many: list[int] = []
    broken: list[str] = []
    for i, instance in instances:
        if "clip" not in instance.evidence:
            continue
        if room < _SMALLEST:
            too_many.append(i)
            continue
        try:
            clip = pack(instance)
        except InputError as error:
            broken.append(str(error))
            continue
        if len(clip) > room:
            too_many.append(i)
        else:
            packed[i] = clip
            room -= len(clip)
    return Viewers(packed, tuple(too_many), tuple(broken))


def pack(instance: ShownInstance) -> str:
    """Packs the instance's counterexample.

    Raises:
        InputError: the file of the clips cannot be read.
    """
    path = instance.evidence["clip"]
    clean, attacked = _read(path)
    low, high = _domain(instance)
    cover, exact = _cover(instance, clean, attacked)
    step = -(-max(clean.shape[2:]) // LARGEST_SIDE)
    largest = float(np.abs(attacked - clean).max())
    shown = clean.shape[0] if clean.shape[0] == 3 else 1
    levels = [
        np.rint(((_reduced(clip[:shown], step) - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
        for clip in (clean, attacked)
    ]
    change = _reduced((attacked - clean)[:shown], step) / (largest or 1.0)
    bits = np.packbits(_covered(cover, step))
    header = {
        "shape": list(levels[0].shape),
        "full": list(clean.shape),
        "step": step,
        "largest": largest,
        "domain": [low, high],
        "exact": exact,
        "changed": int((clean != attacked).any(0).sum()),
        "frames": [int(t) for t in np.flatnonzero(cover.any((1, 2)))],
    }
    parts = [levels[0], levels[1] - levels[0], np.rint(change * 127).astype(np.int8), bits]
    return pack_bytes(json.dumps(header).encode() + b"\n" + b"".join(part.tobytes() for part in parts))


def pack_bytes(content: bytes) -> str:
    """Compresses bytes with zlib and encodes them in base64, as the page's `unpack` expects them."""
    return base64.b64encode(zlib.compress(content, 9)).decode()


def _read(path: Path) -> tuple[Array, Array]:
    """Reads the clean and the attacked clip (C, T, H, W) in float64."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            clean, attacked = (np.asarray(archive[name], dtype=np.float64) for name in ("clean", "attacked"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"the clips of {path.name!r} cannot be read ({' '.join(str(error).split())})") from error
    if clean.ndim != 4 or clean.shape != attacked.shape or clean.size == 0:
        raise InputError(f"the clips of {path.name!r} have shapes {clean.shape} and {attacked.shape}, not (C, T, H, W)")
    if not (np.isfinite(clean).all() and np.isfinite(attacked).all()):
        raise InputError(f"the clips of {path.name!r} hold values that are not finite")
    return clean, attacked


def _domain(instance: ShownInstance) -> tuple[float, float]:
    low, high = instance.set["domain"] if instance.set else (0.0, 1.0)
    return (float(low), float(high)) if high > low else (0.0, 1.0)


def _cover(instance: ShownInstance, clean: Array, attacked: Array) -> tuple[Array, bool]:
    """Returns the voxels that the attacker chose and True; if the set is unknown, those that changed and False."""
    asked = instance.set
    if asked:
        try:
            specification = SetSpecification(asked["text"], float(asked["epsilon"]), tuple(asked["domain"]))
            cover = chosen_cover(specification, torch.from_numpy(clean), torch.from_numpy(attacked))
        except InputError:  # a set of another kind, for example VNN-LIB's boxes
            cover = None
        if cover is not None:
            return np.asarray(cover.numpy()), True
    return (clean != attacked).any(0), False


def _reduced(clip: Array, step: int) -> Array:
    """Averages frames over squares of `step` pixels; squares at the lower and right edge may be smaller."""
    if step == 1:
        return clip
    rows = np.add.reduceat(clip, np.arange(0, clip.shape[2], step), axis=2)
    sums = np.add.reduceat(rows, np.arange(0, clip.shape[3], step), axis=3)
    heights, widths = (np.diff([*range(0, side, step), side]) for side in clip.shape[2:])
    return np.asarray(sums / (heights[:, None] * widths[None]))


def _covered(cover: Array, step: int) -> Array:
    rows = np.logical_or.reduceat(cover, np.arange(0, cover.shape[1], step), axis=1)
    return np.asarray(np.logical_or.reduceat(rows, np.arange(0, cover.shape[2], step), axis=2))
