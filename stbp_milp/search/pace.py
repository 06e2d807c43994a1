"""How much to do between two looks at the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_STEP_SECONDS = 1.5  # what one expansion of a batch should not exceed
_STEP_SHARE = 0.2  # nor of the time that is left


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
    def measured(self, pieces: int, remaining: float = math.inf) -> Iterator[None]:
        """Around the expansion of so many pieces, with so many seconds left."""
        limit = min(_STEP_SECONDS, _STEP_SHARE * remaining)
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        if seconds > limit:
            self.batch = max(1, self.batch // 2)
        elif pieces >= self.batch and 3 * seconds < limit:
            self.batch = min(self.most, 2 * self.batch)

    def halve(self) -> None:
        """Memory did not suffice for the last batch: from now on at most half as many."""
        self.batch = self.most = max(1, self.batch // 2)


@dataclass
class Rate:
    """Seconds that a unit of work takes, by what it took so far in the run.

    The slower of the mean and the latest counts: plans that were too short are what runs are late by.
    """

    seconds: float = 0.0
    work: float = 0.0
    latest: float = 0.0

    @contextmanager
    def measured(self, work: float) -> Iterator[None]:
        """Around so much work; work that does not come to its end says nothing."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self.seconds, self.work, self.latest = self.seconds + seconds, self.work + work, seconds / work

    def expected(self, work: float) -> float:
        """Seconds that so much work will take; 0 while nothing is known."""
        return work * max(self.seconds / self.work, self.latest) if self.work else 0.0
