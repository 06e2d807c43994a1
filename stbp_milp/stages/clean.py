"""The clean clip: does it have the property at all?"""

from __future__ import annotations

from stbp_milp.attack.judge import CLEAN
from stbp_milp.stages.context import Context, State


def clean_clip(context: Context, state: State) -> None:
    with state.ledger.timed(CLEAN):
        state.judge(context.set.centre, CLEAN)
