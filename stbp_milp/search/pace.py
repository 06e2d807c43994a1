"""How much to do between two looks at the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_STEP_SECONDS = 1.5  # what one expansion of a batch should not exceed


@dataclass
class Pace:
    """How many pieces to expand at once: more while that is quick, so that the clock is looked at often enough.

    Attributes:
        most: what memory allows.
        batch: how many to expand next.
    """

    most: int
    batch: int = 4

    @contextmanager
    def measured(self, pieces: int) -> Iterator[None]:
        """Around the expansion of so many pieces."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        if seconds > _STEP_SECONDS:
            self.batch = max(1, self.batch // 2)
        elif pieces >= self.batch and 3 * seconds < _STEP_SECONDS:
            self.batch = min(self.most, 2 * self.batch)

    def halve(self) -> None:
        """Memory did not suffice for the last batch: from now on at most half as many."""
        self.batch = self.most = max(1, self.batch // 2)
