"""Limits of memory that hold, and what running out of it looks like."""

from __future__ import annotations

import resource

import numpy as np
import pytest
import torch

from stbp_milp.memory import held_below, is_exhaustion, resident

ROOM, TOO_MUCH = 256 << 20, 1 << 30


def test_what_does_not_fit_is_refused_until_the_limit_is_lifted() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with held_below(resident() + ROOM):
        torch.ones(ROOM // 8, dtype=torch.uint8)
        with pytest.raises(RuntimeError) as refused:
            torch.ones(TOO_MUCH, dtype=torch.uint8)
        assert is_exhaustion(refused.value)
        with pytest.raises(MemoryError):
            np.ones(TOO_MUCH, dtype=np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert len(torch.ones(TOO_MUCH, dtype=torch.uint8)) == TOO_MUCH


def test_a_limit_below_what_is_held_refuses_everything_large() -> None:
    with held_below(1), pytest.raises((RuntimeError, MemoryError)):
        torch.ones(TOO_MUCH, dtype=torch.uint8)


def test_no_limit_changes_nothing() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with held_below(None):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_resident_does_not_count_what_is_freed() -> None:
    before = resident()
    kept = torch.ones(TOO_MUCH, dtype=torch.uint8)
    assert resident() - before > 0.9 * TOO_MUCH
    del kept
    assert resident() - before < 0.1 * TOO_MUCH
