"""The least margin by the verifier's own search, to a gap: is it more than a little below the least that was seen?

That question is the property with its offset moved, so the search that knows a sign only serves unchanged. A clip
that it finds is the next least margin seen; then it is asked further down at once, because small steps would each
cost a search.

The property is scaled up as well: what the verifier takes off a program's bound for the solver's tolerances
(`PROOF_MARGIN`, as large as the gap) counts so much less. That is for numbers in studies; verdicts keep all of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from stbp_milp.tightness.bounding import Found, Request, margin
from stbp_milp.verdict import Falsified, Unknown
from stbp_milp.verify import verify

GAP = 1e-4  # between what is proved and what was seen, in the unit of the network's output
_ALMOST = 0.9  # of the gap is asked for, so that rounding keeps within it
_SCALE = 4.0
_FURTHER = 4.0  # a step's length after one that was too short


def searched_minimum(request: Request, upper: float) -> Found:
    """The least margin over the set, as far as time allows.

    Args:
        upper: a margin that was seen.
    """
    asked, lower, step, searches = request.query, -math.inf, _ALMOST * GAP, 0
    while upper - lower > GAP and not request.deadline.expired():
        at = upper - step
        rows, offset = _SCALE * asked.property.rows, _SCALE * (asked.property.offset - at)
        moved = replace(asked.property, rows=rows, offset=offset)
        outcome = verify(replace(asked, property=moved), request.configuration())
        searches += 1
        lower = max(lower, at + outcome.lower / _SCALE)
        if isinstance(outcome.verdict, Falsified):
            before, upper = upper, min(upper, margin(asked, outcome.verdict.counterexample.clip))
            step = max(step, _FURTHER * (before - upper))
        elif isinstance(outcome.verdict, Unknown):
            return Found(lower, upper, note=outcome.verdict.reason, late=True)
        else:
            step = _ALMOST * GAP
    note = f"{searches} searches"
    return Found(lower, upper, note=note, late=upper - lower > GAP)
