"""What can go wrong, told to the user: every message says what arrived, what was expected, what to do."""

from typing import Any

_CONTRADICTION = 1e-5  # a proved bound may not exceed a margin seen by more than this


class StbpError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(StbpError, ValueError):
    """The user's model, clip, set or option cannot be used as given (command line: exit code 2)."""


class UnsupportedLayerError(InputError):
    """The model holds an operator that no bounding rule exists for."""


class InternalError(StbpError, RuntimeError):
    """A fault of this package's own code (command line: exit code 70).

    Attributes:
        outcome: what the run knew when it happened, an `Outcome` without a verdict, or with the counterexample that
            it had found already; None where the run had not begun.
    """

    def __init__(self, message: str, outcome: Any = None) -> None:
        super().__init__(message)
        self.outcome = outcome


class OutOfTimeError(StbpError):
    """A step was left because the time is over: no failure, what was known before it holds. Never leaves `verify`."""


class SoundnessError(StbpError, AssertionError):
    """Two methods contradict each other; the run must stop (command line: exit code 4)."""


def contradict(lower: float, seen: float) -> bool:
    """Does a proved lower bound of a margin exceed one that was seen, by more than rounding explains?"""
    return lower > seen + _CONTRADICTION * (1 + abs(seen))
