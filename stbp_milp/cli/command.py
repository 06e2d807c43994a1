"""From arguments to an exit code: runs what was asked for and turns every failure into one clear sentence."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import click
from rich.logging import RichHandler

from stbp_milp.cli.arguments import Options, parse
from stbp_milp.cli.screen import Screen
from stbp_milp.errors import InputError, SoundnessError

BAD_INPUT, CONTRADICTION, INTERNAL_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 4, 70, 130, 141

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (by default the process's) and return the exit code that `--help` explains."""
    try:
        options = parse(arguments)
        return 0 if options is None else _run(options, sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        return _fail(str(error), BAD_INPUT)
    except SoundnessError as error:
        return _fail(f"internal contradiction: {error}; no verdict is given, please report this", CONTRADICTION)
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


def _run(options: Options, arguments: Sequence[str]) -> int:
    screen = Screen.of(options)
    _configure_logging(options.verbose, screen)
    # Importing torch takes seconds: --help and mistyped options need not wait for it.
    from stbp_milp.cli import one_clip, shipped

    run = shipped.run if options.model is None else one_clip.run
    return run(options, arguments, screen)


def _configure_logging(verbose: int, screen: Screen) -> None:
    """Warnings to stderr, more with -v; on a terminal through rich, which keeps the live line apart."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler: logging.Handler = logging.StreamHandler()
    layout = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    if screen.errors.is_terminal:
        handler, layout = RichHandler(console=screen.errors, show_path=False), "%(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=layout, datefmt="%H:%M:%S", handlers=[handler], force=True)
    for ours in ("stbp_milp", "solvers"):
        logging.getLogger(ours).setLevel(level)


def _fail(message: str, code: int) -> int:
    click.echo("error: " + " ".join(message.split()), err=True)
    return code
