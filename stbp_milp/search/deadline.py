"""The deadline that is passed through a run; no other time limits exist."""

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
        """Returns this deadline, or the one `seconds` from now if that is sooner."""
        now = time.monotonic()
        return Deadline(now, min(self.end, now + seconds))

    def before(self, seconds: float) -> Deadline:
        """Returns a deadline that is earlier by so many seconds, which leaves time for the work after a step."""
        return replace(self, end=self.end - seconds)

    def remaining(self) -> float:
        """Returns the seconds left, never negative."""
        return max(0.0, self.end - time.monotonic())

    def elapsed(self) -> float:
        """Returns the seconds since the start."""
        return time.monotonic() - self.start

    def expired(self) -> bool:
        return time.monotonic() >= self.end
