"""Network, set and bounds as a mixed-integer program: exact, for pieces that bounds and branching leave undecided."""

from stbp_milp.milp.cuts import cut_rounds
from stbp_milp.milp.encode import PROOF_MARGIN, SLACK, Accuracy, Encoded, encode, relax
from stbp_milp.milp.points import complete, extract
from stbp_milp.milp.region import InputRegion
from stbp_milp.milp.solve import MilpResult, minimum, until_sign
from stbp_milp.milp.tighten import Tightened, tighten

__all__ = [
    "PROOF_MARGIN",
    "SLACK",
    "Accuracy",
    "Encoded",
    "InputRegion",
    "MilpResult",
    "Tightened",
    "complete",
    "cut_rounds",
    "encode",
    "extract",
    "minimum",
    "relax",
    "tighten",
    "until_sign",
]
