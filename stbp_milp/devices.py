"""The device on which tensors are computed, and how it must not round them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stbp_milp.errors import InputError


def named_device(text: str) -> torch.device:
    """Returns the torch device that a name such as "cpu", "cuda" or "cuda:1" stands for.

    Raises:
        InputError: the name is unknown, or this machine or this build of torch has no such device.
    """
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise InputError(f"device {text!r} is not known; give cpu, cuda, or one of several cards such as cuda:1")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise InputError(
            f"device {text!r} is not available: torch {torch.__version__} finds {cards or 'no'} CUDA cards "
            "(counted from cuda:0) on this machine; give one of those or cpu"
        )
    return device


@contextmanager
def exact_products() -> Iterator[None]:
    """Switches off TF32 inside the block; TF32 rounds the factors of float32 products to 10 bits on CUDA cards."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
