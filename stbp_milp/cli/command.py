"""From arguments to an exit code: runs what was asked for and turns every failure into one clear sentence."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import click
from rich.console import Console
from rich.logging import RichHandler

from stbp_milp.cli.arguments import VerifyOptions, parse
from stbp_milp.cli.screen import Screen
from stbp_milp.errors import InputError, SoundnessError, StbpError

BAD_INPUT, CONTRADICTION, INTERNAL_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 4, 70, 130, 141

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (by default the process's) and return the exit code that `--help` explains."""

    def verify() -> int:
        options = parse(arguments)
        return 0 if options is None else _run(options, sys.argv[1:] if arguments is None else arguments)

    return guarded(verify)


def guarded(action: Callable[[], int]) -> int:
    """The exit code of `action`, and of its failures, of which stderr says one sentence."""
    try:
        return action()
    except InputError as error:
        return _fail(str(error), BAD_INPUT)
    except SoundnessError as error:
        return _fail(f"internal contradiction: {error}; no verdict is given, please report this", CONTRADICTION)
    except StbpError as error:
        return _fail(str(error), INTERNAL_ERROR)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left (as `| head` does); python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        # Python's own exit code after an exception is 1, which means "falsified" here.
        logger.exception("unexpected error")
        return _fail(f"unexpected {type(error).__name__}: {error}; this is a bug, please report it", INTERNAL_ERROR)


def _run(options: VerifyOptions, arguments: Sequence[str]) -> int:
    screen = Screen.of(options)
    configure_logging(options.verbose, screen.errors)
    # Importing torch takes seconds: --help and mistyped options need not wait for it.
    from stbp_milp.cli import one_clip, shipped

    run = shipped.run if options.model is None else one_clip.run
    return run(options, arguments, screen)


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


def interrupt_on_sigterm() -> None:
    """SIGTERM ends a long run as Ctrl-C does: what runs is stopped in order."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _fail(message: str, code: int) -> int:
    click.echo("error: " + " ".join(message.split()), err=True)
    return code
