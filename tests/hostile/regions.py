"""Perturbation sets by definition, in exact arithmetic: which clips are in, and how one is drawn."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .programs import Exact, exactly

KINDS = (
    "everywhere",
    "frames",
    "any-frames",
    "window",
    "patch",
    "moving-patch",
    "patch-at",
    "pixels",
    "pixels-per-frame",
)


@dataclass(frozen=True, eq=False)
class Region:
    """Clips that differ from the clean one on a cover, by at most epsilon, inside the domain.

    Attributes:
        clip: (C, T, H, W) float64, of float32 values.
    """

    text: str
    clip: np.ndarray
    epsilon: float
    domain: tuple[float, float]

    def box(self) -> tuple[Exact, Exact]:
        """Smallest and largest values, exact."""
        centre, radius = exactly(self.clip), Fraction(self.epsilon)
        low, high = (Fraction(v) for v in self.domain)
        smallest = np.frompyfunc(lambda c: max(c - radius, low), 1, 1)(centre)
        largest = np.frompyfunc(lambda c: min(c + radius, high), 1, 1)(centre)
        return smallest, largest

    def holds(self, clip: Exact) -> bool:
        low, high = self.box()
        inside = bool(((clip >= low) & (clip <= high)).all())
        return inside and self.covers((clip != exactly(self.clip)).any(0))

    def covers(self, changed: np.ndarray) -> bool:
        """Is there a member that may change these voxels `(T, H, W)`?"""
        kind, numbers = self.text.split(":")[0], [int(n) for n in re.findall(r"\d+", self.text)]
        if not changed.any() or kind == "everywhere":
            return True
        frames = np.flatnonzero(changed.any((1, 2)))
        span = frames[-1] - frames[0] + 1
        if kind == "frames":
            return set(frames.tolist()) <= set(numbers)
        if kind == "any-frames":
            return len(frames) <= numbers[0]
        if kind == "window":
            return bool(span <= numbers[0])
        if kind == "pixels":
            return bool(changed.sum() <= numbers[0])
        if kind == "pixels-per-frame":
            return bool(changed.sum((1, 2)).max() <= numbers[0])
        *place, rows, columns, length = numbers
        if kind == "patch":
            return bool(span <= length) and _fits(changed.any(0), rows, columns)
        if kind == "moving-patch":
            return bool(span <= length) and all(_fits(frame, rows, columns) for frame in changed if frame.any())
        t, i, j = place
        rest = changed.copy()
        rest[t : t + length, i : i + rows, j : j + columns] = False
        return not rest.any()

    def draw_cover(self, random: np.random.Generator) -> np.ndarray:
        """The voxels `(T, H, W)` of some member."""
        kind, numbers = self.text.split(":")[0], [int(n) for n in re.findall(r"\d+", self.text)]
        shape = self.clip.shape[1:]
        cover = np.zeros(shape, dtype=bool)
        if kind == "everywhere":
            return ~cover
        if kind == "frames":
            cover[numbers] = True
        elif kind == "any-frames":
            cover[random.permutation(shape[0])[: numbers[0]]] = True
        elif kind == "window":
            start = int(random.integers(shape[0] - numbers[0] + 1))
            cover[start : start + numbers[0]] = True
        elif kind == "pixels":
            cover.flat[random.permutation(cover.size)[: numbers[0]]] = True
        elif kind == "pixels-per-frame":
            for frame in cover:
                frame.flat[random.permutation(frame.size)[: numbers[0]]] = True
        else:
            *place, rows, columns, length = numbers
            ends = [n - k + 1 for n, k in zip(shape, (length, rows, columns), strict=True)]
            t, i, j = place or [int(random.integers(n)) for n in ends]
            for frame in range(t, t + length):
                cover[frame, i : i + rows, j : j + columns] = True
                if kind == "moving-patch":
                    i, j = (int(random.integers(n)) for n in ends[1:])
        return cover


def _fits(changed: np.ndarray, rows: int, columns: int) -> bool:
    i, j = np.nonzero(changed)
    return bool(np.ptp(i) < rows and np.ptp(j) < columns)


def draw_text(kind: str, voxels: tuple[int, int, int], random: np.random.Generator) -> str:
    t = voxels[0]
    m, rows, columns = (int(random.integers(1, n + 1)) for n in voxels)
    if kind == "frames":
        return "frames:" + ",".join(str(n) for n in sorted(random.permutation(t)[:m].tolist()))
    if kind in ("any-frames", "window"):
        return f"{kind}:{m}"
    if kind in ("patch", "moving-patch"):
        return f"{kind}:{min(rows, 2)}x{min(columns, 2)}@{m}"
    if kind == "patch-at":
        at = [int(random.integers(n - k + 1)) for n, k in zip(voxels, (m, rows, columns), strict=True)]
        return f"patch-at:{at[0]},{at[1]},{at[2]}:{rows}x{columns}@{m}"
    if kind == "pixels":
        return f"pixels:{int(random.integers(1, 5))}"
    if kind == "pixels-per-frame":
        return f"pixels-per-frame:{int(random.integers(1, 3))}"
    return kind
