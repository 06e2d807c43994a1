"""Attacks, and the check of candidates: clips of the set that might break the property."""

from stbp_milp.attack.candidates import representable
from stbp_milp.attack.judge import Judge
from stbp_milp.attack.search import QUICK, THOROUGH, AttackConfiguration, AttackResult, attack

__all__ = [
    "QUICK",
    "THOROUGH",
    "AttackConfiguration",
    "AttackResult",
    "Judge",
    "attack",
    "representable",
]
