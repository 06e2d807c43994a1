"""The messages between a worker and its keeper about one instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Tell = Callable[[dict[str, Any]], None]
"""Reports what a job knows before it ends: JSON entries of `Ended.heard`; later ones replace earlier ones.

After `tell({"settled": True})` the job has at least `EVIDENCE_SECONDS` left for writing down what it found.
"""

EVIDENCE_SECONDS = 30.0
OUTPUT_CHARACTERS = 4000
CANCEL = "cancel"


@dataclass(frozen=True)
class Limits:
    """The limits of an instance.

    Attributes:
        timeout: wall-clock seconds within which the job should end by itself.
        grace: seconds between the timeout and SIGKILL.
        memory_bytes: bytes that all its processes together may hold (RSS).
        threads: number of threads for torch and the solvers.
    """

    timeout: float
    grace: float
    memory_bytes: int
    threads: int = 1


@dataclass(frozen=True)
class Work:
    """An instance for the keeper.

    Attributes:
        job: the function that the child runs, "module:function"; it takes the argument and a `Tell`, and returns its
            answer.
        argument: the pickled argument, so that only the child imports what it needs.
    """

    job: str
    argument: bytes
    limits: Limits


@dataclass(frozen=True)
class Ended:
    """How an instance ended.

    Attributes:
        ended_by: "itself", "timeout", "memory", "cancelled", or for example "signal SIGABRT" or "exit 3".
        seconds: wall-clock seconds from the fork until none of its processes is left.
        memory_bytes: the largest memory that its processes were seen to hold together.
        heard: what the job reported; its answer is the entry "answer".
        output: the end of what it printed.
        clean: is none of its processes left?
    """

    ended_by: str
    seconds: float
    memory_bytes: int
    heard: dict[str, Any]
    output: str
    clean: bool = True

    @property
    def answer(self) -> dict[str, Any] | None:
        """Returns what the job returned, or None if it did not finish."""
        answer: dict[str, Any] | None = self.heard.get("answer")
        return answer
