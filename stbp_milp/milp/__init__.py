"""Network, set and bounds as a mixed-integer program: exact, for what bounds and branching leave undecided."""

from stbp_milp.milp.cuts import cut_rounds, strengthen
from stbp_milp.milp.encode import SLACK, Accuracy, Encoded, encode, relax
from stbp_milp.milp.points import complete, extract
from stbp_milp.milp.region import InputRegion
from stbp_milp.milp.solve import PROOF_MARGIN, MilpResult, minimum, sign_limits
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
    "sign_limits",
    "strengthen",
    "tighten",
]
