"""Branch and bound on perturbation sets and ReLUs: what a node is, what to split, how children are bounded."""

from stbp_milp.branching.expand import Expander, ExpanderOptions, Witness
from stbp_milp.branching.piece import Family, Piece
from stbp_milp.branching.roots import Roots
from stbp_milp.branching.subtrees import hardest_neurons, within

__all__ = ["Expander", "ExpanderOptions", "Family", "Piece", "Roots", "Witness", "hardest_neurons", "within"]
