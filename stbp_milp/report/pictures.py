"""A counterexample to look at: the clips as npz, a picture *strip* and an animated GIF.

A strip has three rows (clean, attacked, their difference, amplified) and one column a frame; the *cover*, the voxels
that the attacker chose, is outlined. Pixels are enlarged without smoothing, or thinned out where a frame is larger
than a cell of the strip. Clips of three channels are shown in colour, of others the first channel is shown.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from stbp_milp.errors import SoundnessError
from stbp_milp.query import Query
from stbp_milp.records import write_new_file
from stbp_milp.verdict import Counterexample

Array = NDArray[Any]
Colour = tuple[int, int, int]

_STRIP_FRAMES = 16
_STRIP_CELL = 112  # largest side of a frame in the strip, in screen pixels
_ANIMATION_FRAMES = 64
_ANIMATION_CELL = 224

_PAPER: Colour = (255, 255, 255)
_INK: Colour = (28, 32, 38)
_PALE_INK: Colour = (110, 116, 124)
_FRAME: Colour = (205, 209, 214)
_OUTLINE: Colour = (255, 106, 0)
_NEGATIVE: Colour = (33, 102, 172)
_POSITIVE: Colour = (178, 24, 43)
_NEUTRAL: Colour = (244, 244, 244)

_MARGIN = 14  # around the picture
_GAP = 8  # between cells; the outline of width 2 lies in it
_LINE = 17  # height of a line of text


@dataclass(frozen=True, eq=False)
class Comparison:
    """A clean clip and an attacked one, ready to be drawn.

    Attributes:
        clean, attacked: (C, T, H, W) float, in the data domain.
        cover: (T, H, W) bool, the voxels the attacker chose.
        domain: the values drawn as black and white.
        title: what was asked.
        clean_says, attacked_says: what the model answers, a line or two each.
    """

    clean: Array
    attacked: Array
    cover: Array
    domain: tuple[float, float]
    title: str
    clean_says: str
    attacked_says: str

    @property
    def frames(self) -> int:
        return int(self.clean.shape[1])

    @property
    def change(self) -> float:
        """The largest change of a voxel."""
        return float(np.abs(self.attacked - self.clean).max())


def compare(query: Query, counterexample: Counterexample, clean_outputs: Sequence[float]) -> Comparison:
    """The counterexample beside the query's clip, with the cover that holds every changed voxel.

    Raises:
        SoundnessError: no cover of the set holds them all.
    """
    perturbation = query.set.build(query.clip)
    attacked = counterexample.clip.to(torch.float64)
    change = (attacked - query.clip).abs().sum(0)
    cover = perturbation.choice.best(change[None, None])[1][0, 0] & bool(change.any())
    if bool((change[~cover] > 0).any()):
        raise SoundnessError(f"the counterexample of {counterexample.stage!r} lies outside the set {query.set.text!r}")
    return Comparison(
        clean=query.clip.numpy(),
        attacked=attacked.numpy(),
        cover=cover.numpy(),
        domain=query.set.domain,
        title=f"{query.model.name}   {query.set.text}   eps {as_fraction(query.set.epsilon)}",
        clean_says=answer(query, clean_outputs),
        attacked_says=answer(query, counterexample.outputs),
    )


def answer(query: Query, outputs: Sequence[float]) -> str:
    """What the model says with `outputs` (K,): its class and score, or the numbers of a regression."""
    if query.property.text.startswith("class"):
        best = int(np.argmax(outputs))
        return f"class {best}, score {outputs[best]:.4g}"
    return "output " + ", ".join(f"{value:.4g}" for value in outputs[:3]) + (", ..." if len(outputs) > 3 else "")


def as_fraction(epsilon: float) -> str:
    """The radius as people write it: "4/255" or "0.03"."""
    return _levels(epsilon, 1e-9) or f"{epsilon:.12g}"


def _rounded(change: float) -> str:
    """The same for a number that float32 has rounded."""
    return _levels(change, 1e-4) or f"{change:.3g}"


def _levels(value: float, tolerance: float) -> str | None:
    """ "n/255" where that is what the value is, and where it is shorter than its digits."""
    levels = value * 255
    whole = round(levels)
    fits = 0 < whole < 255 and abs(levels - whole) < tolerance
    return f"{whole}/255" if fits and len(f"{value:.6g}") > 6 else None


def save_counterexample(
    query: Query, counterexample: Counterexample, clean_outputs: Sequence[float], folder: Path, stem: str
) -> dict[str, Path]:
    """Write `<stem>-attack.npz`, `.png` and `.gif` to `folder`; return them by kind: clip, picture, animation.

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
    """The picture strip; of long clips 16 frames, those the attacker chose first."""
    shown = _frames_to_show(comparison, _STRIP_FRAMES)
    rows = _rows(comparison, _STRIP_CELL)
    labels = _labels(comparison)
    height, width = rows[0].shape[1:3]
    label_width = max(_text_width(line, title) for lines in labels for line, title in lines) + 2 * _GAP
    heading = f"{comparison.title}   largest change {_rounded(comparison.change)}"
    if len(shown) < comparison.frames:
        heading += f"   {len(shown)} of {comparison.frames} frames"
    row_height = max(height, 3 * _LINE) + _GAP
    size = (
        2 * _MARGIN + max(label_width + len(shown) * (width + _GAP) - _GAP, _text_width(heading, True)),
        2 * _MARGIN + 2 * _LINE + 3 * row_height - _GAP,
    )
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN - 3), heading, fill=_INK, font=_font(True))
    first_x, first_y = _MARGIN + label_width, _MARGIN + 2 * _LINE
    for column, frame in enumerate(shown):
        x = first_x + column * (width + _GAP)
        draw.text((x + width // 2, first_y - _LINE), f"t={frame}", fill=_PALE_INK, font=_font(False), anchor="ma")
        for row, images in enumerate(rows):
            y = first_y + row * row_height
            _paste_cell(picture, images[frame], _shrunk_cover(comparison, frame, _STRIP_CELL), (x, y))
    for row, lines in enumerate(labels):
        y = first_y + row * row_height
        for i, (line, is_title) in enumerate(lines):
            draw.text((_MARGIN, y + i * _LINE), line, fill=_INK if is_title else _PALE_INK, font=_font(is_title))
    return _encode(picture)


def animation_gif(comparison: Comparison) -> bytes:
    """Clean, attacked and difference side by side, a picture a frame; of long clips 64 frames."""
    shown = _frames_to_show(comparison, _ANIMATION_FRAMES)
    rows = _rows(comparison, _ANIMATION_CELL)
    labels = _labels(comparison)
    height, width = rows[0].shape[1:3]
    cell = max(width, max(_text_width(line, title) for lines in labels for line, title in lines))
    top = _MARGIN + 4 * _LINE + 2 * _GAP
    width_needed = max(3 * cell + 4 * _GAP, _text_width(comparison.title, True))
    size = (2 * _MARGIN + width_needed, top + height + _GAP + _LINE + _MARGIN)
    pictures = []
    for frame in shown:
        picture = Image.new("RGB", size, _PAPER)
        draw = ImageDraw.Draw(picture)
        draw.text((_MARGIN, _MARGIN - 3), comparison.title, fill=_INK, font=_font(True))
        cover = _shrunk_cover(comparison, frame, _ANIMATION_CELL)
        for column, (images, lines) in enumerate(zip(rows, labels, strict=True)):
            x = _MARGIN + column * (cell + 2 * _GAP)
            for i, (line, is_title) in enumerate(lines):
                ink = _INK if is_title else _PALE_INK
                draw.text((x, _MARGIN + (i + 1) * _LINE + _GAP // 2), line, fill=ink, font=_font(is_title))
            _paste_cell(picture, images[frame], cover, (x, top))
        _draw_timeline(draw, size, frame, comparison)
        pictures.append(picture)
    # One palette for all: a palette a frame makes unchanged pixels flicker.
    palette = _sheet(pictures).quantize(colors=255, dither=Image.Dither.NONE)
    paletted = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    stream = io.BytesIO()
    duration = 400 if len(shown) <= _STRIP_FRAMES else 120  # milliseconds a frame
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
    """At most `most` frames in order: the attacker's first, then frames evenly over the rest of the clip."""
    chosen = [t for t in range(comparison.frames) if comparison.cover[t].any()]
    others = [t for t in range(comparison.frames) if t not in chosen]
    kept = _evenly(chosen, most)
    return sorted(kept + _evenly(others, most - len(kept)))


def _evenly(frames: list[int], count: int) -> list[int]:
    if len(frames) <= count:
        return frames
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)] if count > 0 else []


def _rows(comparison: Comparison, cell: int) -> list[Array]:
    """Clean, attacked and difference as images (T, h, w, 3) uint8 of at most `cell` a side."""
    low, high = comparison.domain
    clips = [(clip - low) / (high - low) for clip in (comparison.clean, comparison.attacked)]
    images = [_colours(clip) for clip in clips]
    images.append(_difference(comparison.attacked - comparison.clean, comparison.change))
    return [np.stack([_resized(image, cell) for image in clip]) for clip in images]


def _colours(clip: Array) -> Array:  # (C, T, H, W) in [0, 1] -> (T, H, W, 3) uint8
    channels = clip if clip.shape[0] == 3 else np.repeat(clip[:1], 3, axis=0)
    colours: Array = (channels.transpose(1, 2, 3, 0).clip(0, 1) * 255).round().astype(np.uint8)
    return colours


def _difference(delta: Array, largest: float) -> Array:
    """Signed change as colour: three channels around grey, one channel from blue over white to red."""
    scaled = delta / largest if largest > 0 else delta
    if delta.shape[0] == 3:
        return _colours((scaled + 1) / 2)
    amount = scaled[0][..., None]
    end = np.where(amount > 0, np.array(_POSITIVE), np.array(_NEGATIVE))
    mixed: Array = np.array(_NEUTRAL) + np.abs(amount) * (end - np.array(_NEUTRAL))
    return np.asarray(mixed.clip(0, 255).round().astype(np.uint8))


def _scale(height: int, width: int, cell: int) -> tuple[int, int]:
    """How often a pixel is repeated, and every how many-th is taken."""
    longest = max(height, width)
    return (max(1, cell // longest), 1) if longest <= cell else (1, -(-longest // cell))


def _resized(image: Array, cell: int) -> Array:  # (H, W, 3) -> (h, w, 3)
    repeat, step = _scale(image.shape[0], image.shape[1], cell)
    if step > 1:
        return np.asarray(Image.fromarray(image).reduce(step))
    return _repeated(image, repeat)


def _repeated(image: Array, times: int) -> Array:
    repeated: Array = image.repeat(times, 0).repeat(times, 1)
    return repeated


def _shrunk_cover(comparison: Comparison, frame: int, cell: int) -> Array:
    """The frame's cover in screen pixels (h, w): a thinned pixel is covered where one of its pixels is."""
    cover: Array = comparison.cover[frame]
    repeat, step = _scale(cover.shape[0], cover.shape[1], cell)
    if step == 1:
        return _repeated(cover, repeat)
    padded = np.pad(cover, [(0, -side % step) for side in cover.shape])
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    return np.asarray(blocks.any((1, 3)))


def _paste_cell(picture: Image.Image, image: Array, cover: Array, place: tuple[int, int]) -> None:
    """One frame with a thin border, and the outline of its cover drawn just outside the cover."""
    x, y = place
    height, width = cover.shape
    ImageDraw.Draw(picture).rectangle((x - 1, y - 1, x + width, y + height), outline=_FRAME)
    picture.paste(Image.fromarray(np.ascontiguousarray(image)), place)
    if cover.any():
        around = _outline(cover, 2)
        picture.paste(_OUTLINE, (x - 2, y - 2), Image.fromarray(np.where(around, 255, 0).astype(np.uint8)))


def _outline(cover: Array, thickness: int) -> Array:
    """Pixels outside `cover` (h, w) and at most `thickness` away from it, (h + 2 thickness, w + 2 thickness)."""
    padded = np.pad(cover, 2 * thickness)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * thickness + 1, 2 * thickness + 1))
    return np.asarray(windows.any((-1, -2)) & ~np.pad(cover, thickness))


def _draw_timeline(draw: ImageDraw.ImageDraw, size: tuple[int, int], frame: int, comparison: Comparison) -> None:
    """A box a frame at the bottom: attacked frames in the colour of the outline, the present one filled."""
    y = size[1] - _MARGIN - _LINE + 6
    text = f"t={frame}"
    draw.text((_MARGIN, y - 5), text, fill=_INK, font=_font(False))
    left = _MARGIN + _text_width(f"t={comparison.frames - 1}", False) + _GAP
    step = (size[0] - _MARGIN - left) / comparison.frames
    for t in range(comparison.frames):
        colour = _OUTLINE if comparison.cover[t].any() else _FRAME
        box = (left + t * step + 1, y, left + (t + 1) * step - 1, y + 6)
        draw.rectangle(box, fill=colour if t == frame else _PAPER, outline=colour)
        if t == frame:
            draw.rectangle(box, fill=_INK, outline=colour)


def _labels(comparison: Comparison) -> list[list[tuple[str, bool]]]:
    """Up to three lines beside each row: a name (True: set large) and what there is to say."""
    low, high = comparison.domain
    in_colour = comparison.clean.shape[0] == 3
    whole_range = (high - low) / (2 if in_colour else 1)  # half of it on either side of grey
    gain = whole_range / comparison.change if comparison.change > 0 else 1.0
    meaning = "around grey" if in_colour else "red up, blue down"
    says = [("clean", comparison.clean_says), ("attacked", comparison.attacked_says)]
    says.append(("difference", f"amplified {gain:.3g}x, {meaning}"))
    return [[(name, True), *((line.strip(), False) for line in text.split(",", 1))] for name, text in says]


def _font(strong: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14 if strong else 12)


def _text_width(text: str, strong: bool) -> int:
    return int(_font(strong).getlength(text)) + 1


def _sheet(pictures: list[Image.Image], most: int = 16) -> Image.Image:
    """Some of the pictures below each other, for a palette that serves all."""
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
