"""The smallest margin up to a gap, found by the verifier's own search.

The search is asked whether any margin is more than the gap below the smallest observed one. That question is the
property with a shifted offset, so the search, which only decides signs, can be used unchanged. If it finds a clip, the
clip's margin is the new smallest one, and the next question goes further down at once, because small steps would cost a
search each.

The property is also scaled up: what the verifier subtracts from a program's bound for the solver's tolerances
(`PROOF_MARGIN`, as large as the gap) then counts less. This is only for numbers in studies; verdicts keep all of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from stbp_milp.tightness.bounding import Found, Request, margin
from stbp_milp.verdict import Falsified, Unknown
from stbp_milp.verify import verify

GAP = 1e-4  # between the proved bound and the observed margin, in the unit of the network's output
_ALMOST = 0.9  # the share of the gap that is asked for, so that rounding stays within it
_SCALE = 4.0
_FURTHER = 4.0  # the factor of a step's length after one that was too short


def searched_minimum(request: Request, upper: float) -> Found:
    """Finds the smallest margin over the set, as far as time allows.

    Args:
        upper: an observed margin.
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
