"""How much memory there is to plan with, how a limit is kept, and what running out of it looks like."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch

_EXHAUSTED = ("allocate memory", "bad_alloc", "could not create a primitive")  # torch, C++, oneDNN
_SHARE = 0.7  # of the free memory that a run may plan with
_STATM = Path("/proc/self/statm")  # Linux: read in a microsecond, so that it can be asked before every operation

_PAGE = mmap.PAGESIZE

_limits: list[int] = []  # of this process, the innermost last, see `limited`


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
    return _held()


def _held() -> int:
    with suppress(OSError):
        return int(_STATM.read_bytes().split()[1]) * _PAGE
    return int(psutil.Process().memory_info().rss)


@contextmanager
def limited(limit: int | None) -> Iterator[None]:
    """Within: `ask_memory` knows that this process may hold so many bytes; None: as many as there are."""
    if limit is None:
        yield
        return
    _limits.append(limit)
    try:
        yield
    finally:
        _limits.pop()


def room() -> float:
    """Bytes that this process may take, beyond what it holds; infinite without a limit."""
    return _limits[-1] - resident() if _limits else math.inf


def ask_memory(more: float = 0) -> None:
    """Before something that takes so many bytes more.

    Raises:
        MemoryError: the process would hold more than its limit.
    """
    if _limits and _held() + more > _limits[-1] and more > room():
        raise MemoryError(f"the process may hold {_limits[-1]:,} bytes, and needs more")


def is_exhaustion(error: BaseException) -> bool:
    """Does the error say that memory ran out? (What torch raises on CPUs is a plain RuntimeError.)"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)
