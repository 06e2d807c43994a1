"""The answer to a query, with its evidence.

A verdict is `Verified(certificate)`, `Falsified(counterexample)` or `Unknown(kind, reason)`; an `Outcome` adds bounds,
times and counts. Margins are in the unit of the network's output; a positive margin means that the property holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Leaf:
    """A closed piece: a clause of the property on a part of the set, the bound that was proved for it, and how."""

    clause: int  # index in `Property.clauses`
    part: dict[str, Any]  # the part of the set, as described by `Choice.describe`
    phases: int  # number of ReLUs that were split to reach it
    lower: float  # proved lower bound of the clause on that part
    method: str  # the stage that closed it


@dataclass(frozen=True)
class Certificate:
    """Why the property holds on the whole set: the leaves cover it, and every bound is positive despite rounding.

    Attributes:
        lower: proved lower bound of the margin over the whole set (the least bound of a leaf); positive.
        closed: number of leaves closed by each stage.
        leaves: the first leaves, up to a limit that keeps records small.
    """

    lower: float
    closed: dict[str, int]
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, eq=False)
class Counterexample:
    """A clip of the set on which the original model breaks the property.

    Attributes:
        clip: (C, T, H, W), exactly in the set, and exactly what was given to the model (float32 values).
        outputs: the original model's scores on the clip (K,).
        margin: the margin of those outputs, <= 0.
        stage: the stage that found the clip.
    """

    clip: Tensor
    outputs: tuple[float, ...]
    margin: float
    stage: str


@dataclass(frozen=True)
class Verified:
    certificate: Certificate


@dataclass(frozen=True)
class Falsified:
    counterexample: Counterexample


class Reason(StrEnum):
    """Why a run ended without a verdict."""

    TIME = "timeout"
    MEMORY = "memout"
    NO_SOLVER = "no solver"  # no solver was allowed, or able, to settle what splits left open
    SOLVER_REFUSED = "solver refused"
    SOLVER_TIME = "solver out of time"
    TOLERANCE = "within tolerances"
    ROUNDING = "rounding"
    INTERNAL = "internal error"


ADVICE = {
    Reason.TIME: "give a larger --timeout, or a machine with more cores and a batch that splits the instance",
    Reason.MEMORY: "give a larger --memory",
    Reason.NO_SOLVER: "allow a solver with --solver auto",
    Reason.SOLVER_REFUSED: "use --solver auto, which takes the first solver that accepts a program",
    Reason.SOLVER_TIME: "give a larger --timeout; a solver gets at most ten seconds per subproblem",
    Reason.TOLERANCE: "the margin may be too close to 0 for a solver to tell its sign; ask for a slightly smaller eps",
    Reason.ROUNDING: "the network's values cancel so much that float64 cannot decide; rescale its layers",
    Reason.INTERNAL: "report this with the model, the clip and the options",
}


@dataclass(frozen=True)
class Unknown:
    """No verdict.

    Attributes:
        kind: the reason, for programs.
        reason: the reason in words, for people.
    """

    kind: Reason
    reason: str

    @property
    def advice(self) -> str:
        """What the user can try."""
        return ADVICE[self.kind]


Verdict = Verified | Falsified | Unknown


@dataclass(frozen=True)
class Progress:
    """How far a run has got; passed to the progress callback.

    Attributes:
        stage: the stage that runs now ("attack", "union bound", "split", "relu search", "milp").
        lower: proved lower bound of the margin over the whole set so far (-inf: nothing yet).
        upper: smallest margin observed on a clip of the set.
        parts: number of open subproblems.
        subproblems: number of subproblems bounded so far.
        seconds: seconds since the start.
    """

    stage: str
    lower: float
    upper: float
    parts: int
    subproblems: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """A verdict and how it was reached.

    Attributes:
        lower, upper: the smallest margin over the set is at least `lower` (proved) and at most `upper` (observed).
        clean_outputs: the original model's scores on the clean clip (K,).
        decided_by: the stage that settled the last open piece ("clean", "attack", "union bound", "split",
            "relu search", "milp"), or None for unknown.
        seconds: wall time of the whole run.
        stage_seconds: wall time per stage.
        counts: numbers of subproblems bounded, splits, programs solved and the like, by name.
        reading: the largest difference between the network and the original model on the clips that were tried last,
            relative to the size of their scores (`network.reading`).
    """

    verdict: Verdict
    lower: float
    upper: float
    clean_outputs: tuple[float, ...]
    decided_by: str | None
    seconds: float
    stage_seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    reading: float = 0.0

    @property
    def word(self) -> str:
        """ "verified", "falsified" or "unknown"."""
        return type(self.verdict).__name__.lower()
