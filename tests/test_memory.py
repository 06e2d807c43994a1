"""What a process holds."""

from __future__ import annotations

import math

import pytest
import torch

from stbp_milp.bounds.interrupt import interruptible
from stbp_milp.memory import ask_memory, is_exhaustion, limited, resident, room

TOO_MUCH = 256 << 20


def test_resident_does_not_count_what_is_freed() -> None:
    before = resident()
    kept = torch.ones(TOO_MUCH, dtype=torch.uint8)
    assert resident() - before > 0.9 * TOO_MUCH
    del kept
    assert resident() - before < 0.1 * TOO_MUCH


def test_no_operation_begins_once_the_process_holds_its_limit() -> None:
    with limited(resident() + TOO_MUCH // 2), interruptible(lambda: False):
        assert 0 < room() < TOO_MUCH
        ask_memory(TOO_MUCH // 4)
        with pytest.raises(MemoryError, match="the process may hold") as caught:
            ask_memory(TOO_MUCH)
        assert is_exhaustion(caught.value)
        kept = torch.ones(TOO_MUCH, dtype=torch.uint8)
        with pytest.raises(MemoryError):
            torch.ones(1)
        del kept
        torch.ones(1)  # there is room again
    ask_memory(1 << 60)
    assert room() == math.inf


def test_the_innermost_limit_holds() -> None:
    with limited(1 << 60):
        with limited(1), pytest.raises(MemoryError):
            ask_memory()
        with limited(None):
            assert room() > 1 << 50
