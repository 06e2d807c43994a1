"""Reader of instance lists in the format of VNN-COMP.

An *instance list* (`instances.csv`) has one line per instance, without a header: a model, a specification and a time
limit in seconds. Paths are relative to the list's folder. `results/README.md` documents the format. Nothing here
imports torch.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from stbp_milp.errors import InputError

VERDICTS = ("verified", "falsified", "unknown")  # the verdicts that a specification may expect


@dataclass(frozen=True)
class ListedInstance:
    """One line of an instance list; its paths can be opened from the working directory.

    Attributes:
        timeout: seconds.
    """

    model: Path
    specification: Path
    timeout: float


def read_instances(path: str | Path) -> list[ListedInstance]:
    """Reads the instances of a list.

    Raises:
        InputError: there is no such file, or some line is not a model, a specification and a number of seconds.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            lines = [(reader.line_num, line) for line in reader if line]
    except FileNotFoundError as error:
        raise InputError(f"there is no file {str(path)!r}; give a list of instances, a CSV file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{str(path)!r} cannot be read as a list of instances ({reason}); give a CSV file") from error
    if not lines:
        raise InputError(f"{str(path)!r} has no instances; expected lines of a model, a specification and seconds")
    return [_instance(path, number, line) for number, line in lines]


def _instance(path: Path, number: int, line: list[str]) -> ListedInstance:
    if any("\0" in cell for cell in line):
        raise InputError(f"line {number} of {str(path)!r} holds a NUL character; save the list again as plain text")
    cells = [cell.strip() for cell in line]
    try:
        model, specification, seconds = cells
        timeout = float(seconds)
    except ValueError:
        timeout, model, specification = math.nan, "", ""
    if not 0 < timeout < math.inf:
        raise InputError(
            f"line {number} of {str(path)!r} is {','.join(line)!r}; expected a model, a specification and seconds"
        )
    return ListedInstance(_file(path.parent / model), _file(path.parent / specification), timeout)


def _file(path: Path) -> Path:
    """Returns the path, with `.gz` if only the compressed file exists: the competition's lists leave out `.gz`."""
    compressed = path.with_name(path.name + ".gz")
    return compressed if not path.exists() and compressed.exists() else path
