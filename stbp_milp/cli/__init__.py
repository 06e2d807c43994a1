"""The command line: the program `stbp-milp`, and the scripts that run one of its subcommands each."""

from stbp_milp.cli.program import main

__all__ = ["main"]
