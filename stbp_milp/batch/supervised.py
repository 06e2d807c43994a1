"""What a worker and its keeper say to each other about one instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Tell = Callable[[dict[str, Any]], None]
"""How a job says what it knows before it ends: entries of `Ended.heard`, JSON values; later ones replace earlier ones.

After `tell({"settled": True})` the job has `EVIDENCE_SECONDS` more, to write down what it found.
"""

EVIDENCE_SECONDS = 30.0
OUTPUT_CHARACTERS = 4000
CANCEL = "cancel"


@dataclass(frozen=True)
class Limits:
    """What an instance may take.

    Attributes:
        timeout: wall-clock seconds, in which the job should end by itself.
        grace: seconds after which it is killed, when they are over.
        memory_bytes: what its processes may hold together (RSS).
        threads: of torch and the solvers.
    """

    timeout: float
    grace: float
    memory_bytes: int
    threads: int = 1


@dataclass(frozen=True)
class Work:
    """An instance for the keeper.

    Attributes:
        job: what the child runs, "module:function"; called with the argument and a `Tell`, it returns its answer.
        argument: pickled, so that only the child imports what it needs.
    """

    job: str
    argument: bytes
    limits: Limits


@dataclass(frozen=True)
class Ended:
    """How it ended.

    Attributes:
        ended_by: "itself", "timeout", "memory", "cancelled", "signal SIGABRT" or "exit 3".
        seconds: wall clock, from the fork until nothing of it is left.
        memory_bytes: the most that its processes held together, as far as polled.
        heard: what it told; its answer is the entry "answer".
        output: the end of what it printed.
        clean: no process of it is left.
    """

    ended_by: str
    seconds: float
    memory_bytes: int
    heard: dict[str, Any]
    output: str
    clean: bool = True

    @property
    def answer(self) -> dict[str, Any] | None:
        """What the job returned, if it came to an end."""
        answer: dict[str, Any] | None = self.heard.get("answer")
        return answer
