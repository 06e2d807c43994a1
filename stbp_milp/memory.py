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

_ENFORCED = 1.08  # of a limit: what is reserved and not used counts as held
_LEAST = 16 << 20  # bytes more than now, to end in order where the limit is exceeded already
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
    """Within: this process holds at most `limit` bytes and 8%, all that it held before included; None: no limit.

    What does not fit fails to be allocated: `is_exhaustion` knows the errors. On Linux the process's data (RLIMIT_DATA)
    are limited to what files mapped into memory leave of it; what is reserved and not used yet counts. The limit that
    was there before comes back at the end.
    """
    held = _held() if limit is not None and resource is not None else None
    if limit is None or held is None:
        yield
        return
    mapped, data = held
    before = resource.getrlimit(resource.RLIMIT_DATA)
    soft, hard = max(int(_ENFORCED * limit) - mapped, data + _LEAST), before[1]
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _held() -> tuple[int, int] | None:
    """Bytes of files, programs above all, that this process holds in memory, and those that RLIMIT_DATA counts.

    None where the system does not say.
    """
    found: dict[str, int] = {}
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in ("RssFile", "VmData"):
                found[name] = int(value.split()[0]) << 10
    return (found["RssFile"], found["VmData"]) if len(found) == 2 else None


def is_exhaustion(error: BaseException) -> bool:
    """Does the error say that memory ran out? (What torch raises on CPUs is a plain RuntimeError.)"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _EXHAUSTED)
