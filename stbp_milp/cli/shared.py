"""Types and options that several commands have; each is applied as `@click.option` is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from stbp_milp.versions import VERSION


class Positive(click.ParamType[float]):
    """A finite number above 0; click's own ranges let NaN pass."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = click.FLOAT.convert(value, param, ctx)
        if not 0 < number < math.inf:
            self.fail(f"{value!r} is not a number above 0.", param, ctx)
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

solver = click.option(
    "--solver", type=_SOLVERS, default="auto", show_default=True, help="MILP solver; none: bounds only."
)
seed = click.option("--seed", type=_SEEDS, default=0, show_default=True, help="Of every random choice.")
verbose = click.option("--verbose", "-v", count=True, help="Log to stderr; twice for details.")
version = click.version_option(VERSION, prog_name="stbp-milp", message="%(prog)s %(version)s")
help_ = click.help_option("--help", "-h")
