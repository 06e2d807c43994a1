"""Files that show a counterexample: the clips as npz, a picture *strip* and an animated GIF.

A strip has three rows (clean, attacked, their amplified difference) and one column per frame. The *cover*, the voxels
that the attacker chose, is outlined. Pixels are enlarged without smoothing, or thinned out if a frame is larger than a
cell of the strip. Clips with three channels are shown in colour; of all others only the first channel is shown.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stbp_milp.files import write_new_file
from stbp_milp.query import Query
from stbp_milp.report.canvas import (
    FRAME,
    INK,
    OUTLINE,
    PALE_INK,
    PAPER,
    colours,
    difference,
    font,
    paste_cell,
    resized,
    shrunk,
    text_width,
)
from stbp_milp.report.comparison import Array, Comparison, compare, rounded
from stbp_milp.verdict import Counterexample

_STRIP_FRAMES = 16
_STRIP_CELL = 112  # largest side of a frame in the strip, in screen pixels
_ANIMATION_FRAMES = 64
_ANIMATION_CELL = 224

_MARGIN = 14  # around the picture
_GAP = 8  # between cells; the outline of width 2 lies in it
_LINE = 17  # height of a line of text


def save_counterexample(
    query: Query, counterexample: Counterexample, clean_outputs: Sequence[float], folder: Path, stem: str
) -> dict[str, Path]:
    """Writes `<stem>-attack.npz`, `.png` and `.gif` to `folder`; returns their paths by kind: clip, picture, animation.

    The npz holds `clean`, `attacked`, `delta` (C, T, H, W) and `clean_scores`, `attacked_scores` (K,), all float32.
    """
    comparison = compare(query, counterexample, clean_outputs)
    contents = {
        "clip": ("npz", _archive(comparison, clean_outputs, counterexample.outputs)),
        "picture": ("png", strip_png(comparison)),
        "animation": ("gif", animation_gif(comparison)),
    }
    files = {kind: folder / f"{stem}-attack.{suffix}" for kind, (suffix, _) in contents.items()}
    for kind, (_, content) in contents.items():
        write_new_file(files[kind], content)
    return files


def strip_png(comparison: Comparison) -> bytes:
    """Draws the picture strip; long clips show 16 frames, preferably those that the attacker chose."""
    shown = _frames_to_show(comparison, _STRIP_FRAMES)
    rows = _rows(comparison, _STRIP_CELL)
    labels = _labels(comparison)
    height, width = rows[0].shape[1:3]
    label_width = max(text_width(line, title) for lines in labels for line, title in lines) + 2 * _GAP
    heading = f"{comparison.title}   largest change {rounded(comparison.change)}"
    if len(shown) < comparison.frames:
        heading += f"   {len(shown)} of {comparison.frames} frames"
    row_height = max(height, 3 * _LINE) + _GAP
    size = (
        2 * _MARGIN + max(label_width + len(shown) * (width + _GAP) - _GAP, text_width(heading, True)),
        2 * _MARGIN + 2 * _LINE + 3 * row_height - _GAP,
    )
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN - 3), heading, fill=INK, font=font(True))
    first_x, first_y = _MARGIN + label_width, _MARGIN + 2 * _LINE
    for column, frame in enumerate(shown):
        x = first_x + column * (width + _GAP)
        draw.text((x + width // 2, first_y - _LINE), f"t={frame}", fill=PALE_INK, font=font(False), anchor="ma")
        for row, images in enumerate(rows):
            y = first_y + row * row_height
            paste_cell(picture, images[frame], shrunk(comparison.cover[frame], _STRIP_CELL), (x, y))
    for row, lines in enumerate(labels):
        y = first_y + row * row_height
        for i, (line, is_title) in enumerate(lines):
            draw.text((_MARGIN, y + i * _LINE), line, fill=INK if is_title else PALE_INK, font=font(is_title))
    return _encode(picture)


def animation_gif(comparison: Comparison) -> bytes:
    """Draws clean, attacked and difference side by side, one picture per frame; long clips show 64 frames."""
    shown = _frames_to_show(comparison, _ANIMATION_FRAMES)
    rows = _rows(comparison, _ANIMATION_CELL)
    labels = _labels(comparison)
    height, width = rows[0].shape[1:3]
    cell = max(width, max(text_width(line, title) for lines in labels for line, title in lines))
    top = _MARGIN + 4 * _LINE + 2 * _GAP
    width_needed = max(3 * cell + 4 * _GAP, text_width(comparison.title, True))
    size = (2 * _MARGIN + width_needed, top + height + _GAP + _LINE + _MARGIN)
    pictures = []
    for frame in shown:
        picture = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(picture)
        draw.text((_MARGIN, _MARGIN - 3), comparison.title, fill=INK, font=font(True))
        cover = shrunk(comparison.cover[frame], _ANIMATION_CELL)
        for column, (images, lines) in enumerate(zip(rows, labels, strict=True)):
            x = _MARGIN + column * (cell + 2 * _GAP)
            for i, (line, is_title) in enumerate(lines):
                ink = INK if is_title else PALE_INK
                draw.text((x, _MARGIN + (i + 1) * _LINE + _GAP // 2), line, fill=ink, font=font(is_title))
            paste_cell(picture, images[frame], cover, (x, top))
        _draw_timeline(draw, size, frame, comparison)
        pictures.append(picture)
    # One palette for all: with one palette per frame, unchanged pixels flicker.
    palette = _sheet(pictures).quantize(colors=255, dither=Image.Dither.NONE)
    paletted = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    stream = io.BytesIO()
    duration = 400 if len(shown) <= _STRIP_FRAMES else 120  # milliseconds per frame
    paletted[0].save(stream, "GIF", save_all=True, append_images=paletted[1:], duration=duration, loop=0)
    return stream.getvalue()


def _archive(comparison: Comparison, clean_outputs: Sequence[float], outputs: Sequence[float]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        clean=comparison.clean.astype(np.float32),
        attacked=comparison.attacked.astype(np.float32),
        delta=(comparison.attacked - comparison.clean).astype(np.float32),
        clean_scores=np.asarray(clean_outputs, dtype=np.float32),
        attacked_scores=np.asarray(outputs, dtype=np.float32),
    )
    return stream.getvalue()


def _frames_to_show(comparison: Comparison, most: int) -> list[int]:
    """Chooses at most `most` frames, in order: the attacker's, then others evenly spread over the rest of the clip."""
    chosen = [t for t in range(comparison.frames) if comparison.cover[t].any()]
    others = [t for t in range(comparison.frames) if t not in chosen]
    kept = _evenly(chosen, most)
    return sorted(kept + _evenly(others, most - len(kept)))


def _evenly(frames: list[int], count: int) -> list[int]:
    if len(frames) <= count:
        return frames
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)] if count > 0 else []


def _rows(comparison: Comparison, cell: int) -> list[Array]:
    """Returns clean, attacked and difference as images (T, h, w, 3) uint8 of at most `cell` pixels per side."""
    low, high = comparison.domain
    clips = [(clip - low) / (high - low) for clip in (comparison.clean, comparison.attacked)]
    images = [colours(clip) for clip in clips]
    images.append(difference(comparison.attacked - comparison.clean, comparison.change))
    return [np.stack([resized(image, cell) for image in clip]) for clip in images]


def _draw_timeline(draw: ImageDraw.ImageDraw, size: tuple[int, int], frame: int, comparison: Comparison) -> None:
    """Draws one box per frame at the bottom: attacked frames in the colour of the outline, the current one filled."""
    y = size[1] - _MARGIN - _LINE + 6
    text = f"t={frame}"
    draw.text((_MARGIN, y - 5), text, fill=INK, font=font(False))
    left = _MARGIN + text_width(f"t={comparison.frames - 1}", False) + _GAP
    step = (size[0] - _MARGIN - left) / comparison.frames
    for t in range(comparison.frames):
        colour = OUTLINE if comparison.cover[t].any() else FRAME
        box = (left + t * step + 1, y, left + (t + 1) * step - 1, y + 6)
        draw.rectangle(box, fill=colour if t == frame else PAPER, outline=colour)
        if t == frame:
            draw.rectangle(box, fill=INK, outline=colour)


def _labels(comparison: Comparison) -> list[list[tuple[str, bool]]]:
    """Returns up to three lines for each row: its name (True: set in large type) and a description."""
    low, high = comparison.domain
    in_colour = comparison.clean.shape[0] == 3
    whole_range = (high - low) / (2 if in_colour else 1)  # half of the range on either side of grey
    gain = whole_range / comparison.change if comparison.change > 0 else 1.0
    meaning = "around grey" if in_colour else "red up, blue down"
    says = [("clean", comparison.clean_says), ("attacked", comparison.attacked_says)]
    says.append(("difference", f"amplified {gain:.3g}x, {meaning}"))
    return [[(name, True), *((line.strip(), False) for line in text.split(",", 1))] for name, text in says]


def _sheet(pictures: list[Image.Image], most: int = 16) -> Image.Image:
    """Stacks some of the pictures on one sheet, for computing a palette that suits all of them."""
    picked = pictures[:: -(-len(pictures) // most)]
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width, height * len(picked)))
    for i, picture in enumerate(picked):
        sheet.paste(picture, (0, i * height))
    return sheet


def _encode(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()
