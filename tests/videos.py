"""Small video files for tests, written with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np


def grey_levels(count: int) -> list[int]:
    """A different brightness for each of up to 60 frames."""
    return [20 + 200 * frame // max(1, count - 1) for frame in range(count)]


def write_video(path: Path, levels: Sequence[int], height: int = 24, width: int = 32) -> Path:
    """One grey frame for every level, with noise (or the file is all header), as mpeg4 like UCF-101."""
    generator = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = height, width, "yuv420p", 4_000_000
        for level in levels:
            values = np.clip(level + generator.integers(-4, 5, (height, width, 1)), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(values.repeat(3, axis=2), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
