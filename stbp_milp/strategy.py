"""What a run tries, and how much of its time that may take: everything that was chosen by measurement, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

from stbp_milp.attack import QUICK, THOROUGH, AttackConfiguration
from stbp_milp.branching import BranchingOptions


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a query is gone about; every choice is sound, and the defaults are the fastest ones known.

    Attributes:
        quick_attack, thorough_attack: before the first bounds, and after them; None: no attack.
        quick_share, thorough_share: of the whole time, that they may take.
        trial_share: of the whole time, until when a trial that has begun ends at the latest, on top of that.
        union: is the whole set bounded at once, before its members are?
        candidates: are minimisers of bounds, and points of solvers, tried as counterexamples?
        branching: how subproblems are bounded and split.
        matrices_limit: multiplications of a forward pass beyond which a network is not written down as matrices.
        matrices_share: of the time left, that writing it down may take, with groups of members that share matrices.
        places_listed: patches with more positions than this are split by halves; those with fewer are bounded one by
            one, where that is measured to pay.
    """

    quick_attack: AttackConfiguration | None = QUICK
    thorough_attack: AttackConfiguration | None = THOROUGH
    quick_share: float = 0.02
    thorough_share: float = 0.1
    trial_share: float = 0.15
    union: bool = True
    candidates: bool = True
    branching: BranchingOptions = field(default_factory=BranchingOptions)
    matrices_limit: int = 30_000_000
    matrices_share: float = 0.25
    places_listed: int = 1 << 20


DEFAULT = Strategy()
