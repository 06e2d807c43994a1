"""The command line: `python scripts/verify_complete.py`, or `stbp-milp` where the package is installed."""

from stbp_milp.cli.command import main

__all__ = ["main"]
