"""The arguments of `query_about`: unambiguous values are accepted, all others are refused with an explanation."""

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
    """Returns the clip's values in float64; uint8 is divided by 255 unless it is `in_domain`, as in `read_clip`.

    Raises:
        InputError: the values are neither floats nor uint8, are not finite, or cannot be held by float32.
    """
    if isinstance(clip, Tensor):
        clip = clip.detach().cpu().to_dense()
        clip = clip.to(torch.float32) if clip.dtype in (torch.float16, torch.bfloat16) else clip
        clip = clip.numpy()
    try:
        values = np.ascontiguousarray(clip)  # torch takes no negative strides
    except ValueError as error:
        raise InputError(f"the clip is not an array ({error}); expected floats in the data domain, or uint8") from error
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
            "the clip holds values that float32 cannot hold, so the model would see other values; round it first, "
            "for example with clip.astype(numpy.float32)"
        )
    return torch.from_numpy(values.astype(np.float64))


def source(model: nn.Module | str | Path) -> nn.Module | str | Path:
    """Returns the model as it is.

    Raises:
        InputError: it is neither a module nor a path.
    """
    if not isinstance(model, nn.Module | str | Path):
        raise InputError(f"the model is a {type(model).__name__}; expected a torch module or the path of an ONNX file")
    return model


def words(text: str) -> str:
    """Returns the description of a set as it is.

    Raises:
        InputError: it is not text.
    """
    if not isinstance(text, str):
        raise InputError(f"set is {text!r}; expected words such as 'window:2'")
    return text


def radius(epsilon: float | str) -> float:
    """Returns the radius, given as a number or as text such as "4/255".

    Raises:
        InputError: it is neither, or it is not finite.
    """
    value = parse_epsilon(epsilon) if isinstance(epsilon, str) else number("epsilon", epsilon, "text such as '4/255'")
    if not math.isfinite(value):
        raise InputError(f"epsilon is {epsilon!r}; expected a finite radius")
    return value


def number(name: str, value: Any, otherwise: str = "nothing") -> float:
    """Returns any kind of number as a float.

    Args:
        name: what the number is, for the error message.
        otherwise: what else the caller accepts, for the error message.

    Raises:
        InputError: it is text or not a number, or it is too large for a float.
    """
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputError(f"{name} is {value!r}; expected a number, or {otherwise}") from error


def whole(name: str, value: Any, meaning: str) -> int:
    """Returns a whole number, given as any integer type or as digits.

    Raises:
        InputError: it is neither.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(int(value) if isinstance(value, str) else value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is {value!r}; expected {meaning}") from error


def interval(domain: Sequence[float] | str) -> tuple[float, float]:
    """Returns the smallest and the largest value of the data, given as two numbers or as text such as "0,255".

    Raises:
        InputError: it is not two finite numbers with the smaller one first.
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
