"""Which code a result came from: versions of python, of this package and of what it uses.

Imports nothing heavy, so that processes that only look after results can say it too.
"""

from __future__ import annotations

import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

_DISTRIBUTIONS = ("stbp-milp", "torch", "numpy", "scipy", "onnx", "onnxruntime", "pyscipopt", "gurobipy", "highspy")


@lru_cache(maxsize=1)
def versions() -> dict[str, Any]:
    """Versions of python, of this package (and its git commit, where it runs from a checkout) and of what it uses."""
    found: dict[str, Any] = {"python": platform.python_version()}
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
