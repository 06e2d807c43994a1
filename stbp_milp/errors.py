"""The errors that users see: every message says what arrived, what was expected and what to do."""

from typing import Any

_CONTRADICTION = 1e-5  # relative: a proved bound may exceed an observed margin by no more than this


class StbpError(Exception):
    """The base class of every error that this package raises on purpose."""


class InputError(StbpError, ValueError):
    """The user's model, clip, set or option cannot be used as given (command line: exit code 2)."""


class UnsupportedLayerError(InputError):
    """The model holds an operator that no bounding rule exists for."""


class InternalError(StbpError, RuntimeError):
    """A fault of this package's own code (command line: exit code 70).

    Attributes:
        outcome: what the run knew when the fault occurred: an `Outcome` whose verdict is unknown, or falsified if a
            counterexample had already been found; None if the run had not begun.
    """

    def __init__(self, message: str, outcome: Any = None) -> None:
        super().__init__(message)
        self.outcome = outcome


class OutOfTimeError(StbpError):
    """A step was abandoned because time ran out. What was known before it still holds; it never leaves `verify`."""


class SoundnessError(StbpError, AssertionError):
    """Two methods contradict each other; the run must stop (command line: exit code 4)."""


def contradict(lower: float, seen: float) -> bool:
    """Does a proved lower bound of a margin exceed an observed margin by more than rounding can explain?"""
    return lower > seen + _CONTRADICTION * (1 + abs(seen))
