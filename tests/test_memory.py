"""What a process holds."""

from __future__ import annotations

import torch

from stbp_milp.memory import resident

TOO_MUCH = 256 << 20


def test_resident_does_not_count_what_is_freed() -> None:
    before = resident()
    kept = torch.ones(TOO_MUCH, dtype=torch.uint8)
    assert resident() - before > 0.9 * TOO_MUCH
    del kept
    assert resident() - before < 0.1 * TOO_MUCH
