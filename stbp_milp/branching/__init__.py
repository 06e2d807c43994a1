"""Branch and bound on perturbation sets and ReLUs: the subproblems, what to split, and how children are bounded."""

from stbp_milp.branching.bounder import Bounder, BranchingOptions, Witness
from stbp_milp.branching.expand import Expander
from stbp_milp.branching.partition import OnCrops, OnMatrices
from stbp_milp.branching.piece import Family, Piece
from stbp_milp.branching.roots import Effort, Roots
from stbp_milp.branching.subtrees import hardest_neurons, within

__all__ = [
    "Bounder",
    "BranchingOptions",
    "Effort",
    "Expander",
    "Family",
    "OnCrops",
    "OnMatrices",
    "Piece",
    "Roots",
    "Witness",
    "hardest_neurons",
    "within",
]
