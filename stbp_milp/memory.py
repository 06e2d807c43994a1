"""How much memory there is to plan with, and what running out of it looks like."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import psutil
import torch

_EXHAUSTED = ("allocate memory", "bad_alloc", "could not create a primitive")  # torch, C++, oneDNN
_SHARE = 0.7  # of the free memory that a run may plan with


def affordable(device: torch.device) -> int:
    """Bytes a run on the device may plan with unless told otherwise: 70% of what is free there now."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(_SHARE * free)


def trim() -> None:
    """Give back to the system what the C library has freed and kept (glibc; elsewhere nothing)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Bytes of memory that this process holds now (its resident set), without what is freed already."""
    trim()
    return int(psutil.Process().memory_info().rss)


def is_exhaustion(error: BaseException) -> bool:
    """Does the error say that memory ran out? (What torch raises on CPUs is a plain RuntimeError.)"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)
