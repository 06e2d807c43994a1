"""The answer to a query, with its evidence.

`Verified(certificate) | Falsified(counterexample) | Unknown(reason)`; an `Outcome` adds how far every stage got.
Margins are in the unit of the network's output; positive means the property holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Leaf:
    """One closed piece: a clause of the property on a part of the set, what was proved of it and how."""

    clause: int  # index in `Property.clauses`
    part: dict[str, Any]  # the piece of the set, as `Choice.describe` says it
    phases: int  # how many ReLUs were split on the way to it
    lower: float  # proved lower bound of the clause on it
    method: str  # the stage that closed it


@dataclass(frozen=True)
class Certificate:
    """Why the property holds on the whole set: the leaves cover it and every bound is positive, rounding included.

    Attributes:
        lower: proved lower bound of the margin over the whole set (the least of the leaves'); positive.
        closed: number of leaves closed by each stage.
        leaves: the first of the leaves (all of them up to a limit that keeps records small).
    """

    lower: float
    closed: dict[str, int]
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, eq=False)
class Counterexample:
    """A clip of the set on which the original model breaks the property.

    Attributes:
        clip: (C, T, H, W), exactly in the set, and exactly what was given to the model (float32 values).
        outputs: the original model's scores on it (K,).
        margin: the original model's margin on it, <= 0.
        stage: which stage found it.
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
    """Why a run ended without a verdict; the value is the batch's word for it."""

    TIME = "timeout"
    MEMORY = "memout"
    NO_SOLVER = "no solver"  # nothing was allowed, or able, to settle what splits left
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
    Reason.SOLVER_TIME: "give a larger --timeout; a solver gets at most ten seconds for a part of the problem",
    Reason.TOLERANCE: "the property may hold by less than solvers can tell from 0; ask for a slightly smaller eps",
    Reason.ROUNDING: "the network's numbers cancel so much that float64 cannot decide; rescale its layers",
    Reason.INTERNAL: "report this with the model, the clip and the options",
}


@dataclass(frozen=True)
class Unknown:
    """No verdict.

    Attributes:
        kind: why, for programs.
        reason: why, for people.
    """

    kind: Reason
    reason: str

    @property
    def advice(self) -> str:
        """What may help."""
        return ADVICE[self.kind]


Verdict = Verified | Falsified | Unknown


@dataclass(frozen=True)
class Progress:
    """How far a run has got; sent to the progress callback.

    Attributes:
        stage: what runs now ("attack", "union bound", "split", "relu search", "milp").
        lower: proved lower bound of the margin over the whole set so far (-inf: nothing yet).
        upper: smallest margin seen on a clip of the set.
        parts: subproblems of the set still open.
        subproblems: subproblems bounded so far.
        seconds: since the start.
    """

    stage: str
    lower: float
    upper: float
    parts: int
    subproblems: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """A verdict and how it came about.

    Attributes:
        lower, upper: the margin's least value over the set lies in [lower, upper], as far as proved and seen.
        clean_outputs: the original model's scores on the clean clip (K,).
        decided_by: the stage that settled the last open piece ("clean", "attack", "union bound", "split",
            "relu search", "milp"), or None for unknown.
        stage_seconds: wall time by stage.
        counts: subproblems bounded, splits, programs solved and the like, by name.
        reading: how far the network and the original were apart at most, on the clips that were tried last, relative
            to the sizes of their scores (`network.reading`).
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
