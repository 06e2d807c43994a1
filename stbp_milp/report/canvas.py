"""Drawing of clips: colours, scaling, outlines and text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[Any]
Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 32, 38)
PALE_INK: Colour = (110, 116, 124)
FRAME: Colour = (205, 209, 214)
OUTLINE: Colour = (255, 106, 0)
_NEGATIVE: Colour = (33, 102, 172)
_POSITIVE: Colour = (178, 24, 43)
_NEUTRAL: Colour = (244, 244, 244)


def colours(clip: Array) -> Array:
    """Converts values in [0, 1] `(C, T, H, W)` to uint8 colours `(T, H, W, 3)`; unless C is 3, channel 0 in grey."""
    channels = clip if clip.shape[0] == 3 else np.repeat(clip[:1], 3, axis=0)
    levels: Array = (channels.transpose(1, 2, 3, 0).clip(0, 1) * 255).round()
    return levels.astype(np.uint8)


def difference(delta: Array, largest: float) -> Array:
    """Converts a signed change `(C, T, H, W)` to colours: 3 channels around grey, else blue over white to red."""
    scaled = delta / largest if largest > 0 else delta
    if delta.shape[0] == 3:
        return colours((scaled + 1) / 2)
    amount = scaled[0][..., None]
    end = np.where(amount > 0, np.array(_POSITIVE), np.array(_NEGATIVE))
    mixed: Array = np.array(_NEUTRAL) + np.abs(amount) * (end - np.array(_NEUTRAL))
    return np.asarray(mixed.clip(0, 255).round().astype(np.uint8))


def _scale(height: int, width: int, cell: int) -> tuple[int, int]:
    """Returns how often a pixel is repeated, and the step with which pixels are thinned out."""
    longest = max(height, width)
    return (max(1, cell // longest), 1) if longest <= cell else (1, -(-longest // cell))


def resized(image: Array, cell: int) -> Array:
    """Scales an image (H, W, 3) uint8 to at most `cell` pixels per side: small ones repeat pixels, others average."""
    repeat, step = _scale(image.shape[0], image.shape[1], cell)
    if step > 1:
        return np.asarray(Image.fromarray(image).reduce(step))
    return _repeated(image, repeat)


def _repeated(image: Array, times: int) -> Array:
    repeated: Array = image.repeat(times, 0).repeat(times, 1)
    return repeated


def shrunk(cover: Array, cell: int) -> Array:
    """Resizes a cover (H, W) bool like its frame: a thinned pixel is covered if any of its original pixels is."""
    repeat, step = _scale(cover.shape[0], cover.shape[1], cell)
    if step == 1:
        return _repeated(cover, repeat)
    padded = np.pad(cover, [(0, -side % step) for side in cover.shape])
    blocks = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step)
    return np.asarray(blocks.any((1, 3)))


def paste_cell(picture: Image.Image, image: Array, cover: Array, place: tuple[int, int]) -> None:
    """Pastes one frame with a thin border, and draws the outline of its cover just outside the cover."""
    x, y = place
    height, width = cover.shape
    ImageDraw.Draw(picture).rectangle((x - 1, y - 1, x + width, y + height), outline=FRAME)
    picture.paste(Image.fromarray(np.ascontiguousarray(image)), place)
    if cover.any():
        around = _outline(cover, 2)
        picture.paste(OUTLINE, (x - 2, y - 2), Image.fromarray(np.where(around, 255, 0).astype(np.uint8)))


def _outline(cover: Array, thickness: int) -> Array:
    """Returns the pixels outside `cover` (h, w) at a distance of at most `thickness`, padded by it on every side."""
    padded = np.pad(cover, 2 * thickness)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * thickness + 1, 2 * thickness + 1))
    return np.asarray(windows.any((-1, -2)) & ~np.pad(cover, thickness))


def font(strong: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=14 if strong else 12)


def text_width(text: str, strong: bool) -> int:
    return int(font(strong).getlength(text)) + 1
