"""How much memory there is to plan with, and what running out of it looks like."""

from __future__ import annotations

import psutil
import torch

_SHARE = 0.7  # of the free memory that a run may plan with


def affordable(device: torch.device) -> int:
    """Bytes a run on the device may plan with unless told otherwise: 70% of what is free there now."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(_SHARE * free)


def is_exhaustion(error: BaseException) -> bool:
    """Does the error say that memory ran out? (torch's allocators on CPUs raise a plain RuntimeError.)"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
