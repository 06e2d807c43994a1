"""Branch and bound over opaque nodes: this package knows bounds and deadlines, but no tensors."""

from stbp_milp.search.best_first import Expansion, Node, Search, SearchEnd, best_first
from stbp_milp.search.deadline import Deadline
from stbp_milp.search.pace import Pace, Rate

__all__ = ["Deadline", "Expansion", "Node", "Pace", "Rate", "Search", "SearchEnd", "best_first"]
