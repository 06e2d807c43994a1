"""How much work to do between two checks of the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_STEP_SECONDS = 1.5  # one expansion of a batch should take no longer,
_STEP_SHARE = 0.2  # and no more than this share of the remaining time


@dataclass
class Pace:
    """How many pieces to expand at once: more while expansions are quick, so that the clock is checked often enough.

    Attributes:
        most: the largest number that memory allows.
        batch: the number to expand next.
    """

    most: int
    batch: int = 4

    @contextmanager
    def measured(self, pieces: int, remaining: float = math.inf) -> Iterator[None]:
        """Measures the expansion of so many pieces, with so many seconds left, and adapts the batch."""
        limit = min(_STEP_SECONDS, _STEP_SHARE * remaining)
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        if seconds > limit:
            self.batch = max(1, self.batch // 2)
        elif pieces >= self.batch and 3 * seconds < limit:
            self.batch = min(self.most, 2 * self.batch)

    def halve(self) -> None:
        """Halves the batch and its limit, after memory did not suffice for the last batch."""
        self.batch = self.most = max(1, self.batch // 2)


@dataclass
class Rate:
    """The time per unit of work, measured so far in the run.

    The slower of the mean and the latest rate counts, because optimistic estimates make runs late.
    """

    seconds: float = 0.0
    work: float = 0.0
    latest: float = 0.0

    @contextmanager
    def measured(self, work: float) -> Iterator[None]:
        """Measures so much work; work that is not completed is ignored."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.seconds, self.work, self.latest = self.seconds + seconds, self.work + work, seconds / work

    def expected(self, work: float) -> float:
        """Estimates the seconds that so much work will take; 0 while nothing is known."""
        return work * max(self.seconds / self.work, self.latest) if self.work else 0.0
