"""Where words go: results to stdout, the live line and the log to stderr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from rich.console import Console, RenderableType

from stbp_milp.cli.arguments import VerifyOptions

_PIPED_WIDTH = 110  # rich assumes 80 where there is no terminal


@dataclass(frozen=True)
class Screen:
    """The two consoles, and how much to say.

    Attributes:
        results: for people; stderr where stdout belongs to JSON.
        errors: stderr.
        quiet: say the verdict only.
    """

    results: Console
    errors: Console
    quiet: bool
    as_json: bool

    @classmethod
    def of(cls, options: VerifyOptions) -> Self:
        errors = console(stderr=True)
        return cls(errors if options.as_json else console(stderr=False), errors, options.quiet, options.as_json)

    def say(self, *parts: RenderableType) -> None:
        """Print what only people read, unless they asked for quiet."""
        if not self.quiet:
            for part in parts:
                self.results.print(part)


def console(*, stderr: bool) -> Console:
    """One of the two."""
    found = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    return (
        found
        if found.is_terminal
        else Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=_PIPED_WIDTH)
    )
