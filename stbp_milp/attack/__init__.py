"""Candidates inside the set: attacks, and whatever else might break the property."""

from stbp_milp.attack.candidates import candidates_from_points, representable
from stbp_milp.attack.judge import Judge
from stbp_milp.attack.search import QUICK, THOROUGH, AttackConfiguration, AttackResult, SweepResult, attack, sweep

__all__ = [
    "QUICK",
    "THOROUGH",
    "AttackConfiguration",
    "AttackResult",
    "Judge",
    "SweepResult",
    "attack",
    "candidates_from_points",
    "representable",
    "sweep",
]
