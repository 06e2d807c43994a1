"""Branch and bound over opaque nodes: knows bounds and deadlines, no tensors."""

from stbp_milp.search.best_first import Expansion, Node, Search, SearchEnd, best_first
from stbp_milp.search.deadline import Deadline
from stbp_milp.search.pace import Pace, Rate

__all__ = ["Deadline", "Expansion", "Node", "Pace", "Rate", "Search", "SearchEnd", "best_first"]
