"""How much memory a run may plan with, how a limit is enforced, and how to tell that memory ran out."""

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
_SHARE = 0.7  # the share of the free memory that a run may plan with
_STATM = Path("/proc/self/statm")  # Linux: it is read in a microsecond, so it can be read before every operation

_PAGE = mmap.PAGESIZE

_limits: list[int] = []  # the limits of this process, the innermost last; see `limited`


def affordable(device: torch.device) -> int:
    """Returns the bytes that a run on the device may plan with by default: 70% of what is free there now."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(_SHARE * free)


def trim() -> None:
    """Returns freed memory that the C library has kept to the system (glibc only; elsewhere it does nothing)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Returns the bytes of memory that this process holds now (its resident set), without what it has freed."""
    trim()
    return _held()


def _held() -> int:
    with suppress(OSError):
        return int(_STATM.read_bytes().split()[1]) * _PAGE
    return int(psutil.Process().memory_info().rss)


@contextmanager
def limited(limit: int | None) -> Iterator[None]:
    """Limits this process to `limit` bytes inside the block, as checked by `ask_memory`; None: no limit."""
    if limit is None:
        yield
        return
    _limits.append(limit)
    try:
        yield
    finally:
        _limits.pop()


def room() -> float:
    """Returns the bytes that this process may take beyond what it holds; infinite without a limit."""
    return _limits[-1] - resident() if _limits else math.inf


def ask_memory(more: float = 0) -> None:
    """Checks the limit before an operation that needs `more` bytes.

    Raises:
        MemoryError: the process would hold more than its limit.
    """
    if _limits and _held() + more > _limits[-1] and more > room():
        raise MemoryError(f"the process may hold {_limits[-1]:,} bytes, and needs more")


def is_exhaustion(error: BaseException) -> bool:
    """Does the error say that memory ran out? (On CPUs torch raises a plain RuntimeError.)"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)
