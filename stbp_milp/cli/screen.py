"""Where words go: results to stdout, the live line and the log to stderr."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Self

from rich.console import Console, RenderableType
from rich.logging import RichHandler

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
    def of(cls, *, quiet: bool, as_json: bool) -> Self:
        errors = console(stderr=True)
        return cls(errors if as_json else console(stderr=False), errors, quiet, as_json)

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


def configure_logging(verbose: int, errors: Console) -> None:
    """Warnings to stderr, more with -v; on a terminal through rich, which keeps the live line apart."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler: logging.Handler = logging.StreamHandler()
    layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    if errors.is_terminal:
        handler, layout = RichHandler(console=errors, show_path=False), "%(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=layout, datefmt="%H:%M:%S", handlers=[handler], force=True)
    for ours in ("stbp_milp", "solvers"):
        logging.getLogger(ours).setLevel(level)
