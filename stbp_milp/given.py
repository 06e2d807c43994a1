"""What a program hands to `verify_clip`: what is unambiguous is accepted, the rest refused in a sentence."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stbp_milp.errors import InputError
from stbp_milp.inputs import bytes_as_floats, parse_domain, parse_epsilon


def clip_values(clip: Tensor | np.ndarray, in_domain: bool) -> Tensor:
    """The values in float64; uint8 is divided by 255 unless they are `in_domain`, as in `read_clip`.

    Raises:
        InputError: neither floats nor uint8, or not finite, or values that float32 cannot hold.
    """
    if isinstance(clip, Tensor):
        clip = clip.detach().cpu().to_dense()
        clip = clip.to(torch.float32) if clip.dtype in (torch.float16, torch.bfloat16) else clip
        clip = clip.numpy()
    try:
        values = np.ascontiguousarray(clip)  # torch takes no negative strides
    except ValueError as error:
        raise InputError(f"the clip is no array ({error}); expected floats in the data domain, or uint8") from error
    if values.dtype == np.uint8:
        return torch.from_numpy(bytes_as_floats(values, in_domain)).to(torch.float64)
    if values.dtype not in (np.float32, np.float64, np.float16):
        raise InputError(f"the clip is of type {values.dtype}; expected floats in the data domain, or uint8")
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise InputError(f"the clip holds {wrong} values that are NaN or infinite; expected finite numbers")
    with np.errstate(over="ignore"):
        held = np.array_equal(values, values.astype(np.float32))
    if not held:
        raise InputError(
            "the clip holds values that float32 cannot hold, so the model would be given other ones; round it first, "
            "as with clip.astype(numpy.float32)"
        )
    return torch.from_numpy(values.astype(np.float64))


def source(model: nn.Module | str | Path) -> nn.Module | str | Path:
    """Raises:
    InputError: neither a module nor a path.
    """
    if not isinstance(model, nn.Module | str | Path):
        raise InputError(f"the model is a {type(model).__name__}; expected a torch module, or the path of an ONNX file")
    return model


def words(text: str) -> str:
    """Raises:
    InputError: a set that is no text.
    """
    if not isinstance(text, str):
        raise InputError(f"set is {text!r}; expected words, such as 'window:2'")
    return text


def radius(epsilon: float | str) -> float:
    """A number, or one in words such as "4/255".

    Raises:
        InputError: neither, or not finite.
    """
    value = parse_epsilon(epsilon) if isinstance(epsilon, str) else number("epsilon", epsilon, "words such as '4/255'")
    if not math.isfinite(value):
        raise InputError(f"epsilon is {epsilon!r}; expected a finite radius")
    return value


def number(name: str, value: Any, otherwise: str = "nothing") -> float:
    """Any number as a float.

    Raises:
        InputError: text, no number, or too large.
    """
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{name} is {value!r}; expected a number, or {otherwise}") from error


def whole(name: str, value: Any, meaning: str) -> int:
    """A whole number, of any integer type or in digits.

    Raises:
        InputError: another type, or no such number.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(int(value) if isinstance(value, str) else value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {value!r}; expected {meaning}") from error


def interval(domain: Sequence[float] | str) -> tuple[float, float]:
    """The smallest and the largest value of the data, or both in words, such as "0,255".

    Raises:
        InputError: not two finite numbers, of which the first is smaller.
    """
    if isinstance(domain, str):
        return parse_domain(domain)
    try:
        low, high = (number("domain", side, "two of them") for side in domain)
    except (TypeError, ValueError) as error:
        raise InputError(f"domain is {domain!r}; expected the smallest and the largest value of the data") from error
    if not -math.inf < low < high < math.inf:
        raise InputError(f"domain is {domain!r}; expected two finite numbers, the smaller one first")
    return low, high
