"""What benchmarks share: what is asked, a process of its own for a measurement, and its peak memory."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Table = tuple[str, list[str], list[list[object]]]
"""Title, header and rows."""


@dataclass(frozen=True)
class Asked:
    """Clips of the search, seconds for one verdict, and torch's threads."""

    clips: int
    timeout: float
    threads: int


def alone(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """The function's result, from a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


def peak_megabytes() -> float:
    """The most memory that this process held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
