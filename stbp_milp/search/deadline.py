"""One deadline travels through a run; nothing else keeps time limits."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Deadline:
    """A point in time, in seconds of the monotonic clock."""

    start: float
    end: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        now = time.monotonic()
        return cls(now, now + seconds)

    def within(self, seconds: float) -> Deadline:
        """This deadline, or `seconds` from now if that is sooner."""
        now = time.monotonic()
        return Deadline(now, min(self.end, now + seconds))

    def before(self, seconds: float) -> Deadline:
        """So many seconds earlier, for what has to be done after a step that this ends."""
        return replace(self, end=self.end - seconds)

    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.end - time.monotonic())

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def expired(self) -> bool:
        return time.monotonic() >= self.end
