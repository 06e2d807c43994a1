"""Where tensors are computed: the device that the user names, and what it must not do with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stbp_milp.errors import InputError


def named_device(text: str) -> torch.device:
    """The device "cpu", "cuda" or "cuda:1".

    Raises:
        InputError: another word, or this machine or this build of torch has no such device.
    """
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise InputError(f"device {text!r} is not known; give cpu, cuda or, of several cards, one such as cuda:1")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise InputError(
            f"device {text!r} is not available: torch {torch.__version__} finds {cards or 'no'} CUDA cards "
            "(counted from cuda:0) on this machine; give one of those or cpu"
        )
    return device


@contextmanager
def exact_products() -> Iterator[None]:
    """Without TF32, which rounds the factors of products in float32 to 10 bits on CUDA cards."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
