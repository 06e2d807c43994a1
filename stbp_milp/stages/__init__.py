"""The stages of a run, from cheap to exact; each stage reads the context and adds to the state."""

from stbp_milp.stages.attacks import quick_attack, thorough_attack
from stbp_milp.stages.clean import clean_clip
from stbp_milp.stages.context import Context, OnProgress, State
from stbp_milp.stages.cutting import neurons_to_split
from stbp_milp.stages.ending import outcome
from stbp_milp.stages.first import first_pieces
from stbp_milp.stages.run import Stage, run, started
from stbp_milp.stages.search import branch_and_bound
from stbp_milp.stages.union import union_bound

__all__ = [
    "Context",
    "OnProgress",
    "Stage",
    "State",
    "branch_and_bound",
    "clean_clip",
    "first_pieces",
    "neurons_to_split",
    "outcome",
    "quick_attack",
    "run",
    "started",
    "thorough_attack",
    "union_bound",
]
