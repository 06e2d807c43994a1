"""What all subcommands have in common: options, exit codes, the layout of `--help`, and how a run ends."""

from __future__ import annotations

import inspect
import logging
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from click.exceptions import NoArgsIsHelpError

from stbp_milp.errors import InputError, SoundnessError, StbpError
from stbp_milp.versions import VERSION

SCRIPTS = {
    "verify": "verify_complete.py",
    "batch": "run_batch.py",
    "report": "make_report.py",
    "bench": "make_st_bench.py",
    "tightness": "tightness_study.py",
}
"""The subcommands of `stbp-milp`, and the script that runs each of them alone."""

CONTEXT = {"max_content_width": 100}  # of every command, so that examples stay on their lines
_GIVEN = "stbp_milp.arguments"  # of a subcommand, in the context's meta

logger = logging.getLogger(__name__)


class Exit(IntEnum):
    """How a command ends; `--help` says in words what each code means."""

    DONE = 0
    FALSIFIED = 1
    BAD_INPUT = 2
    OPEN = 3
    CONTRADICTION = 4
    INTERNAL_ERROR = 70
    INTERRUPTED = 130
    BROKEN_PIPE = 141


_MEANINGS: Mapping[int, str] = {
    Exit.DONE: "The command did what it was asked to do.",
    Exit.BAD_INPUT: "The input cannot be used. One sentence on stderr says why and what to do.",
    Exit.CONTRADICTION: "Two methods contradict each other. This is a bug; please report it.",
    Exit.INTERNAL_ERROR: "Any other error in the program.",
    Exit.INTERRUPTED: "The command was interrupted by Ctrl-C.",
    Exit.BROKEN_PIPE: "The reader of the output, for example head, closed it before everything was written.",
}


def write_exit_codes(formatter: click.HelpFormatter, own: Mapping[int, str]) -> None:
    """The last section of every `--help`; `own` are the codes that mean something particular in a command."""
    with formatter.section("Exit codes"):
        formatter.write_dl([(f"{code:d}", text) for code, text in sorted({**_MEANINGS, **own}.items())])


class Subcommand(click.Command):
    """A command that also runs alone, as a script; its help names commands the way they are called.

    Args:
        exit_codes: what these codes mean in this command, where that is more than `_MEANINGS` says.
    """

    def __init__(self, *args: Any, exit_codes: Mapping[int, str], **given: Any) -> None:
        super().__init__(*args, **{"context_settings": CONTEXT, **given})
        self._exit_codes = exit_codes

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_GIVEN] = list(args)
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help, in which `{batch}` and the like stand for the way to call that subcommand."""
        formatter.write_paragraph()
        with formatter.indentation():
            text = inspect.cleandoc(self.help or "")
            formatter.write_text(text.format_map({name: called(name) for name in SCRIPTS}))

    def get_short_help_str(self, limit: int = 45) -> str:
        """The first line of the help, whole: click would cut it to the width of the terminal."""
        return inspect.cleandoc(self.help or "").partition("\n")[0]

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_exit_codes(formatter, self._exit_codes)


def called(name: str) -> str:
    """How the user of this process calls the subcommand `name`: `stbp-milp verify`, or the script."""
    context = click.get_current_context()
    if context.parent is not None:
        return f"{context.parent.command_path} {name}"
    return shlex.join(["python", str(Path(sys.argv[0]).with_name(SCRIPTS[name]))])


def command_line() -> str:
    """The command line of the subcommand that runs."""
    context = click.get_current_context()
    return f"{called(str(context.command.name))} {shlex.join(context.meta[_GIVEN])}".rstrip()


def run(command: click.Command, arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run `command` and return its exit code; of a failure, stderr says one sentence.

    Args:
        arguments: by default the process's.
        program: what the help calls the command; by default the name of the process's file.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        # Not command.main: it answers Ctrl-C and a closed stdout itself, the latter with 1, which means "falsified".
        with command.make_context(program or Path(sys.argv[0]).name, given) as context:
            return int(command.invoke(context) or Exit.DONE)
    except click.exceptions.Exit as answered:  # --help and --version
        return answered.exit_code
    except NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return Exit.BAD_INPUT
    except click.ClickException as error:
        return _fail(f"{error.format_message().rstrip('.')}; see --help", Exit.BAD_INPUT)
    except InputError as error:
        return _fail(str(error), Exit.BAD_INPUT)
    except SoundnessError as error:
        return _fail(f"internal contradiction: {error}; no verdict is given, please report this", Exit.CONTRADICTION)
    except StbpError as error:
        return _fail(str(error), Exit.INTERNAL_ERROR)
    except KeyboardInterrupt:
        return _fail("interrupted", Exit.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left (as `| head` does); python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except Exception as error:
        # Python's own exit code after an exception is 1, which means "falsified" here.
        logger.exception("unexpected error")
        sentence = f"unexpected {type(error).__name__}: {error}; this is a bug, please report it"
        return _fail(sentence, Exit.INTERNAL_ERROR)


def _fail(message: str, code: Exit) -> Exit:
    click.echo("error: " + " ".join(message.split()), err=True)
    return code


def interrupt_on_sigterm() -> None:
    """SIGTERM ends a long run as Ctrl-C does: what runs is stopped in order."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


class Positive(click.ParamType[float]):
    """A finite number above 0; click's own ranges let NaN pass."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = click.FLOAT.convert(value, param, ctx)
        if not 0 < number < math.inf:
            self.fail(f"{value!r} is not a finite number above 0.", param, ctx)
        return number


class _File(click.Path):
    """A path that is not empty: '' would be the working directory, which nobody means."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty; name a file or a folder", param, ctx)
        return super().convert(value, param, ctx)


FILE = _File(path_type=Path)
COUNT = click.IntRange(min=1)
POSITIVE = Positive()

_SEEDS = click.IntRange(min=0, max=2**31 - 1)  # what SCIP takes
_SOLVERS = click.Choice(["auto", "scip", "gurobi", "highs", "none"])
_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])

solver = click.option(
    "--solver",
    type=_SOLVERS,
    default="auto",
    show_default=True,
    help="The MILP solver. With 'none', bounds and branch and bound have to decide alone.",
)
seed = click.option(
    "--seed", type=_SEEDS, default=0, show_default=True, metavar="N", help="The seed of all random choices."
)
threads = click.option(
    "--threads",
    type=COUNT,
    default=1,
    show_default=True,
    metavar="N",
    help="The number of threads of each process, for torch and the solvers.",
)
memory_of_a_process = click.option(
    "--memory",
    default="4G",
    show_default=True,
    metavar="SIZE",
    help="The memory limit of each process together with its descendants, for example 512M. A process that "
    "exceeds it is killed.",
)
version = click.version_option(VERSION, prog_name="stbp-milp", message="%(prog)s %(version)s")
help_ = click.help_option("--help", "-h")


def usual(command: _Decorated) -> _Decorated:
    """The options that every subcommand has, to be applied first, so that `--help` lists them last."""
    verbose = click.option("--verbose", "-v", count=True, help="Log progress to stderr; -vv logs every detail.")
    return verbose(version(help_(command)))
