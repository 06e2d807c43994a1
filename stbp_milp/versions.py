"""The versions of Python, of this package and of its dependencies, and which versions' results to distrust.

This module imports nothing heavy, so that processes that only manage results can use it too.
"""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

VERSION = "0.5.0"  # of this package; pyproject.toml takes it from here

_DISTRIBUTIONS = ("torch", "numpy", "scipy", "onnx", "onnxruntime", "pyscipopt", "gurobipy", "highspy")


@dataclass(frozen=True)
class Fault:
    """A fault of earlier versions that makes some of their results worthless.

    Attributes:
        mended: the first version without the fault.
        words: the statuses of results that cannot be trusted.
        what: the fault, as the end of a sentence.
    """

    mended: str
    words: frozenset[str]
    what: str


FAULTS = (
    Fault(
        "0.2.0",
        frozenset({"verified"}),
        "could prove what is false where rounding errors were large or a torch module was read wrongly",
    ),
    Fault(
        "0.3.0",
        frozenset({"verified"}),
        "could take a solver's word for boxes that are narrower than the solver's tolerances",
    ),
)
"""Faults of earlier versions; a release that mends a wrong verdict adds a line."""


def distrusted(version: object, word: str) -> str | None:
    """Returns why a result with this status cannot be trusted if that version computed it; None if it can.

    A version that cannot be read as numbers is taken to have every fault.
    """
    for fault in FAULTS:
        if word in fault.words and _numbers(version) < _numbers(fault.mended):
            return f"{word} by version {version}, which {fault.what}"
    return None


def _numbers(version: object) -> tuple[int, ...]:
    parts = str(version).split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdigit() for part in parts) else ()


@lru_cache(maxsize=1)
def versions() -> dict[str, Any]:
    """Returns the versions of Python, of this package (with its git commit, in a checkout) and of its dependencies."""
    found: dict[str, Any] = {"python": platform.python_version(), "stbp-milp": VERSION}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found | {"commit": _commit()}


def _commit() -> str | None:
    """Returns the checkout's commit, followed by "+changes" if files of the package differ from it."""
    here = Path(__file__).resolve().parent
    try:
        # This fails if the package is installed inside another project's checkout.
        _git(here, "ls-files", "--error-unmatch", "errors.py")
        changes = _git(here, "status", "--porcelain", "--untracked-files=no", ".", "../solvers")
        return _git(here, "rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
