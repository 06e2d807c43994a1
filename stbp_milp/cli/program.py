"""The program `stbp-milp`: a group of subcommands, each of which is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from stbp_milp.cli import shared


class _Program(click.Group):
    """The subcommand `name` is `command` in `stbp_milp.cli.name`, which imports nothing heavy either."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(shared.SCRIPTS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in shared.SCRIPTS:
            return None
        found: Any = import_module(f"stbp_milp.cli.{cmd_name}")
        command: click.Command = found.command
        return command

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(
            f"'{ctx.command_path} COMMAND --help' explains the options of a command and gives examples."
        )
        shared.write_exit_codes(formatter, {})


@click.group("stbp-milp", cls=_Program, context_settings=shared.CONTEXT)
@shared.version
@shared.help_
def command() -> None:
    """Complete verification of video and volume networks.

    It decides whether a 3D convolutional network keeps its answer under every change that an attacker could make to a
    clip, a short video or a volume.
    """


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the command line `arguments` (by default the process's) and return the exit code that `--help` explains."""
    return shared.run(command, arguments, program)
