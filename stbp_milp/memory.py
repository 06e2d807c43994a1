"""How much memory there is to plan with, how a limit is kept, and what running out of it looks like."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch

try:
    import resource
except ImportError:  # Windows: limits are planned by, and not enforced
    resource = None  # type: ignore[assignment]

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


@contextmanager
def held_below(limit: int | None) -> Iterator[None]:
    """Within: this process holds at most about `limit` bytes, all that it held before included; None: no limit.

    What does not fit fails to be allocated: `is_exhaustion` knows the errors. On Linux this limits the process's data
    (RLIMIT_DATA) to what they are now and what the limit leaves; the limit that was there before comes back.
    """
    data = _data() if limit is not None and resource is not None else None
    if limit is None or data is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = data + max(0, limit - resident())
    hard = before[1]
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _data() -> int | None:
    """Bytes that RLIMIT_DATA counts for this process; None where the system does not say."""
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return None


def is_exhaustion(error: BaseException) -> bool:
    """Does the error say that memory ran out? (What torch raises on CPUs is a plain RuntimeError.)"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)
