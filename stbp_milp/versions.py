"""Which code a result came from: versions of python, of this package and of what it uses; and which to distrust.

Imports nothing heavy, so that processes that only look after results can say it too.
"""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

VERSION = "0.3.0"  # of this package; pyproject.toml takes it from here

_DISTRIBUTIONS = ("torch", "numpy", "scipy", "onnx", "onnxruntime", "pyscipopt", "gurobipy", "highspy")


@dataclass(frozen=True)
class Fault:
    """A fault of earlier versions that makes some of their results worthless.

    Attributes:
        mended: the first version without it.
        words: of the results that cannot be trusted.
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
    """Why a result with this word is not to be trusted, if that version computed it; None where it is.

    A version that cannot be read as numbers has every fault.
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
    """Versions of python, of this package (and its git commit, where it runs from a checkout) and of what it uses."""
    found: dict[str, Any] = {"python": platform.python_version(), "stbp-milp": VERSION}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found | {"commit": _commit()}


def _commit() -> str | None:
    """The checkout's commit, with "+changes" where files of the package differ from it."""
    here = Path(__file__).resolve().parent
    try:
        # Fails where the package is installed inside somebody else's checkout.
        _git(here, "ls-files", "--error-unmatch", "errors.py")
        changes = _git(here, "status", "--porcelain", "--untracked-files=no", ".", "../solvers")
        return _git(here, "rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
