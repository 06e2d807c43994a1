"""The methods that a run tries and their shares of its time: everything that was tuned by measurement."""

from __future__ import annotations

from dataclasses import dataclass, field

from stbp_milp.attack import QUICK, THOROUGH, AttackConfiguration
from stbp_milp.branching import BranchingOptions


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a query is answered; every choice is sound, and the defaults are the fastest ones known.

    Attributes:
        quick_attack, thorough_attack: the attacks before and after the first bounds; None: no attack.
        quick_share, thorough_share: the shares of the whole time that they may take.
        trial_share: the additional share of the whole time after which even a trial that has begun is ended.
        union: is the whole set bounded at once before its members are?
        candidates: are minimisers of bounds and points of solvers tried as counterexamples?
        branching: how subproblems are bounded and split.
        matrices_limit: multiplications of a forward pass beyond which a network is not written down as matrices.
        matrices_share: the share of the remaining time for writing down the matrices and grouping the members that
            share them.
        places_listed: patches with more positions than this are split in halves; positions of others are bounded one by
            one, if that is measured to pay.
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
